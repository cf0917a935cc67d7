"""Puts the verbs together and turns what happens into an exit code.

0 done, 1 done and the budget is not met, 2 refused, 3 an error that is no refusal (in the user's code, or a bug); as
shells have it, 130 interrupted and 141 when nobody reads the output any more.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import typer

from secateurs._version import __version__
from secateurs.base.errors import SecateursError
from secateurs.cli import (
    console,
    criteria,
    demo,
    export,
    inspect,
    listing,
    measure,
    pack,
    prune,
    sensitivity,
    sparsify,
    unpack,
)

DONE, REFUSED, CRASHED, INTERRUPTED, UNREAD = 0, 2, 3, 130, 141

app = typer.Typer(
    name="secateurs",
    help="Cut a trained network to fit the device it will run on, and prove what the cut did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo")(demo.demo)
app.command("inspect")(inspect.inspect)
app.command("prune")(prune.prune)
app.command("criteria")(criteria.criteria)
app.command("sensitivity")(sensitivity.sensitivity)
app.command("sparsify")(sparsify.sparsify)
app.command("export")(export.export)
app.command("pack")(pack.pack)
app.command("unpack")(unpack.unpack)
app.command("measure")(measure.measure)
app.command("list")(listing.list_names)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"secateurs {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of a refusal; may stand anywhere."),
) -> None:
    """Cut a trained network to fit the device it will run on, and prove what the cut did."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Refusals are one message; every other error keeps its traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        app([word for word in words if word != "--debug"], prog_name="secateurs")
    except SecateursError as error:
        if "--debug" in words:
            traceback.print_exc()
        if as_json or "--debug" not in words:
            console.refuse(error, as_json=as_json)
        return REFUSED
    except SystemExit as end:
        return _ended(end, as_json)
    except Exception as error:  # noqa: BLE001  (the user's own code may raise anything; exit code 1 means something else)
        traceback.print_exc()
        if as_json:
            console.show_json({"failed": f"{type(error).__name__}: {error}"})
        return CRASHED
    return DONE


def _ended(end: SystemExit, as_json: bool) -> int:
    """The exit code of what Typer ended: help, an interruption, a closed pipe, or an option that does not exist."""
    cause = end.__context__
    if isinstance(cause, typer.Abort):
        return INTERRUPTED
    if isinstance(cause, BrokenPipeError):
        return UNREAD
    if as_json and end.code == REFUSED and cause is not None and hasattr(cause, "format_message"):
        console.show_json({"refused": cause.format_message(), "kind": type(cause).__name__})
    return int(end.code or DONE)
