"""When masks change and how sparse they are then: plain data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.time import MOMENTS, Time, known, parse_time

EVERY = 100
"""Steps between the updates of a gradual schedule, where nothing is said."""

UPDATES = 10
"""Updates that there are at least then, as far as there are steps."""


@dataclass(frozen=True)
class Schedule(ABC):
    """Steps count from 0, the state before training; step t is after t optimizer steps.

    Where the length of the training is known, as in `FineTune(sparsity=...)`, moments may be text too: `"2 epochs"`,
    `"75%"`.
    """

    @abstractmethod
    def due(self, step: int) -> bool:
        """Are the masks computed anew at this step?"""

    @abstractmethod
    def at(self, step: int, final: float) -> float:
        """The sparsity that holds at this step, of a layer that is to reach `final`."""

    def progress(self, step: int) -> float:
        """The share of the way that a `Threshold` with a `start` has gone at this step, 0 to 1: at once, all of it."""
        return 1.0

    @property
    def moves(self) -> bool:
        """Is there a way between the first update and the last one?"""
        return type(self).progress is not Schedule.progress

    def _steps(self, name: str) -> int:
        return known(getattr(self, name), f"{type(self).__name__}({name}=...)")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in MOMENTS and isinstance(value, str):
                parse_time(value)
                continue
            left_out = value is None and item.default is None
            whole = item.name in ("begin", "end", "every", "rounds") and not left_out
            least = 1 if item.name in ("every", "rounds") else 0
            if (
                isinstance(value, bool)
                or (whole and not isinstance(value, int))
                or (value is not None and value < least)
            ):
                raise _unusable(self, f"give {item.name} as {'an integer' if whole else 'a number'} >= {least}")


@dataclass(frozen=True)
class OneShot(Schedule):
    """All at once, at step `begin`."""

    begin: Time = 0

    def due(self, step: int) -> bool:
        """At `begin` only."""
        return step == self._steps("begin")

    def at(self, step: int, final: float) -> float:
        """`final` from `begin` on."""
        return final if step >= self._steps("begin") else 0.0


@dataclass(frozen=True)
class Iterative(Schedule):
    """`rounds` rounds, `every` steps apart from `begin` on: `1 - (1 - final)^(r / rounds)` after round r.

    Every round leaves the same fraction of what was left. Han et al. 2015.
    """

    every: Time
    rounds: int = 5
    begin: Time = 0

    def due(self, step: int) -> bool:
        """At the first step of every round."""
        since, every = step - self._steps("begin"), self._steps("every")
        return since >= 0 and since % every == 0 and self._round(step) <= self.rounds

    def at(self, step: int, final: float) -> float:
        """The sparsity of the round that the step is in."""
        if step < self._steps("begin"):
            return 0.0
        done = min(self._round(step), self.rounds)
        return final if done == self.rounds else 1 - (1 - final) ** (done / self.rounds)

    def _round(self, step: int) -> int:
        return (step - self._steps("begin")) // self._steps("every") + 1


@dataclass(frozen=True)
class Gradual(Schedule):
    """`final + (initial - final) * (1 - p)^power`, p from 0 at step `begin` to 1 at `end`, every `every` steps.

    Without `every` that is 100, or a tenth of the way where that is less: a short training is gradual, too. Power 3 is
    the cubic of Zhu & Gupta, To Prune or Not to Prune, 2017; power 1 is linear.
    """

    begin: Time
    end: Time
    every: Time | None = None
    initial: float = 0.0
    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        reversed_ = isinstance(self.begin, int) and isinstance(self.end, int) and self.end <= self.begin
        if reversed_ or self.initial >= 1 or self.power <= 0:
            raise _unusable(self, "give an end after the beginning, initial below 1 and a positive power")

    def due(self, step: int) -> bool:
        """At `begin`, every `every` steps from there, and at `end`."""
        begin, end = self._steps("begin"), self._steps("end")
        every = max(1, min(EVERY, (end - begin) // UPDATES)) if self.every is None else self._steps("every")
        return begin <= step <= end and ((step - begin) % every == 0 or step == end)

    def at(self, step: int, final: float) -> float:
        """The curve at this step; what a layer is to reach is never exceeded."""
        if step < self._steps("begin"):
            return 0.0
        return final + (min(self.initial, final) - final) * self._left(step)

    def progress(self, step: int) -> float:
        """The same curve, from 0 to 1."""
        return 1 - self._left(step)

    def _left(self, step: int) -> float:
        begin, end = self._steps("begin"), self._steps("end")
        progress = min(1.0, max(0, step - begin) / (end - begin))
        left: float = (1 - progress) ** self.power
        return left


@dataclass(frozen=True)
class Constant(Schedule):
    """The final sparsity from `begin` on, computed anew every `every` steps until `end` (None: for ever)."""

    begin: Time = 0
    end: Time | None = None
    every: Time = 1

    def due(self, step: int) -> bool:
        """Every `every` steps from `begin` to `end`."""
        since = step - self._steps("begin")
        inside = since >= 0 and (self.end is None or step <= self._steps("end"))
        return inside and since % self._steps("every") == 0

    def at(self, step: int, final: float) -> float:
        """`final` from `begin` on."""
        return final if step >= self._steps("begin") else 0.0


def _unusable(schedule: Schedule, next_step: str) -> InputError:
    return InputError(explain(f"{schedule} cannot be used", next_step=next_step))


__all__ = ["Constant", "Gradual", "Iterative", "OneShot", "Schedule"]
