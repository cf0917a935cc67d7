"""All suites of the zoo by name."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterator, Sequence

from benchmarks.zoo.entry import Entry

SUITES = ("torchvision", "timm", "transformers")


def select(suite: str, only: Sequence[str] = ("*",)) -> Iterator[Entry]:
    """Entries of one suite, or of `"all"`, whose name matches one of the globs `only`."""
    for name in SUITES if suite == "all" else (suite,):
        for entry in importlib.import_module(f"benchmarks.zoo.{name}").entries():
            if any(fnmatch.fnmatch(entry.name, glob) for glob in only):
                yield entry


def find(suite: str, name: str) -> Entry:
    """The entry with this name. Raises `KeyError`."""
    for entry in select(suite):
        if entry.name == name:
            return entry
    raise KeyError(f"{suite}/{name}")
