"""Compressed sparse rows: where each row begins, and the column of every kept entry."""

from __future__ import annotations

import numpy as np

from secateurs.pack.bits import Numbers, width_of
from secateurs.pack.coded import Bools
from secateurs.pack.index.encoding import (
    MOST,
    Encoding,
    Field,
    Grid,
    Index,
    Mask,
    Positions,
    Read,
    add,
    ascending,
    encoding,
)
from secateurs.pack.refuse import refused


@encoding
class Csr(Encoding):
    """Fields: row pointers `[rows + 1]` (0 to the number of kept entries), columns `[kept]`."""

    name, code, fields = "csr", 3, 2

    def choices(self, mask: Mask) -> list[tuple[int, ...]]:
        return [()] if max(mask.grid.columns, mask.count + 1) <= MOST else []

    def bits(self, mask: Mask, parameters: tuple[int, ...]) -> int:
        return mask.count * width_of(mask.grid.columns) + (mask.grid.rows + 1) * width_of(mask.count + 1)

    def encode(self, mask: Mask, parameters: tuple[int, ...]) -> Index:
        per_row = np.count_nonzero(mask.kept, axis=1)
        pointers = np.concatenate([[0], np.cumsum(per_row)])
        columns = mask.positions % max(1, mask.grid.columns)
        return Index(self.name, (), (Field(pointers, mask.count + 1), Field(columns, mask.grid.columns)))

    def check(self, parameters: tuple[int, ...], grid: Grid, count: int) -> None:
        if max(grid.columns, count + 1) > MOST:
            raise refused(f"sparse rows of {grid.columns:,} columns with {count:,} entries")

    def decode(self, grid: Grid, count: int, parameters: tuple[int, ...], read: Read) -> tuple[Positions, Bools | None]:
        positions = rows_of(read(grid.rows + 1, count + 1), count, grid)
        positions *= grid.columns
        add(positions, read(count, max(1, grid.columns)))
        return ascending(positions, grid, count), None


def rows_of(pointers: Numbers, count: int, grid: Grid) -> Positions:
    """The row of each of `count` entries. Raises `ArtifactError` unless the pointers go up from 0 to `count`."""
    if pointers[0] != 0 or pointers[-1] != count or (pointers[1:] < pointers[:-1]).any():
        raise refused(f"row pointers do not go up from 0 to {count:,}")
    return np.repeat(np.arange(grid.rows, dtype=grid.kind), np.diff(pointers))


__all__ = ["Csr", "rows_of"]
