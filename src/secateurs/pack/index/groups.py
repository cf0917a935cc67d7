"""Aligned groups of k adjacent weights that are kept or removed together.

Yu et al., Scalpel: customizing DNN pruning to the underlying hardware parallelism, 2017.
"""

from __future__ import annotations

import numpy as np

from secateurs.pack.bits import width_of
from secateurs.pack.coded import Bools
from secateurs.pack.index.csr import rows_of
from secateurs.pack.index.encoding import MOST, Encoding, Field, Grid, Index, Mask, Positions, Read, ascending, encoding
from secateurs.pack.refuse import refused

SIZES = (2, 4, 8, 16, 32, 64)
"""Weights per group that are looked for; whole kernels are, too."""


@encoding
class Groups(Encoding):
    """Every row is cut into groups of k columns; the last one holds what is left and stores just that.

    Parameter: k. Fields: for every row, and for the end, how many groups are kept before it `[rows + 1]`; the number
    of every kept group in its row `[groups]`.
    """

    name, code, parameters, fields = "groups", 4, 1, 2

    def choices(self, mask: Mask) -> list[tuple[int, ...]]:
        if mask.grid.size >= MOST:
            return []
        fitting: list[tuple[int, ...]] = []
        for size in SIZES:
            if size > mask.grid.columns or not _is_whole(mask, size):
                break  # larger groups are made of smaller ones
            fitting = [(size,)]
        taps = mask.grid.taps
        if taps > 1 and taps not in SIZES and _is_whole(mask, taps):
            fitting.append((taps,))
        return fitting

    def bits(self, mask: Mask, parameters: tuple[int, ...]) -> int:
        per_row = -(-mask.grid.columns // parameters[0])
        kept = int(np.count_nonzero(mask.kept[:, :: parameters[0]]))
        return kept * width_of(per_row) + (mask.grid.rows + 1) * width_of(mask.grid.rows * per_row + 1)

    def encode(self, mask: Mask, parameters: tuple[int, ...]) -> Index:
        groups = mask.kept[:, :: parameters[0]]
        pointers = np.concatenate([[0], np.cumsum(np.count_nonzero(groups, axis=1))])
        places = np.flatnonzero(groups) % groups.shape[1]
        return Index(self.name, parameters, (Field(pointers, groups.size + 1), Field(places, groups.shape[1])))

    def check(self, parameters: tuple[int, ...], grid: Grid, count: int) -> None:
        if not 2 <= parameters[0] <= grid.columns or grid.rows * -(-grid.columns // parameters[0]) >= MOST:
            raise refused(f"groups of {parameters[0]:,} in rows of {grid.columns:,}")

    def decode(self, grid: Grid, count: int, parameters: tuple[int, ...], read: Read) -> tuple[Positions, Bools | None]:
        size = parameters[0]
        per_row = -(-grid.columns // size)
        pointers = read(grid.rows + 1, grid.rows * per_row + 1)
        kept = int(pointers[-1])
        if kept > count:
            raise refused(f"{kept:,} groups hold only {count:,} entries")
        first = rows_of(pointers, kept, grid)
        first *= grid.columns
        columns = read(kept, per_row).astype(grid.kind)
        columns *= size
        lengths = np.minimum(size, grid.columns - columns)
        held = int(lengths.sum(dtype=np.int64))
        if held != count:
            raise refused(f"groups of {size} hold {held:,} entries of {count:,}")
        first += columns
        first -= np.cumsum(lengths, dtype=grid.kind) - lengths
        positions = np.repeat(first, lengths)
        positions += np.arange(count, dtype=grid.kind)
        return ascending(positions, grid, count), None


def _is_whole(mask: Mask, size: int) -> bool:
    """Whether all entries of every group are kept, or none."""
    for place in range(1, size):
        other = mask.kept[:, place::size]
        if not np.array_equal(other, mask.kept[:, ::size][:, : other.shape[1]]):
            return False
    return True


__all__ = ["SIZES", "Groups"]
