"""`secateurs pack`: a model, an artifact or a file of weights as one small file, and what every byte of it is for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

import secateurs as sec
from secateurs.base.errors import InputError, explain
from secateurs.base.units import BYTES
from secateurs.cli.arguments import AsJson, OptionalFactory, Seed, Weights, build_model, example_inputs, existing
from secateurs.cli.console import progress, show, show_json
from secateurs.cli.running import loader
from secateurs.cli.sparsifying import REPORT, WEIGHTS
from secateurs.deliver.manifest import NAME as MANIFEST
from secateurs.deliver.tensors import read_state

PANEL = "Quantisation"
DEFAULT = "default"
PackInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        help="Shape of an input, such as 1x3x224x224: the file then holds the program and runs without the class. "
        "Repeatable.",
    ),
]


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
    inputs: PackInputs = None,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="BITS",
            help="Share weights: 5, or by layer: 'conv*=8,fc*=5'; default: 8 in convolutions, 5 in other layers.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    integers: Annotated[
        str | None,
        typer.Option(
            "--int", metavar="BITS", help="Weights as integers of 2 to 8 bits: 8, or by layer.", rich_help_panel=PANEL
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--bytes", metavar="SIZE", help="Bits by layer so that the file has at most 40KB.", rich_help_panel=PANEL
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="CODE",
            help="package.module:loader, batches (inputs, target): errors go where they matter least.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    batches: Annotated[
        int, typer.Option(help="Batches of --data that are used; 0 for all.", rich_help_panel=PANEL)
    ] = 16,
    biases: Annotated[
        int | None,
        typer.Option(metavar="BITS", help="Biases of layers as integers, such as 8.", rich_help_panel=PANEL),
    ] = None,
    seed: Seed = 0,
    gzip: Annotated[bool, typer.Option("--gzip", help="Add what gzip makes of the same weights (slow).")] = False,
    json: AsJson = False,
) -> None:
    """Write one small file, zeros left out; print what every byte of it is for.

    Nothing is quantised unless asked for.
    """
    with progress(quiet=json) as stage:
        stage("load")
        subject = _subject(artifact, model, weights)
        stage("pack")
        ledger = sec.pack(
            subject,
            out,
            share=True if share == DEFAULT else None if share is None else parse_bits(share, "--share"),
            integers=None if integers is None else parse_bits(integers, "--int"),
            bytes=None if size is None else int(BYTES.parse(size)),
            data=loader(data),
            batches=batches,
            biases=biases,
            example_inputs=called_with(inputs, seed),
            gzip=gzip,
            seed=seed,
        )
    show_json({**ledger.to_json(), "path": out}) if json else show([ledger, f"{out}: {ledger.summary()}"])


def called_with(shapes: list[str] | None, seed: int) -> Any:
    """Example inputs of these shapes: a tuple, or a dict where all have names. None without shapes."""
    if not shapes:
        return None
    args, named = example_inputs(shapes, seed)
    if args and named:
        raise InputError(
            explain(
                "Inputs are given by position or by name, not both",
                evidence=f"--input {' --input '.join(shapes)}",
                next_step="name all of them: --input x=1x3x224x224",
            )
        )
    return named or args


def parse_bits(text: str, option: str) -> int | dict[str, int | None]:
    """`"5"` or `"conv*=8,fc*=5"`. Raises `InputError` on other text."""
    parts = [part.partition("=") for part in text.split(",")]
    try:
        if len(parts) == 1 and not parts[0][1]:
            return int(text)
        return {glob.strip(): int(number) for glob, _, number in parts}
    except ValueError as error:
        raise InputError(
            explain(
                f"{option} {text!r} is no number of bits",
                next_step=f"write {option} 5, or layers by name or glob: {option} 'conv*=8,fc*=5'",
            )
        ) from error


def _subject(artifact: str | None, model: str | None, weights: str | None) -> nn.Module | dict[str, Tensor]:
    """What the options name. Raises `InputError` when they name nothing, or two things."""
    if artifact is not None:
        if weights is not None:
            raise InputError(explain("An artifact holds its own weights", next_step="leave out --weights"))
        _refuse_sparse(Path(artifact), model)
        return sec.load(artifact, None if model is None else partial(build_model, model))
    if model is not None:
        return build_model(model, weights)
    if weights is not None:
        return read_state(existing(weights))
    raise InputError(
        explain("Nothing to pack is named", next_step="give an artifact folder, --model CODE or --weights FILE")
    )


def _refuse_sparse(folder: Path, model: str | None) -> None:
    """A folder of `secateurs sparsify --out` holds the weights of a model, and no plan. Raises `InputError`."""
    if (folder / REPORT).is_file() and not (folder / MANIFEST).exists():
        raise InputError(
            explain(
                "This folder is what `secateurs sparsify` wrote, not an artifact",
                where=str(folder),
                evidence=f"it holds {REPORT}",
                next_step=f"give --weights {folder / WEIGHTS}" + ("" if model else ", with --model CODE or without"),
            )
        )
