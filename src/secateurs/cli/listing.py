"""`secateurs list`: the names that other verbs and recipes take."""

from __future__ import annotations

from typing import Annotated

import typer

from secateurs.cli.arguments import AsJson
from secateurs.cli.console import show, show_json
from secateurs.names import KINDS, families, names, spelled
from secateurs.report.tables import families_table, names_table, patterns_table

OPS_NOTE = (
    "Names without a prefix are PyTorch's own (aten). Element-wise operators that PyTorch tags as such need no rule "
    "and are not listed. Any other operator keeps what it touches whole."
)


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="criteria, devices, searches, patterns, importances, distributions, starts, scales or ops; "
            "all if left out.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print the names of criteria, devices, searches, patterns, operators, and of ways to quantise."""
    found = {item: names(item) for item in ([kind] if kind else KINDS)}
    if json:
        show_json(found)
    elif kind == "ops":
        show([families_table(families()), OPS_NOTE])
    elif kind == "patterns":
        show([patterns_table(spelled())])
    else:
        if "ops" in found:
            found["ops"] = [f"{len(found['ops'])} operators with a rule of their own; see `secateurs list ops`"]
        show([names_table(found)])
