"""What the command line prints: tables and results to standard output, progress and refusals to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

from secateurs.base.errors import SecateursError

NOT_MET = 1
"""Exit code of a run that ended well with a budget that was not met."""

PIPE_WIDTH = 110
"""Columns of tables that go to a file or another program."""

OWN_BAR = frozenset({"fine-tune", "train"})
"""Stages that draw their own progress bar."""


def out() -> Console:
    """Standard output as it is now: tests and pipes replace it, and a pipe has no width of its own."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def err() -> Console:
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)


def show(parts: Iterable[RenderableType]) -> None:
    """Tables and sentences, one under the other with an empty line between them."""
    console = out()
    for index, part in enumerate(parts):
        if index:
            console.print()
        console.print(part, markup=False)


def show_json(data: Any) -> None:
    """One JSON document on standard output and nothing else."""
    print(json.dumps(data, indent=1))


def refuse(error: SecateursError, *, as_json: bool) -> None:
    """A refusal without its traceback."""
    if as_json:
        show_json({"refused": str(error), "kind": type(error).__name__})
    else:
        err().print(Text.assemble(("Refused", "bold red"), f" ({type(error).__name__}): {error}"))


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Gives `on_stage`, to be called with the name of each stage as it begins; a spinner turns, then its time stays.

    When `quiet`, whatever the user's own code prints goes to standard error: standard output is for one JSON document.
    """
    stages = _Stages(err(), quiet)
    try:
        with redirect_stdout(sys.stderr) if quiet else nullcontext():
            yield stages.begin
    finally:
        stages.end()


class _Stages:
    """The stage that runs now, shown while it runs and left on the screen with its time when it is over."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._name = ""
        self._began = 0.0
        self._spinner: Status | None = None

    def begin(self, name: str) -> None:
        self.end()
        self._name, self._began = name, time.perf_counter()
        if not self._quiet and name not in OWN_BAR:
            self._spinner = self._console.status(f"{name} ...")
            self._spinner.start()

    def end(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None
        if self._name and not self._quiet:
            self._console.print(f"  {self._name:<21} {time.perf_counter() - self._began:6.1f} s", style="dim")
        self._name = ""
