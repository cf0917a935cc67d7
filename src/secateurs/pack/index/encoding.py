"""What an encoding of kept positions is, and which there are.

A mask is looked at as a matrix `[rows, columns]`, row-major: outputs by everything else, one row for vectors. The
columns of a convolution fall into input maps of `taps` columns each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from secateurs.base.registry import Registry
from secateurs.pack.bits import Numbers, width_of
from secateurs.pack.coded import Bools
from secateurs.pack.refuse import refused

Positions = NDArray[np.signedinteger[Any]]
Read = Callable[[int, int], Numbers]
"""`(count, bound)`: the next stored field, `count` numbers below `bound`."""

MOST = 1 << 32
"""Fields hold numbers below this."""

_BLOCK = 1 << 13
"""Octets that are looked at together."""


@dataclass(frozen=True)
class Grid:
    """The shape of a mask as a matrix, and the columns of one input map."""

    rows: int
    columns: int
    taps: int = 1

    @classmethod
    def of(cls, shape: Sequence[int]) -> Grid:
        """`[O, I, R, S]` is O x (I * R * S) with R * S taps; vectors and scalars are one row."""
        if len(shape) < 2:
            return cls(1, prod(shape))
        return cls(shape[0], prod(shape[1:]), prod(shape[2:]))

    @property
    def size(self) -> int:
        return self.rows * self.columns

    @property
    def kind(self) -> type[np.signedinteger[Any]]:
        """The integers that hold every position: of 32 bits where these do, for files may hold a lot of them."""
        return np.int32 if max(self.size, self.rows, self.columns) < 1 << 31 else np.int64

    @property
    def maps(self) -> int:
        return self.columns // self.taps if self.taps else 0


@dataclass(frozen=True)
class Mask:
    """Which entries are kept: `kept` `[rows, columns]` on its grid."""

    kept: Bools
    grid: Grid

    @classmethod
    def of(cls, kept: Bools) -> Mask:
        """The mask of a tensor of any shape."""
        grid = Grid.of(kept.shape)
        return cls(kept.reshape(grid.rows, grid.columns), grid)

    @cached_property
    def positions(self) -> Positions:
        """Flat positions of the kept entries, ascending."""
        return np.flatnonzero(self.kept)

    @cached_property
    def steps(self) -> Positions:
        """Distance of every kept entry to the one before it, less one; the first one's from position -1."""
        return np.diff(self.positions, prepend=-1) - 1

    @property
    def count(self) -> int:
        return int(self.positions.size)


@dataclass(frozen=True)
class Field:
    """Numbers to be stored, each in 0..bound-1."""

    numbers: NDArray[np.integer[Any]]
    bound: int

    @property
    def bits(self) -> int:
        """Bits when every number takes as many as the bound needs."""
        return self.numbers.size * width_of(self.bound)


@dataclass(frozen=True)
class Index:
    """A mask in stored form. `real` says which of the stored entries are kept ones; None: all (no fillers)."""

    encoding: str
    parameters: tuple[int, ...]
    fields: tuple[Field, ...]
    real: Bools | None = None

    @property
    def bits(self) -> int:
        return sum(field.bits for field in self.fields)

    @property
    def fillers(self) -> int:
        """Stored entries that stand for no kept one."""
        return 0 if self.real is None else int(self.real.size - np.count_nonzero(self.real))


class Encoding(ABC):
    """Turns a mask into fields of numbers and back, exactly.

    `code` is what a file says for it, `parameters` and `fields` how many there are, `slow` whether it is tried only
    where bytes matter more than time.
    """

    name: ClassVar[str]
    code: ClassVar[int]
    parameters: ClassVar[int] = 0
    fields: ClassVar[int]
    slow: ClassVar[bool] = False

    @abstractmethod
    def choices(self, mask: Mask) -> list[tuple[int, ...]]:
        """Parameters worth trying; empty when the mask does not have the form that this encoding stores."""

    @abstractmethod
    def bits(self, mask: Mask, parameters: tuple[int, ...]) -> int:
        """Bits of the fields at fixed width, known before encoding; values are not among them."""

    @abstractmethod
    def encode(self, mask: Mask, parameters: tuple[int, ...]) -> Index:
        """The fields of a mask, with parameters that `choices` gave."""

    @abstractmethod
    def check(self, parameters: tuple[int, ...], grid: Grid, count: int) -> None:
        """Raises `ArtifactError` for parameters that no mask of `count` kept entries on this grid has."""

    def stored(self, parameters: tuple[int, ...], count: int) -> int:
        """Entries with a stored value, fillers included."""
        return count

    @abstractmethod
    def decode(self, grid: Grid, count: int, parameters: tuple[int, ...], read: Read) -> tuple[Positions, Bools | None]:
        """Flat positions of the stored entries, ascending, and which of them may be fillers (None: none is one).

        Raises `ArtifactError` when the fields do not give positions on the grid, or another number of them.
        """


def add(positions: Positions, numbers: NDArray[np.integer[Any]]) -> None:
    """Adds to positions in place; the sums are on the grid, so that they fit."""
    np.add(positions, numbers, out=positions, casting="unsafe")


def set_bits(octets: NDArray[np.uint8], grid: Grid, count: int) -> Positions:
    """Where bits are set, the lowest of an octet first. Raises `ArtifactError` unless they are `count`, on the grid."""
    found, filled = np.empty(count, dtype=grid.kind), 0
    for start in range(0, octets.size, _BLOCK):
        places = np.flatnonzero(np.unpackbits(octets[start : start + _BLOCK], bitorder="little"))
        if filled + places.size > count:
            raise refused(f"an index gives more than {count:,} positions")
        found[filled : filled + places.size] = places
        found[filled : filled + places.size] += 8 * start
        filled += places.size
    return ascending(found[:filled], grid, count)


ENCODINGS: Registry[Encoding] = Registry("index encoding")


def encoding(kind: type[Encoding]) -> type[Encoding]:
    """Decorator: registers an encoding under its name."""
    ENCODINGS.register(kind.name)(kind())
    return kind


def ascending(positions: Positions, grid: Grid, count: int) -> Positions:
    """The positions as they are. Raises `ArtifactError` unless they are `count`, ascending and on the grid."""
    if positions.size != count:
        raise refused(f"an index gives {positions.size:,} positions of {count:,}")
    if count and (positions[0] < 0 or positions[-1] >= grid.size or not (positions[1:] > positions[:-1]).all()):
        raise refused(f"an index gives positions that are not ascending below {grid.size:,}")
    return positions


__all__ = [
    "ENCODINGS", "MOST", "Encoding", "Field", "Grid", "Index", "Mask", "Positions", "Read", "add", "ascending",
    "encoding", "set_bits",
]  # fmt: skip
