"""`secateurs list`: the names that other verbs and recipes take."""

from __future__ import annotations

from typing import Annotated

import typer

from secateurs.cli.arguments import AsJson
from secateurs.cli.console import show, show_json
from secateurs.names import KINDS, names
from secateurs.report.tables import names_table


def list_names(
    kind: Annotated[str | None, typer.Argument(help="criteria, devices, searches or ops; all if left out.")] = None,
    json: AsJson = False,
) -> None:
    """Print the names of criteria, devices, searches and operators."""
    found = {item: names(item) for item in ([kind] if kind else KINDS)}
    show_json(found) if json else show([names_table(found)])
