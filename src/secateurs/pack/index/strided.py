"""Kernels that keep every stride-th tap from a start on, the same in all kernels of an input map.

Anwar, Hwang, Sung, Structured pruning of deep convolutional neural networks, 2017.
"""

from __future__ import annotations

import numpy as np

from secateurs.pack.bits import width_of
from secateurs.pack.coded import Bools
from secateurs.pack.index.encoding import MOST, Encoding, Field, Grid, Index, Mask, Positions, Read, ascending, encoding
from secateurs.pack.refuse import refused


@encoding
class Strided(Encoding):
    """Input map i keeps the taps start[i], start[i] + stride[i], ... below `taps`, in every row.

    Fields: start `[maps]` (`taps`: the map is gone), stride - 1 `[maps]` (`taps` - 1 where one tap or none is kept).
    """

    name, code, fields = "strided", 5, 2

    def choices(self, mask: Mask) -> list[tuple[int, ...]]:
        if not mask.grid.size or mask.grid.taps >= MOST or not (mask.kept == mask.kept[0]).all():
            return []
        start, stride = _pattern(mask)
        return [()] if np.array_equal(_taps(mask.grid, start, stride), mask.kept[0]) else []

    def bits(self, mask: Mask, parameters: tuple[int, ...]) -> int:
        return mask.grid.maps * (width_of(mask.grid.taps + 1) + width_of(mask.grid.taps))

    def encode(self, mask: Mask, parameters: tuple[int, ...]) -> Index:
        start, stride = _pattern(mask)
        taps = mask.grid.taps
        return Index(self.name, parameters, (Field(start, taps + 1), Field(stride - 1, taps)))

    def check(self, parameters: tuple[int, ...], grid: Grid, count: int) -> None:
        if not grid.size or grid.taps >= MOST or count % grid.rows:
            raise refused(f"{count:,} strided entries in {grid.rows:,} rows")

    def decode(self, grid: Grid, count: int, parameters: tuple[int, ...], read: Read) -> tuple[Positions, Bools | None]:
        start = read(grid.maps, grid.taps + 1).astype(grid.kind)
        stride = read(grid.maps, grid.taps).astype(grid.kind) + 1
        row = np.flatnonzero(_taps(grid, start, stride)).astype(grid.kind)
        if row.size * grid.rows != count:
            raise refused(f"strided taps keep {row.size * grid.rows:,} entries of {count:,}")
        begins = np.arange(0, grid.size, grid.columns, dtype=grid.kind)
        return ascending((begins[:, None] + row).reshape(-1), grid, count), None


def _pattern(mask: Mask) -> tuple[Positions, Positions]:
    """Start and stride `[maps]` that the first row has, if it has any."""
    grid = mask.grid
    taps = mask.kept[0].reshape(grid.maps, grid.taps)
    start = np.where(taps.any(axis=1), taps.argmax(axis=1), grid.taps)
    later = taps & (np.arange(grid.taps) > start[:, None])
    stride = np.where(later.any(axis=1), later.argmax(axis=1) - start, grid.taps)
    return start, stride


def _taps(grid: Grid, start: Positions, stride: Positions) -> Bools:
    """The columns `[maps * taps]` that a pattern keeps."""
    distance = np.arange(grid.taps, dtype=start.dtype) - start[:, None]
    found: Bools = ((distance >= 0) & (distance % stride[:, None] == 0)).reshape(-1)
    return found


__all__ = ["Strided"]
