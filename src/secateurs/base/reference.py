"""Code named by text: `package.module:attribute`, as recipes and the command line write it."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest


def resolve(reference: str) -> Any:
    """The object that `package.module:attribute` names; the current folder is searched first, as with `python -m`.

    Raises `InputError` when the text has another form or the module fails to import, `UnknownNameError` (with the
    nearest names) when the module has no such attribute.
    """
    module_name, colon, path = reference.partition(":")
    if not colon or not module_name or not path:
        packed = (
            ", and `secateurs unpack FILE --list` for what is in a packed file" if reference.endswith(".sec") else ""
        )
        step = f"write package.module:attribute{packed}"
        raise InputError(explain(f"{reference!r} does not name code", next_step=step))
    found = _module(module_name, reference)
    for name in path.split("."):
        if not hasattr(found, name):
            close = nearest(name, (item for item in dir(found) if not item.startswith("_")))
            raise UnknownNameError(
                explain(
                    f"`{module_name}` has no {name!r}",
                    where=f"reference {reference!r}",
                    evidence=f"module file {getattr(found, '__file__', 'unknown')}",
                    next_step=f"did you mean {' or '.join(map(repr, close))}?" if close else "",
                )
            )
        found = getattr(found, name)
    return found


def name_of(thing: Any) -> str | None:
    """`package.module:attribute` for a class or function that `resolve` finds again, else None."""
    module, path = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not module or not path or "<" in path or module == "__main__":
        return None
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    return f"{module}:{path}" if found is thing else None


def _module(name: str, reference: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # the user's own code runs here and may raise anything
        raise InputError(
            explain(
                f"The module `{name}` cannot be imported",
                where=f"reference {reference!r}",
                evidence=f"{type(error).__name__}: {error}",
                next_step="run from the folder that holds it, or install it",
            )
        ) from error
