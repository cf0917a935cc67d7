"""A recipe carried out: every name in it becomes the thing it names, then `prune` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from secateurs.base.errors import InputError, RecipeError, explain
from secateurs.base.reference import resolve
from secateurs.cli.arguments import build_model, example_inputs
from secateurs.deliver.request import FromPython, state_digest
from secateurs.prune import prune
from secateurs.recipe import NamedLoss, Recipe, make
from secateurs.report.result import Result

FLAGS = {
    "model": "--model package.module:factory (and --weights FILE, unless it gives the same weights)",
    "inputs": "--input SHAPE",
    "data": "--data package.module:loader",
    "evaluate": "--evaluate package.module:function",
    "loss": "--loss package.module:function, or `loss` under `finetune` in the recipe",
    "criterion": "`criterion`, the name of a registered one, in the recipe",
}
"""How each key that a recipe from Python leaves open is given."""


def complete(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """`recipe` with the keys in `given` named. Raises `InputError` for a key that it does not leave open."""
    handed = recipe.from_python or FromPython()
    free = set(recipe.unnamed) | ({"model"} if recipe.model is None else set())
    if recipe.weights is None and (recipe.model is None or handed.weights):
        free.add("weights")
    if closed := ", ".join(f"--{key.replace('inputs', 'input')}" for key in given if key not in free):
        raise InputError(
            explain(
                "Both a recipe and a request are given",
                evidence=f"beside --recipe: {closed}, which the recipe does not leave open",
                next_step="write it into the recipe, or leave out --recipe",
            )
        )
    return make(**{**dict(recipe), **given})


def run(
    recipe: Recipe, *, on_stage: Callable[[str], None] | None = None, quiet: bool = False, folder: str | None = None
) -> Result:
    """`prune` as the recipe asks; the recipe travels with the result. `folder` holds the checkpoints of training.

    Raises `RecipeError` when the recipe names no model or leaves open what was given from Python, or when the weights
    are others than it was made with; `InputError` when something it names cannot be used.
    """
    if recipe.unnamed:
        raise _unnamed(recipe)
    if recipe.model is None:
        raise RecipeError(
            explain("The request names no model", next_step="add `model: package.module:factory` (--model)")
        )
    if on_stage is not None:
        on_stage("build")
    model = build_model(recipe.model, recipe.weights, recipe.seed)
    _check_weights(recipe, model)
    config = recipe.finetune and replace(recipe.finetune, progress=recipe.finetune.progress and not quiet)
    args, kwargs = example_inputs(recipe.inputs, recipe.seed)
    result = prune(
        model,
        args,
        kwargs=kwargs,
        budget=recipe.budget,
        criterion=recipe.criterion,
        options=recipe.options,
        loss=_named_loss(recipe.loss),
        score_batches=recipe.score_batches,
        equalization=recipe.equalization,
        normalizer=recipe.normalizer,
        search=recipe.search,
        granularity=recipe.granularity,
        min_channels=recipe.min_channels,
        floor=recipe.floor,
        exclude=recipe.exclude,
        unit=recipe.unit,
        elementwise=recipe.elementwise,
        bias=recipe.bias,
        padding=recipe.padding,
        data=loader(recipe.data),
        evaluate=function(recipe.evaluate),
        reconstruct=recipe.reconstruct,
        recalibrate=recipe.recalibrate,
        finetune=config,
        device=recipe.device,
        folder=folder,
        seed=recipe.seed,
        on_stage=on_stage,
    )
    return replace(result, recipe=recipe.model_copy(update={"from_python": None}).plain())


def _unnamed(recipe: Recipe) -> RecipeError:
    handed = recipe.from_python or FromPython()
    weights = f"weights with SHA-256 {handed.weights[:12]}..., " if handed.weights and recipe.model is None else ""
    was = ", ".join(f"{key} was {getattr(handed, key)}" for key in recipe.unnamed)
    return RecipeError(
        explain(
            "This recipe was made from Python, where objects were given that it cannot name",
            evidence=f"{weights}{was}",
            next_step=f"give {', '.join(FLAGS[key] for key in recipe.unnamed)}",
        )
    )


def _check_weights(recipe: Recipe, model: nn.Module) -> None:
    """Raises `RecipeError` unless the weights are those of the model that the recipe was made with in Python."""
    expected = recipe.from_python and recipe.from_python.weights
    if not expected or expected == (found := state_digest(model)):
        return
    raise RecipeError(
        explain(
            "The model does not have the weights that this recipe was made with",
            where=f"`{recipe.model}`" + (f" with {recipe.weights}" if recipe.weights else ""),
            evidence=f"SHA-256 of the state is {found[:12]}..., was {expected[:12]}...",
            next_step="give them with --weights FILE, or remove `weights` from `from_python` to use others",
        )
    )


def loader(reference: str | None) -> Any:
    """The batches: what the name stands for, or what it returns when it is a function."""
    if reference is None:
        return None
    found = resolve(reference)
    if callable(found) and not hasattr(found, "__iter__"):
        found = found()
    if not hasattr(found, "__iter__"):
        raise InputError(
            explain(
                "The data cannot be iterated",
                where=f"`{reference}`",
                evidence=f"it is a {type(found).__name__}",
                next_step="name a loader, or a function without arguments that returns one",
            )
        )
    return found


def _named_loss(name: str | None) -> Any:
    return NamedLoss(name) if name is not None and ":" in name else name


def function(reference: str | None) -> Any:
    """`evaluate`: the function that the name stands for. Raises `InputError` for anything else."""
    if reference is None:
        return None
    found = resolve(reference)
    if not callable(found):
        raise InputError(
            explain("`evaluate` is not a function", where=f"`{reference}`", evidence=f"it is a {type(found).__name__}")
        )
    return found
