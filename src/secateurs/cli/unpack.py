"""`secateurs unpack`: check a packed file, show what is in it, and write its tensors as safetensors."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from torch import nn

import secateurs as sec
from secateurs.base.errors import InputError, explain
from secateurs.base.files import write_bytes
from secateurs.base.units import BYTES
from secateurs.cli.arguments import AsJson, OptionalFactory, build_model, existing
from secateurs.cli.console import progress, show, show_json
from secateurs.deliver.tensors import state_bytes
from secateurs.pack.container import read
from secateurs.pack.ledger import ledger


def unpack(
    packed: Annotated[str, typer.Argument(metavar="FILE", help="File written by `secateurs pack`.")],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="safetensors file to write; else the file is only checked.")
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Only say what is in it, from its header; no tensor is decoded.")
    ] = False,
    model: OptionalFactory = None,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="SIZE", help="What the file may decode to, such as 2GB.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Decode every tensor of a packed file, check that the class given takes them, and write them out.

    What every byte of the file is for is printed, tensor by tensor.
    """
    if listing and (out or model):
        raise InputError(explain("--list reads the header alone", next_step="leave out --out and --model, or --list"))
    with progress(quiet=json) as stage:
        stage("unpack")
        most = None if limit is None else int(BYTES.parse(limit))
        found = read(existing(packed), limit=most)
        if not listing:
            found.verify()
            content = sec.unpack(packed, None if model is None else partial(build_model, model), limit=most)
            state = content.state_dict() if isinstance(content, nn.Module) else content
        if out is not None:
            stage("write")
            write_bytes(out, state_bytes(state))
    book = ledger(found)
    if json:
        show_json({**book.to_json(), "metadata": found.metadata, "out": out})
    else:
        show([book, f"{packed}: {book.summary()}", _ending(listing, model, out)])


def _ending(listing: bool, model: str | None, out: str | None) -> str:
    """What was checked, and what was written."""
    if listing:
        return "Only the header was read; without --list every tensor is decoded and checked."
    fits = "" if model is None else f", and {model} takes them"
    there = "Nothing was written: --out FILE writes them." if out is None else f"Tensors: {out}"
    return f"All tensors were decoded and are what their checksums say{fits}. {there}"
