"""A recipe carried out: every name in it becomes the thing it names, then `prune` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from secateurs.base.errors import InputError, RecipeError, explain
from secateurs.base.reference import resolve
from secateurs.cli.arguments import build_model, example_inputs
from secateurs.prune import prune
from secateurs.recipe import Recipe
from secateurs.report.result import Result


def run(
    recipe: Recipe, *, on_stage: Callable[[str], None] | None = None, quiet: bool = False, folder: str | None = None
) -> Result:
    """`prune` as the recipe asks; the recipe travels with the result. `folder` holds the checkpoints of training.

    Raises `RecipeError` when the recipe names no model, `InputError` when something it names cannot be used.
    """
    if recipe.model is None:
        raise RecipeError(
            explain("The request names no model", next_step="add `model: package.module:factory` (--model)")
        )
    if on_stage is not None:
        on_stage("build")
    model = build_model(recipe.model, recipe.weights)
    config = recipe.finetune and replace(recipe.finetune, progress=recipe.finetune.progress and not quiet)
    args, kwargs = example_inputs(recipe.inputs, recipe.seed)
    result = prune(
        model,
        args,
        kwargs=kwargs,
        budget=recipe.budget,
        criterion=recipe.criterion,
        combine=recipe.combine,
        normalize=recipe.normalize,
        search=recipe.search,
        multiple=recipe.multiple,
        min_width=recipe.min_width,
        floor=recipe.floor,
        exclude=recipe.exclude,
        unit=recipe.unit,
        data=_loader(recipe.data),
        evaluate=_function(recipe.evaluate),
        recalibrate=recipe.recalibrate,
        finetune=config,
        device=recipe.device,
        folder=folder,
        seed=recipe.seed,
        on_stage=on_stage,
    )
    return replace(result, recipe=recipe.plain())


def _loader(reference: str | None) -> Any:
    """The training batches: what the name stands for, or what it returns when it is a function."""
    if reference is None:
        return None
    found = resolve(reference)
    if callable(found) and not hasattr(found, "__iter__"):
        found = found()
    if not hasattr(found, "__iter__"):
        raise InputError(
            explain(
                "The training data cannot be iterated",
                where=f"`{reference}`",
                evidence=f"it is a {type(found).__name__}",
                next_step="name a loader, or a function without arguments that returns one",
            )
        )
    return found


def _function(reference: str | None) -> Any:
    if reference is None:
        return None
    found = resolve(reference)
    if not callable(found):
        raise InputError(
            explain("`evaluate` is not a function", where=f"`{reference}`", evidence=f"it is a {type(found).__name__}")
        )
    return found
