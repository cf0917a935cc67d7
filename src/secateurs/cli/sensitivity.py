"""`secateurs sensitivity`: how much each layer alone can lose before the metric falls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import secateurs as sec
from secateurs.base.errors import InputError, explain
from secateurs.base.files import write_text
from secateurs.cli.arguments import AsJson, Exclude, Factory, Seed, Weights, build_model
from secateurs.cli.console import progress, show, show_json
from secateurs.cli.running import function, loader
from secateurs.report.sensitivity import CHANNEL, Sensitivity

WHAT, METRIC, RUN = "What goes", "The metric", "The run"


def sensitivity(
    model: Factory,
    weights: Weights = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="CODE", help="package.module:function, (model) -> float, higher is better.", rich_help_panel=METRIC
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="CODE",
            help="Instead: package.module:loader of (inputs, target); top-1 accuracy, in about half the time.",
            rich_help_panel=METRIC,
        ),
    ] = None,
    batches: Annotated[
        int | None, typer.Option(help="Use only the first batches of --data.", rich_help_panel=METRIC)
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Which weights go together: weight, filter, rows(4), ...; see `secateurs list patterns`. Or channel: "
            "whole channels of coupled layers (needs --data).",
            rich_help_panel=WHAT,
        ),
    ] = "weight",
    fractions: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Such as 0.5,0.8,0.9. Default: 0 to 0.95 by 0.05; of channels 0.3 to 0.8 by 0.1.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What counts as small: l1, l2, rms, mean, random; by --data: obd, taylor, taylor_weights; "
            "of channels, a criterion.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Layer to look at, by name or glob. Repeatable.", rich_help_panel=WHAT),
    ] = None,
    exclude: Exclude = None,
    tolerance: Annotated[
        float, typer.Option(help="How far below the baseline the metric may fall.", rich_help_panel=METRIC)
    ] = 0.01,
    stop_at_drop: Annotated[
        float | None,
        typer.Option(help="Leave a layer once the metric has fallen by more than this.", rich_help_panel=RUN),
    ] = None,
    record: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What a layer bears: last_pass, or first_fail (one step more).", rich_help_panel=METRIC
        ),
    ] = "last_pass",
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the table as JSON, for `sparsify --targets`.", rich_help_panel=RUN),
    ] = None,
    figure: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the curves as a page of HTML.", rich_help_panel=RUN)
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Keep a journal here; the same command goes on after a crash.", rich_help_panel=RUN
        ),
    ] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Print the metric when each layer alone loses more and more of its weights, without any training."""
    grid = None if fractions is None else parse_fractions(fractions)
    with progress(quiet=json) as stage:
        stage("build")
        found = sec.sensitivity(
            build_model(model, weights, seed),
            function(evaluate),
            pattern=pattern,
            fractions=grid,
            importance=importance,
            exclude=tuple(exclude or ()),
            only=only,
            tolerance=tolerance,
            stop_at_drop=stop_at_drop,
            data=loader(data),
            batches=batches,
            seed=seed,
            folder=folder,
            on_stage=stage,
        )
    largest = found.largest(record=record)
    if figure is not None:
        write_text(Path(figure), sec.figures.draw_sensitivity(found).to_html(include_plotlyjs=True))
    if out is not None:
        write_text(Path(out), found.to_json() + "\n")
    if json:
        show_json({"model": model, **found.to_dict(), "record": record, "largest": largest})
    else:
        show([*found.tables(record=record), *_ending(found, out, figure)])


def _ending(found: Sensitivity, out: str | None, figure: str | None) -> list[str]:
    """Where the table and the curves are, and what takes the table."""
    lines = []
    if out is not None:
        use = "a guide to `secateurs prune`" if found.pattern == CHANNEL else f"`secateurs sparsify --targets {out}`"
        lines.append(f"Table in {out}: {use}")
    if figure is not None:
        lines.append(f"Curves in {figure}")
    return lines


def parse_fractions(text: str) -> list[float]:
    """`"0.5,0.8"` as numbers. Raises `InputError`."""
    try:
        return [float(item) for item in text.split(",") if item.strip()]
    except ValueError as error:
        raise InputError(
            explain(f"--fractions {text!r} is no list of numbers", next_step="write 0.5,0.8,0.9")
        ) from error
