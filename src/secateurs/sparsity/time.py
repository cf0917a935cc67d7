"""Moments of a training, also before anybody knows how many steps it has."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, TypeVar

from secateurs.base.errors import InputError, explain

Time = int | str
"""Optimizer steps as an integer; or `"2 epochs"`, `"0.5 epochs"`, `"75%"` (of the training) as text."""

MOMENTS = ("begin", "end", "every")
"""Fields of schedules and updates that are such moments."""

T = TypeVar("T")

_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|epochs?)\s*")


def steps_of(time: Time, per_epoch: int, epochs: int) -> int:
    """The moment in steps, of a training of `epochs` epochs of `per_epoch` steps. Raises `InputError`."""
    if not isinstance(time, str):
        return time
    number, unit = parse_time(time)
    return round(number * per_epoch if unit == "epochs" else number / 100 * per_epoch * epochs)


def in_steps(item: T, per_epoch: int, epochs: int) -> T:
    """The same schedule or update (a dataclass), its moments in steps. Raises `InputError`."""
    found = {name: getattr(item, name) for name in MOMENTS if isinstance(getattr(item, name, None), str)}
    steps = {name: max(steps_of(text, per_epoch, epochs), int(name == "every")) for name, text in found.items()}
    changed: Any = item
    return replace(changed, **steps) if steps else item


def parse_time(text: str) -> tuple[float, str]:
    """`(number, "epochs" or "%")`. Raises `InputError`."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InputError(
            explain(f"{text!r} is not a moment of a training", next_step="give steps (7), '2 epochs' or '75%'")
        )
    return float(found[1]), "%" if found[2] == "%" else "epochs"


def known(time: Time, what: str) -> int:
    """The steps, if they are known. Raises `InputError` where only the length of the training would tell."""
    if isinstance(time, str):
        raise InputError(
            explain(
                f"How many steps are {time!r}?",
                where=what,
                evidence="the length of the training is not known here",
                next_step="give steps, an integer; or train with FineTune(sparsity=...), which knows",
            )
        )
    return time


__all__ = ["MOMENTS", "Time", "in_steps", "known", "parse_time", "steps_of"]
