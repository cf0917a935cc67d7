"""Lists of names that somebody may have given as one name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from secateurs.base.errors import InputError, explain

T = TypeVar("T")


def listed(name: str, given: Iterable[T]) -> tuple[T, ...]:
    """The items of the argument `name`. Raises `InputError` for a string, whose items are letters, and for a class."""
    if isinstance(given, (str, type)):
        shown = repr(given) if isinstance(given, str) else given.__name__
        raise InputError(explain(f"{name}={shown} cannot be used", next_step=f"give a list: {name}=[{shown}]"))
    return tuple(given)


__all__ = ["listed"]
