"""What several verbs take: the model, its weights, its inputs, and how each text becomes the thing it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from secateurs.base.errors import BudgetError, InputError, explain
from secateurs.base.reference import resolve
from secateurs.base.seeds import seeded
from secateurs.choose.budget import Budget
from secateurs.deliver.artifact import load, stored_inputs
from secateurs.deliver.inputs import make
from secateurs.deliver.tensors import load_into, read_state

Factory = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="CODE",
        help="package.module:factory, a class or function without arguments that gives the model; this folder is "
        "searched first.",
    ),
]
OptionalFactory = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="CODE",
        help="package.module:factory, a class or function without arguments that gives the model before the cut.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="FILE", help="safetensors file with its weights; else those of the factory."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        help="Shape of an input: 1x3x224x224, 1x16:int64:100 (integers below 100), mask=1x16:bool (by name). "
        "Repeatable.",
    ),
]
Unit = Annotated[
    str,
    typer.Option(
        "--unit",
        metavar="NAME",
        help="What goes from attention: heads, or head_dim (columns of every head).",
        rich_help_panel="What goes",
    ),
]
Elementwise = Annotated[
    str,
    typer.Option(
        "--elementwise",
        metavar="NAME",
        help="Channels of several layers that are added, multiplied, ...: couple, or keep (none of them goes).",
        rich_help_panel="What goes",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="CODE",
        help="package.module:loader, training batches (inputs, target).",
        rich_help_panel="What follows",
    ),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        "--evaluate",
        metavar="CODE",
        help="package.module:function, (model) -> float, higher is better.",
        rich_help_panel="What follows",
    ),
]
Checkpoints = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        metavar="FOLDER",
        help="Keep training here; the same command goes on after a crash.",
        rich_help_panel="The run",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="LAYER",
        help="Layer to keep whole, by name or glob. Repeatable.",
        rich_help_panel="What goes",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Fixes every random draw.")]


def given(context: typer.Context) -> list[str]:
    """Names of the options that stand on the command line."""
    return [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]


def build_model(reference: str, weights: str | None = None, seed: int = 0) -> nn.Module:
    """The model that the factory gives, with weights from a file if given, in eval mode; `seed` fixes random weights.

    Raises `InputError` when the factory fails or gives something else, `ArtifactError` when the weights do not fit.
    """
    factory = resolve(reference)
    try:
        with seeded(seed):
            model = factory()
    except Exception as error:  # the user's own code runs here and may raise anything
        raise InputError(
            explain(
                "The model's factory failed",
                where=f"`{reference}`",
                evidence=f"{type(error).__name__}: {error}",
                next_step="name a class or function that needs no arguments",
            )
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            explain(
                "The factory does not give a model",
                where=f"`{reference}`",
                evidence=f"it gave a {type(model).__name__}",
            )
        )
    if weights is not None:
        load_into(model, read_state(existing(weights)), weights)
    return model.eval()


def existing(path: str) -> Path:
    """The path of a file that is there. Raises `InputError` if it is not."""
    if not Path(path).is_file():
        raise InputError(
            explain(f"There is no file `{path}`", next_step="check the path; it is relative to this folder")
        )
    return Path(path)


def example_inputs(texts: Sequence[str] | None, seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Made-up inputs of the given shapes. Raises `InputError` when there are none."""
    if not texts:
        raise InputError(
            explain("The model's input is not given", next_step="add --input SHAPE, such as --input 1x3x224x224")
        )
    return make(texts, seed)


def parse_budget(texts: Sequence[str]) -> Budget:
    """`["macs=0.5", "params=100000"]` as a `Budget`. Raises `BudgetError` on other text."""
    if not texts:
        raise BudgetError(
            explain("The budget is empty", next_step="add --budget macs=0.5 or another limit, or --recipe FILE")
        )
    limits: dict[str, Any] = {}
    for text in (part for item in texts for part in item.split(",")):
        metric, equals, number = text.partition("=")
        try:
            limit = float(number) if {".", "e"} & set(number.lower()) else int(number)
        except ValueError as error:
            raise _not_a_budget(text) from error
        if not equals or metric.strip() not in Budget.__dataclass_fields__:
            raise _not_a_budget(text)
        if metric.strip() in limits:
            raise BudgetError(
                explain(
                    f"The budget limits {metric.strip()} twice",
                    evidence=f"{limits[metric.strip()]} and {limit}",
                    next_step="keep one",
                )
            )
        limits[metric.strip()] = int(limit) if 1 < limit < float("inf") and limit == int(limit) else limit
    return Budget(**limits)


def _not_a_budget(text: str) -> BudgetError:
    return BudgetError(
        explain(
            f"{text!r} is not a limit",
            evidence=f"metrics: {', '.join(Budget.__dataclass_fields__)}",
            next_step="write metric=fraction or metric=number, such as macs=0.5 or params=100000",
        )
    )


@dataclass(frozen=True)
class Subject:
    """A model and the inputs to run it on."""

    model: nn.Module
    args: Any
    kwargs: dict[str, Any]


def load_subject(artifact: str | None, model: str | None, weights: str | None, inputs: Sequence[str] | None) -> Subject:
    """The model of an artifact, or the model itself when there is none; inputs as given, else those of the artifact.

    Raises `InputError` when neither is named, `ArtifactError` when the artifact cannot be used.
    """
    if artifact is not None:
        if weights is not None and model is None:
            raise InputError(
                explain("An artifact holds its own weights", next_step="leave out --weights, or name --model too")
            )
        build = None if model is None else partial(build_model, model)
        loaded = load(artifact, build)
        if inputs:
            args, kwargs = make(inputs)
        else:
            args, kwargs = stored_inputs(artifact)
        return Subject(loaded, args, dict(kwargs))
    if model is None:
        raise InputError(
            explain("No model is named", next_step="give an artifact folder or --model package.module:factory")
        )
    args, kwargs = example_inputs(inputs)
    return Subject(build_model(model, weights), args, kwargs)


def parse_options(texts: Sequence[str]) -> dict[str, bool | int | float | str]:
    """`["eps=0.1", "diagonal=fisher"]` as keyword options: numbers and true/false where they look like it."""
    found: dict[str, bool | int | float | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip() and value.strip()):
            raise InputError(
                explain(f"--option {text!r} is not an option of a criterion", next_step="write NAME=VALUE")
            )
        found[name.strip()] = _plain(value.strip())
    return found


def _plain(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
