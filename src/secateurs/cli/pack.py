"""`secateurs pack`: a model, an artifact or a file of weights as one small file, and what every byte of it is for."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from torch import Tensor, nn

import secateurs as sec
from secateurs.base.errors import InputError, explain
from secateurs.cli.arguments import AsJson, OptionalFactory, Weights, build_model, existing
from secateurs.cli.console import progress, show, show_json
from secateurs.deliver.tensors import read_state


def pack(
    out: Annotated[str, typer.Option(metavar="FILE", help="The packed file to write, such as model.sec.")],
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="ARTIFACT", help="Folder written by `secateurs prune --out`; else --model or --weights."
        ),
    ] = None,
    model: OptionalFactory = None,
    weights: Weights = None,
    gzip: Annotated[bool, typer.Option("--gzip", help="Add what gzip makes of the same weights (slow).")] = False,
    json: AsJson = False,
) -> None:
    """Write one small file, zeros left out; print what every byte of it is for."""
    with progress(quiet=json) as stage:
        stage("load")
        subject = _subject(artifact, model, weights)
        stage("pack")
        ledger = sec.pack(subject, out, gzip=gzip)
    show_json({**ledger.to_json(), "path": out}) if json else show([ledger.table(), f"{out}: {ledger.summary()}"])


def _subject(artifact: str | None, model: str | None, weights: str | None) -> nn.Module | dict[str, Tensor]:
    """What the options name. Raises `InputError` when they name nothing, or two things."""
    if artifact is not None:
        if weights is not None:
            raise InputError(explain("An artifact holds its own weights", next_step="leave out --weights"))
        return sec.load(artifact, None if model is None else partial(build_model, model))
    if model is not None:
        return build_model(model, weights)
    if weights is not None:
        return read_state(existing(weights))
    raise InputError(
        explain("Nothing to pack is named", next_step="give an artifact folder, --model CODE or --weights FILE")
    )
