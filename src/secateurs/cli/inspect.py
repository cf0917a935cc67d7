"""`secateurs inspect`: what could be cut from a model, what could not, and where its work is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from secateurs.base.errors import InputError, explain
from secateurs.capture import capture
from secateurs.cli.arguments import (
    AsJson,
    Elementwise,
    Exclude,
    Factory,
    Inputs,
    Unit,
    Weights,
    build_model,
    example_inputs,
)
from secateurs.cli.console import progress, show, show_json
from secateurs.cli.running import loader
from secateurs.cost import count_graph
from secateurs.couple import couple
from secateurs.couple.group import Groups
from secateurs.deliver.artifact import read_plan
from secateurs.report.figures import gallery, write_page
from secateurs.report.tables import inspect_tables

PICTURES = "Pictures"
PAGE = "figures.html"


def inspect(
    model: Factory,
    input: Inputs = None,
    weights: Weights = None,
    exclude: Exclude = None,
    unit: Unit = "heads",
    elementwise: Elementwise = "couple",
    figures: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help=f"Write pictures of filters, activations and scores here, as one page `{PAGE}`.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="CODE",
            help="package.module:loader, batches of inputs to show activations for; else only weights are shown.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Convolution or linear layer to show, by name; the first and a middle one if left out. Repeatable.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(metavar="NAME", help="Scores to show; see `secateurs list criteria`.", rich_help_panel=PICTURES),
    ] = "l1",
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Artifact that `secateurs prune --out` made of this model: shows channels before and after.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print the channel groups of a model, the frozen ones with their reasons, and MACs by layer.

    What is in a packed file is for `secateurs unpack FILE --list` to say.
    """
    idle = [f"--{name}" for name, given in (("data", data), ("layer", layer), ("plan", plan)) if given]
    if figures is None and idle:
        raise InputError(
            explain(
                "There are no pictures to use this for",
                evidence=f"{', '.join(idle)} without --figures",
                next_step="add --figures FOLDER",
            )
        )
    args, kwargs = example_inputs(input)
    with progress(quiet=json) as stage:
        stage("build")
        network = build_model(model, weights)
        stage("capture")
        graph = capture(network, args, kwargs=kwargs)
        stage("couple")
        groups = couple(graph, exclude=tuple(exclude or ()), unit=unit, elementwise=elementwise)
        stage("count")
        cost = count_graph(graph)
        drawn = None
        if figures is not None:
            stage("figures")
            drawn = _draw(model, network, groups, Path(figures), data, layer or [], criterion, plan)
    found: dict[str, Any] = {
        "model": model,
        "hash": graph.hash,
        "how": graph.how,
        "notes": list(graph.notes),
        "totals": cost.to_dict(),
        "layers": [
            {"name": name, "macs": macs, "params": cost.module_params.get(name, 0)}
            for name, macs in cost.by_module().items()
        ],
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "width": group.width,
                "members": [f"{member.leaf}[{member.dim}]" for member in group.members],
                "frozen": group.frozen,
                "inexact_because": group.inexact_because,
            }
            for group in groups
        ],
        **({} if drawn is None else {"figures": drawn}),
    }
    show_json(found) if json else show(inspect_tables(found))


def _draw(
    title: str,
    model: nn.Module,
    groups: Groups,
    folder: Path,
    data: str | None,
    layers: list[str],
    criterion: str,
    plan: str | None,
) -> dict[str, Any]:
    """The file that was written and the names of its pictures."""
    decided = None if plan is None else read_plan(plan)
    pictures = gallery(model, groups, data=loader(data), chosen=layers, criterion=criterion, plan=decided)
    page = write_page(folder / PAGE, pictures, title)
    return {"file": str(page), "pictures": [picture.name for picture in pictures]}
