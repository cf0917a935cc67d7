"""What random networks are made of: each operator says what it takes, what it gives and how to build it.

Every builder is total: `pick` reduces any number to a valid option, and a builder that cannot be used on these shapes
returns None, so that every list of steps is a network and deleting steps from one gives another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

T = TypeVar("T")

AXIS = {"map": 1, "volume": 1, "signal": 1, "vector": 1, "sequence": 2}
"""Kinds of tensors and their channel axis: [B, C, H, W], [B, C, D, H, W], [B, C, L], [B, C], [B, T, C]."""

WIDEST = 24
LARGEST = 16


@dataclass(frozen=True)
class Spot:
    """A tensor in the network being built: its kind (a key of `AXIS`, or "tokens" for integers [B, T]) and shape."""

    kind: str
    shape: tuple[int, ...]

    @property
    def axis(self) -> int:
        return AXIS[self.kind]

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def space(self) -> tuple[int, ...]:
        return self.shape[2:]


class Picks:
    """Turns a short list of numbers into choices: number modulo the count of options; 0, the simplest, when it ends."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = list(numbers)

    def __call__(self, options: Sequence[T]) -> T:
        number = self._numbers.pop(0) if self._numbers else 0
        return options[number % len(options)]


Build = Callable[..., nn.Module | None]


@dataclass(frozen=True)
class Op:
    """`takes` lists the kinds accepted at each source; `gives` is a kind, or "" for the first source's."""

    name: str
    takes: tuple[tuple[str, ...], ...]
    gives: str
    build: Build


menu: dict[str, Op] = {}


def op(*takes: str, gives: str = "") -> Callable[[Build], Build]:
    """Adds a builder `(pick, source, ...) -> module or None` under its name; `"map|signal"` takes either, `"*"` any."""

    def add(build: Build) -> Build:
        name = build.__name__
        menu[name] = Op(
            name, tuple(tuple(AXIS) if kind == "*" else tuple(kind.split("|")) for kind in takes), gives, build
        )
        return build

    return add


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
