"""`Recipe`: the story of `prune` as a YAML file.

    version: 1
    model: mypackage.nets:resnet56
    weights: resnet56.safetensors
    inputs: [1x3x32x32]
    budget: {macs: 0.5}
    granularity: 8
    data: mypackage.data:train_loader
    evaluate: mypackage.data:accuracy
    finetune: {epochs: 3, lr: 0.01}

Code is named as `package.module:attribute`, never embedded. Every key has the name, default and meaning of the argument
of `prune`; a key that does not exist is an error that gives the line and the nearest valid one.

The recipe of a result that was made from Python has a section `from_python` instead of the names it cannot know. It
says what the model was, the SHA-256 of its weights, and so on; such a recipe runs once those things are named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from secateurs.base.errors import InputError, RecipeError, SecateursError, explain, nearest
from secateurs.base.reference import resolve
from secateurs.base.seeds import check_seed
from secateurs.choose.budget import Budget
from secateurs.deliver.inputs import parse
from secateurs.deliver.request import FORMAT, FromPython, plain
from secateurs.sparsity.settings import Sparsity
from secateurs.train.config import FineTune
from secateurs.train.distill import Distill
from secateurs.train.gates import Gates
from secateurs.train.penalty import Penalty
from secateurs.train.soft import Soft


@dataclass(frozen=True)
class NamedLoss:
    """A loss function given by name; its module is imported when it is first called."""

    reference: str

    def __call__(self, outputs: Any, target: Any) -> Any:
        return resolve(self.reference)(outputs, target)


def _checked(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`build` with our refusals as the kind of error that pydantic gives a place to."""

    def checked(data: Any) -> Any:
        try:
            return build(data)
        except (SecateursError, TypeError) as error:
            raise ValueError(str(error)) from error

    return checked


def _budget(data: Any) -> Budget:
    return data if isinstance(data, Budget) else Budget(**_mapping(data))


def _finetune(data: Any) -> FineTune:
    if isinstance(data, FineTune):
        return data
    given = dict(_mapping(data))
    if ":" in str(given.get("loss", "")):
        given["loss"] = NamedLoss(str(given["loss"]))
    if given.get("distil") is not None:
        given["distil"] = Distill(**_mapping(given["distil"]))
    if given.get("penalty") is not None:
        given["penalty"] = Penalty(**_mapping(given["penalty"]))
    if given.get("soft") is not None:
        given["soft"] = Soft(**_mapping(given["soft"]))
    if given.get("gates") is not None:
        given["gates"] = Gates(**_mapping(given["gates"]))
    if given.get("sparsity") is not None:
        given["sparsity"] = Sparsity.from_plain(_mapping(given["sparsity"]))
    if "milestones" in given:
        given["milestones"] = tuple(given["milestones"])
    return FineTune(**given)


