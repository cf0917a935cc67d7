"""`secateurs export`: a model or an artifact as an ONNX file, checked in ONNX Runtime."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from secateurs.cli.arguments import AsJson, Inputs, OptionalFactory, Weights, load_subject
from secateurs.cli.console import progress, show, show_json
from secateurs.deliver.onnx import export_onnx


def export(
    out: Annotated[str, typer.Option(metavar="FILE", help="The ONNX file to write.")],
    artifact: Annotated[
        str | None,
        typer.Argument(metavar="ARTIFACT", help="Folder written by `secateurs prune --out`; else --model itself."),
    ] = None,
    model: OptionalFactory = None,
    weights: Weights = None,
    input: Inputs = None,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="Do not leave the batch size open.")] = False,
    json: AsJson = False,
) -> None:
    """Write an ONNX file whose outputs were compared with the module's own."""
    with progress(quiet=json) as stage:
        stage("load")
        subject = load_subject(artifact, model, weights, input)
        stage("export")
        file = export_onnx(subject.model, subject.args, out, kwargs=subject.kwargs, dynamic_batch=not fixed_batch)
    show_json({**asdict(file), "path": str(file.path)}) if json else show([str(file)])
