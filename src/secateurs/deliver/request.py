"""What was asked for, as plain data in the form of a recipe, whoever asked and however."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn

from secateurs.base.reference import name_of
from secateurs.deliver.inputs import TensorSpec
from secateurs.score.criterion import CRITERIA, Criterion
from secateurs.sparsity.settings import Sparsity
from secateurs.train.checkpoint import digest
from secateurs.train.config import FineTune

FORMAT = 1


@dataclass(frozen=True)
class FromPython:
    """What `prune` was handed as objects that a recipe has no name for: what each was, under the key of its name.

    `weights` is the `state_digest` of the model before the cut; the others say the class or function.
    """

    model: str | None = None
    weights: str | None = None
    inputs: str | None = None
    data: str | None = None
    evaluate: str | None = None
    loss: str | None = None
    criterion: str | None = None


def request(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, data: Any, evaluate: Any, **rest: Any
) -> dict[str, Any]:
    """The arguments of `prune` by the names that a recipe has for them.

    Functions become `package.module:attribute` where that finds them again. What it does not find (the model itself, a
    loader object, a lambda, inputs that are not plain tensors) is described under `from_python`.
    """
    inputs, metric = _texts(args, kwargs), name_of(evaluate)
    trained_on, scored_on = _nameless_loss(rest.get("finetune")), _nameless(rest.get("loss"))
    loss = trained_on or scored_on
    handed = FromPython(
        model=_kind(model),
        weights=state_digest(model),
        inputs=None if inputs is not None else ", ".join(_kind(item) for item in (*args, *kwargs.values())),
        data=None if data is None else _kind(data),
        evaluate=None if evaluate is None or metric else _kind(evaluate),
        loss=None if loss is None else _kind(loss),
        criterion=_nameless_criterion(rest.get("criterion")),
    )
    if isinstance(rest.get("criterion"), Criterion) or handed.criterion is not None:
        rest["criterion"] = None if handed.criterion is not None else rest["criterion"].name
    if trained_on is not None:
        rest["finetune"] = replace(rest["finetune"], loss=FineTune.loss)
    if scored_on is not None:
        rest["loss"] = None
    asked = {"version": FORMAT, "from_python": handed, "inputs": inputs, **rest, "evaluate": metric}
    return {key: plain(value) for key, value in asked.items() if value is not None}


def state_digest(model: nn.Module) -> str:
    """SHA-256 over names and values of the parameters and persistent buffers of `model`."""
    return digest({name: item for name, item in model.state_dict().items() if isinstance(item, Tensor)})


def _kind(thing: Any) -> str:
    """The function, or the class of the object, as `module:name`; it need not be importable."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def _nameless_loss(config: FineTune | None) -> Any:
    """The loss function of `config` if no recipe can name it."""
    return None if config is None else _nameless(config.loss)


def _nameless(loss: Any) -> Any:
    if loss is None or isinstance(loss, str):
        return None
    return None if getattr(loss, "reference", None) or name_of(loss) else loss


def _nameless_criterion(given: Any) -> str | None:
    """What a criterion is that no recipe can name: anything but a registered one."""
    if given is None or isinstance(given, str):
        return None
    if isinstance(given, Criterion) and given.name in CRITERIA and CRITERIA[given.name] is given:
        return None
    return _kind(given.rule if isinstance(given, Criterion) else given)


def plain(value: Any) -> Any:
    """JSON data: configs become the fields that differ from their defaults, code its name, tuples lists."""
    if isinstance(value, Sparsity):
        return value.plain()
    if callable(value):
        return getattr(value, "reference", None) or name_of(value) or repr(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(item) for name, item in _changed(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _changed(config: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default:
            yield field.name, value


def _texts(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str] | None:
    if not all(isinstance(item, Tensor) for item in (*args, *kwargs.values())):
        return None
    return [str(TensorSpec.of(item)) for item in args] + [
        f"{key}={TensorSpec.of(item)}" for key, item in kwargs.items()
    ]
