"""Names as people choose them: globs, and names that happen to look like one."""

from __future__ import annotations

from fnmatch import fnmatchcase


def fits(name: str, glob: str) -> bool:
    """Is it this name, or does the glob match it? Names may hold brackets and stars, as keys of a `ModuleDict` do."""
    return name == glob or fnmatchcase(name, glob)


__all__ = ["fits"]
