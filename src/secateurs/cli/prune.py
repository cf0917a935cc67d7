"""`secateurs prune`: cut a model to a budget, prove it, fine-tune it, and write the artifact."""

from __future__ import annotations

from typing import Annotated

import typer

from secateurs import recipe as recipes
from secateurs.base.errors import InputError, explain
from secateurs.cli.arguments import AsJson, Exclude, Inputs, OptionalFactory, Seed, Weights, parse_budget
from secateurs.cli.console import NOT_MET, progress, show, show_json
from secateurs.cli.running import run
from secateurs.deliver.artifact import save
from secateurs.report.tables import result_tables

BESIDE_A_RECIPE = frozenset({"recipe", "checkpoints", "out", "json"})
OF_TRAINING = frozenset({"lr", "checkpoints"})


def prune(
    context: typer.Context,
    model: OptionalFactory = None,
    weights: Weights = None,
    input: Inputs = None,
    budget: Annotated[list[str] | None, typer.Option(help="metric=limit, such as macs=0.5; repeatable.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="YAML file with the whole request, instead of these options.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="How channels are scored; see `secateurs list criteria`.")] = "l1",
    search: Annotated[str, typer.Option(help="How the cut is spread; see `secateurs list searches`.")] = "global",
    multiple: Annotated[int, typer.Option(help="Channel counts become multiples of this.")] = 1,
    exclude: Exclude = None,
    data: Annotated[
        str | None, typer.Option(help="package.module:loader with training batches (inputs, target).")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="package.module:function (model) -> float, higher is better.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning on --data; 0 for none.")] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate of fine-tuning.")] = 0.01,
    device: Annotated[
        str | None, typer.Option(help="Measure before and after here; see `secateurs list devices`.")
    ] = None,
    seed: Seed = 0,
    checkpoints: Annotated[
        str | None, typer.Option(help="Folder for checkpoints of training; the same command goes on after a crash.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder to write the artifact to.")] = None,
    json: AsJson = False,
) -> None:
    """Cut a model to a budget and prove what the cut did. Exits 1 when the result is over the budget, 2 if refused."""
    if recipe is not None:
        _refuse_both(context)
        request = recipes.load(recipe)
    else:
        _refuse_idle(context, epochs)
        request = recipes.make(
            model=model,
            weights=weights,
            inputs=tuple(input or ()),
            budget=parse_budget(budget or ()),
            criterion=criterion,
            search=search,
            multiple=multiple,
            exclude=tuple(exclude or ()),
            data=data,
            evaluate=evaluate,
            finetune={"epochs": epochs, "lr": lr} if epochs else None,
            device=device,
            seed=seed,
        )
    with progress(quiet=json) as stage:
        result = run(request, on_stage=stage, quiet=json, folder=checkpoints)
        if out is not None:
            stage("save")
            save(result, out)
    report = result.report()
    show_json(report) if json else show(result_tables(report))
    if not result.met:
        raise typer.Exit(NOT_MET)


def _given(context: typer.Context) -> list[str]:
    return [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]


def _refuse_idle(context: typer.Context, epochs: int) -> None:
    """An option of fine-tuning without fine-tuning is refused, not ignored."""
    if not epochs and (idle := [name for name in _given(context) if name in OF_TRAINING]):
        raise InputError(
            explain(
                "There is no fine-tuning to use this in",
                evidence=f"{', '.join(f'--{name}' for name in idle)} without --epochs",
                next_step="add --epochs and --data",
            )
        )


def _refuse_both(context: typer.Context) -> None:
    """A recipe is the whole request: an option that would change it is refused, not ignored."""
    if other := [name for name in _given(context) if name not in BESIDE_A_RECIPE]:
        raise InputError(
            explain(
                "Both a recipe and a request are given",
                evidence=f"beside --recipe: {', '.join(f'--{name}' for name in other)}",
                next_step="write it into the recipe, or leave out --recipe",
            )
        )
