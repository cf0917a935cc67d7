"""`secateurs prune`: cut a model to a budget, prove it, fine-tune it, and write the artifact."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from secateurs import recipe as recipes
from secateurs.base.errors import InputError, explain
from secateurs.choose.budget import Budget
from secateurs.cli.arguments import (
    AsJson,
    Checkpoints,
    Data,
    Elementwise,
    Evaluate,
    Exclude,
    Inputs,
    OptionalFactory,
    Seed,
    Unit,
    Weights,
    given,
    parse_budget,
    parse_options,
)
from secateurs.cli.console import NOT_MET, progress, show, show_json
from secateurs.cli.running import complete, run
from secateurs.deliver.artifact import check_place, save
from secateurs.report.tables import result_tables

BESIDE_A_RECIPE = frozenset({"recipe", "checkpoints", "out", "json"})
COMPLETES = {"model": "model", "weights": "weights", "input": "inputs", "data": "data", "evaluate": "evaluate"}
"""Options that may name what a recipe leaves open, and the recipe's key for each."""

OF_TRAINING = frozenset({"lr", "checkpoints"})
OF_DATA = frozenset({"recalibrate", "reconstruct"})

METRICS = tuple(Budget.__dataclass_fields__)
CUT, AFTER, RUN = "What goes", "What follows", "The run"


def prune(
    context: typer.Context,
    model: OptionalFactory = None,
    weights: Weights = None,
    input: Inputs = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=LIMIT",
            help=f"What may remain, such as macs=0.5 or params=100000. Metrics: {', '.join(METRICS)}. Repeatable.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML file with the whole request, instead of options."),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How channels are scored; see `secateurs list criteria`. Default: l2 for a threshold, else l1.",
            rich_help_panel=CUT,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Option of the criterion, such as eps=0.01. Repeatable.", rich_help_panel=CUT
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Loss that the criterion looks at: a name, or package.module:function. Default: that of fine-tuning.",
            rich_help_panel=CUT,
        ),
    ] = None,
    score_batches: Annotated[
        int, typer.Option(help="Batches of --data that the criterion looks at; 0 for all.", rich_help_panel=CUT)
    ] = 16,
    equalization: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How scores of coupled layers become one: arithmetic_mean, keep_any, keep_all, ...",
            rich_help_panel=CUT,
        ),
    ] = "arithmetic_mean",
    normalizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What makes layers comparable: mean, max, none, ...; the criterion's own if left out.",
            rich_help_panel=CUT,
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(metavar="NAME", help="How the cut is spread; see `secateurs list searches`.", rich_help_panel=CUT),
    ] = "global",
    granularity: Annotated[int, typer.Option(help="Channel counts become multiples of this.", rich_help_panel=CUT)] = 1,
    min_channels: Annotated[int, typer.Option(help="Fewest units that a layer keeps.", rich_help_panel=CUT)] = 1,
    floor: Annotated[
        float, typer.Option(help="Smallest share of its units that a layer keeps, 0 to 1.", rich_help_panel=CUT)
    ] = 0.0,
    exclude: Exclude = None,
    unit: Unit = "heads",
    elementwise: Elementwise = "couple",
    bias: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What becomes of the constants that removed channels put out: drop, propagate, propagate_mean.",
            rich_help_panel=CUT,
        ),
    ] = "drop",
    padding: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How such a constant meets zero padding: interior, mean, map.",
            rich_help_panel=CUT,
        ),
    ] = "interior",
    data: Data = None,
    reconstruct: Annotated[
        int,
        typer.Option(
            help="Batches of --data to refit layers on by least squares, instead of recalibrating; 0 for none.",
            rich_help_panel=AFTER,
        ),
    ] = 0,
    recalibrate: Annotated[
        int,
        typer.Option(help="Batches of --data that refresh batch-norm statistics; 0 for none.", rich_help_panel=AFTER),
    ] = 16,
    epochs: Annotated[
        int, typer.Option(help="Epochs of fine-tuning on --data; 0 for none.", rich_help_panel=AFTER)
    ] = 0,
    lr: Annotated[
        float,
        typer.Option(
            help="Learning rate of fine-tuning; optimizer, loss, distillation and the rest are recipe keys.",
            rich_help_panel=AFTER,
        ),
    ] = 0.01,
    evaluate: Evaluate = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Measure before and after here; see `secateurs list devices`.", rich_help_panel=AFTER
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Write the artifact here.", rich_help_panel=RUN)
    ] = None,
    checkpoints: Checkpoints = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Cut a model to a budget and prove what the cut did. Exits 1 when the result is over the budget, 2 if refused."""
    if recipe is not None:
        _refuse_both(context)
        request = recipes.load(recipe)
        added = {COMPLETES[name]: context.params[name] for name in given(context) if name in COMPLETES}
        request = complete(request, added) if added else request
    else:
        _refuse_idle(context, epochs, data)
        request = recipes.make(
            model=model,
            weights=weights,
            inputs=tuple(input or ()),
            budget=parse_budget(budget or ()),
            criterion=criterion,
            options=parse_options(option) if option else None,
            loss=loss,
            score_batches=score_batches,
            equalization=equalization,
            normalizer=normalizer,
            search=search,
            granularity=granularity,
            min_channels=min_channels,
            floor=floor,
            exclude=tuple(exclude or ()),
            unit=unit,
            elementwise=elementwise,
            bias=bias,
            padding=padding,
            data=data,
            evaluate=evaluate,
            reconstruct=reconstruct,
            recalibrate=recalibrate,
            finetune={"epochs": epochs, "lr": lr} if epochs else None,
            device=device,
            seed=seed,
        )
    if out is not None:
        check_place(out)
    with progress(quiet=json) as stage:
        result = run(request, on_stage=stage, quiet=json, folder=checkpoints)
        if out is not None:
            stage("save")
            save(result, out)
    report = result.report()
    show_json(report) if json else show(result_tables(report))
    if not result.met:
        raise typer.Exit(NOT_MET)


def _refuse_idle(context: typer.Context, epochs: int, data: str | None) -> None:
    """An option that nothing would use is refused, not ignored."""
    names = given(context)
    if not epochs and (idle := [name for name in names if name in OF_TRAINING]):
        raise InputError(
            explain(
                "There is no fine-tuning to use this in",
                evidence=f"{_flags(idle)} without --epochs",
                next_step="add --epochs and --data",
            )
        )
    if data is None and (idle := [name for name in names if name in OF_DATA]):
        raise InputError(
            explain(
                "There is no data to use this on", evidence=f"{_flags(idle)} without --data", next_step="add --data"
            )
        )


def _refuse_both(context: typer.Context) -> None:
    """A recipe is the whole request: an option that would change it is refused, not ignored."""
    if other := [name for name in given(context) if name not in BESIDE_A_RECIPE | set(COMPLETES)]:
        raise InputError(
            explain(
                "Both a recipe and a request are given",
                evidence=f"beside --recipe: {_flags(other)}",
                next_step="write it into the recipe, or leave out --recipe",
            )
        )


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