def _mapping(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(explain(f"{data!r} is not a mapping of keys to values", next_step="write {key: value, ...}"))
    return data


def _input(text: str) -> str:
    parse(text)
    return text


def _reference(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        raise ValueError("this does not name code. Next: write package.module:attribute")
    return text


Reference = Annotated[str, AfterValidator(_reference)]
InputText = Annotated[str, AfterValidator(_checked(_input))]
BudgetField = Annotated[Budget, PlainValidator(_checked(_budget)), PlainSerializer(plain)]
FineTuneField = Annotated[FineTune, PlainValidator(_checked(_finetune)), PlainSerializer(plain)]
Seed = Annotated[int, AfterValidator(_checked(check_seed))]


class Recipe(BaseModel):
    """One request to `prune`, versioned."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1]
    from_python: FromPython | None = None
    model: Reference | None = None
    weights: str | None = None
    inputs: tuple[InputText, ...] = ()
    budget: BudgetField
    criterion: str | None = None
    options: dict[str, bool | int | float | str] | None = None
    loss: str | None = None
    score_batches: Annotated[int, Field(ge=0)] = 16
    equalization: str = "arithmetic_mean"
    normalizer: str | None = None
    search: str = "global"
    granularity: Annotated[int, Field(ge=1)] = 1
    min_channels: Annotated[int, Field(ge=1)] = 1
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    exclude: tuple[str, ...] = ()
    unit: Literal["heads", "head_dim"] = "heads"
    elementwise: Literal["couple", "keep"] = "couple"
    bias: Literal["drop", "propagate", "propagate_mean"] = "drop"
    padding: Literal["interior", "mean", "map"] = "interior"
    data: Reference | None = None
    evaluate: Reference | None = None
    reconstruct: Annotated[int, Field(ge=0)] = 0
    recalibrate: Annotated[int, Field(ge=0)] = 16
    finetune: FineTuneField | None = None
    device: str | None = None
    seed: Seed = 0

    @property
    def unnamed(self) -> tuple[str, ...]:
        """The keys whose value was an object in Python and has no name here yet; weights are checked, not named."""
        handed = self.from_python or FromPython()
        trained_on = self.finetune is not None and callable(self.finetune.loss)
        named = {**dict(self), "weights": True, "loss": self.loss or trained_on}
        return tuple(key.name for key in fields(handed) if getattr(handed, key.name) and not named[key.name])

    def to_yaml(self) -> str:
        """The recipe as text that `read` turns back into an equal one; defaults are written out."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=False, width=100)

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON data, keys that are None left out."""
        return self.model_dump(mode="json", exclude_none=True)


_SECTIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    (): tuple(Recipe.model_fields),
    ("from_python",): tuple(field.name for field in fields(FromPython)),
    ("budget",): tuple(field.name for field in fields(Budget)),
    ("finetune",): tuple(field.name for field in fields(FineTune)),
    ("finetune", "distil"): tuple(field.name for field in fields(Distill)),
    ("finetune", "gates"): tuple(field.name for field in fields(Gates)),
    ("finetune", "penalty"): tuple(field.name for field in fields(Penalty)),
    ("finetune", "soft"): tuple(field.name for field in fields(Soft)),
    ("finetune", "sparsity"): tuple(field.name for field in fields(Sparsity)),
}


_EXAMPLES = {"version": str(FORMAT), "budget": "{macs: 0.5}"}


def make(**keys: Any) -> Recipe:
    """A recipe from Python values. Raises `RecipeError` on a value that no recipe can have."""
    try:
        return Recipe.model_validate({"version": FORMAT, **keys})
    except ValidationError as error:
        raise _refusal(error, None, "the request") from error


def load(path: str | Path) -> Recipe:
    """The recipe in a file. Raises `RecipeError` if it cannot be read or says something that does not exist."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        evidence = getattr(error, "strerror", None) or str(error)
        next_step = "check the path; it is relative to this folder"
        raise RecipeError(
            explain("The recipe cannot be read", where=str(path), evidence=evidence, next_step=next_step)
        ) from error
    return read(text, str(path))


def read(text: str, name: str = "recipe") -> Recipe:
    """The recipe in a text; `name` is what messages call it.

    Raises `RecipeError` for YAML that does not parse, a duplicate or unknown key (with its line and the nearest valid
    one), a missing key, or a value of the wrong type or range.
    """
    root = _compose(text, name)
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(
            explain("A recipe is a mapping of keys to values", where=name, next_step="start it with `version: 1`")
        )
    _check_keys(root, (), name)
    try:
        return Recipe.model_validate_json(json.dumps(yaml.safe_load(text), allow_nan=False))
    except ValidationError as error:
        raise _refusal(error, root, name) from error
    except (TypeError, ValueError) as error:
        raise RecipeError(
            explain("A recipe holds text, finite numbers, lists and mappings", where=name, evidence=str(error))
        ) from error


def _compose(text: str, name: str) -> yaml.Node | None:
    """The node tree, which knows lines. Aliases are refused: they can make a short file enormous."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise RecipeError(explain("A recipe has no aliases (`*name`)", where=name, next_step="write the value out"))
        yaml.safe_load(text)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(explain("The recipe is not valid YAML", where=where, evidence=problem)) from error


def _check_keys(node: yaml.Node, path: tuple[str, ...], name: str) -> None:
    """Refuses keys that are given twice and, in the sections that have a fixed set of them, unknown ones."""
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key_node, value in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        where = f"{name}, line {line}"
        if key in lines:
            evidence = f"first on line {lines[key]}"
            raise RecipeError(
                explain(f"Key {key!r} is given twice", where=where, evidence=evidence, next_step="keep one")
            )
        if path in _SECTIONS and key not in _SECTIONS[path]:
            raise _unknown(".".join((*path, key)), key, _SECTIONS[path], where)
        lines[key] = line
        _check_keys(value, (*path, key), name)


def _unknown(full: str, key: str, valid: tuple[str, ...], where: str) -> RecipeError:
    close = nearest(key, valid)
    return RecipeError(
        explain(
            f"There is no recipe key {full!r}",
            where=where,
            evidence=f"valid here: {', '.join(valid)}",
            next_step=f"did you mean {close[0]!r}?" if close else "remove it",
        )
    )


def _refusal(error: ValidationError, root: yaml.Node | None, name: str) -> RecipeError:
    """The first finding of pydantic in our words, with its line."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        example = _EXAMPLES.get(key, "...")
        return RecipeError(explain(f"The recipe has no {key!r}", where=name, next_step=f"add `{key}: {example}`"))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("tuple_type", "list_type"):
        message = f"a list is needed here. Next: write [{first['input']}]"
    where = name if root is None else f"{name}, line {_line(root, first['loc'])}"
    evidence = f"{str(first['input'])[:80]!r}: {message}"
    return RecipeError(explain(f"{key!r} has a value it cannot have", where=where, evidence=evidence))


def _line(root: yaml.Node, loc: tuple[int | str, ...]) -> int:
    """The line of the deepest key or item on the way to `loc`."""
    node, line = root, root.start_mark.line
    for part in loc:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            line, node = next(
                ((key.start_mark.line, value) for key, value in node.value if key.value == part), (line, node)
            )
    return int(line) + 1
