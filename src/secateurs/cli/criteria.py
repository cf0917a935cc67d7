"""`secateurs criteria`: which criterion says what removing a unit really does, on your model and your data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secateurs.base.files import write_text
from secateurs.base.loss import losses
from secateurs.base.reference import resolve
from secateurs.cli.arguments import AsJson, Exclude, Factory, Inputs, Seed, Weights, build_model, example_inputs
from secateurs.cli.console import progress, show, show_json
from secateurs.cli.running import loader
from secateurs.report.criteria import compare_criteria


def criteria(
    model: Factory,
    data: Annotated[
        str, typer.Option("--data", metavar="CODE", help="package.module:loader of batches (inputs, target).")
    ],
    input: Inputs = None,
    weights: Weights = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option("--criterion", metavar="NAME", help="One to compare; repeatable. Default: all that apply."),
    ] = None,
    reference: Annotated[str, typer.Option("--reference", metavar="NAME", help="What they should agree with.")] = (
        "oracle"
    ),
    loss: Annotated[
        str, typer.Option("--loss", metavar="NAME", help="Name of a loss, or package.module:function.")
    ] = "cross_entropy",
    batches: Annotated[int | None, typer.Option("--batches", help="Use only the first batches of the data.")] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=1, help="Resamplings behind each interval.")] = 1000,
    exclude: Exclude = None,
    seed: Seed = 0,
    figure: Annotated[
        str | None, typer.Option("--figure", metavar="FILE", help="Write the picture as a page of HTML.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Print the rank correlation of every criterion with the oracle, which removes each unit and looks."""
    args, kwargs = example_inputs(input, seed)
    with progress(quiet=json) as stage:
        stage("build")
        network = build_model(model, weights, seed)
        found = compare_criteria(
            network,
            args,
            criterion or None,
            data=loader(data),
            loss=_loss(loss),
            reference=reference,
            batches=batches,
            bootstrap=bootstrap,
            seed=seed,
            exclude=tuple(exclude or ()),
            kwargs=kwargs,
            on_stage=stage,
        )
    if figure is not None:
        write_text(Path(figure), found.figure().to_html(include_plotlyjs=True))
    show_json({"model": model, **found.to_dict()}) if json else show(found.tables())


def _loss(name: str) -> Any:
    return name if name in losses or ":" not in name else resolve(name)
