"""Gaps between kept entries in a few bits each, fillers where a gap is too long.

Han et al., Deep Compression, 2016.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from secateurs.pack.coded import Bools
from secateurs.pack.index.encoding import Encoding, Field, Grid, Index, Mask, Positions, Read, encoding
from secateurs.pack.refuse import refused

WIDEST = 16
"""Bits of the widest gap."""

_TRIED = (0, 1, 2, 4, 6)
"""Widths above the one with the fewest packed bits: an entropy coder likes rare long gaps better than fillers."""


@encoding
class Relative(Encoding):
    """Row-major scan; gap - 1 to the entry before (the first from position -1) in B bits.

    A gap above 2^B emits a filler, stored as 2^B - 1 with a value of zero, and goes on with 2^B less; no filler trails.
    Parameters: B (1..16), entries with fillers. Field: the stored gaps `[entries]`. Decoding:
    `position = cumsum(stored + 1) - 1`.
    """

    name, code, parameters, fields = "relative", 1, 2, 1

    def choices(self, mask: Mask) -> list[tuple[int, ...]]:
        entries = [self.entries(mask, bits) for bits in range(1, WIDEST + 1)]
        best = min(range(WIDEST), key=lambda place: entries[place] * (place + 1))
        found = [(best + more + 1, entries[best + more]) for more in _TRIED if best + more < WIDEST]
        return [*found[:1], *(after for before, after in pairwise(found) if before[1] > mask.count)]

    @staticmethod
    def entries(mask: Mask, bits: int) -> int:
        """Kept entries and fillers with gaps of `bits` bits."""
        return mask.count + int((mask.steps >> bits).sum())

    def bits(self, mask: Mask, parameters: tuple[int, ...]) -> int:
        return self.entries(mask, parameters[0]) * parameters[0]

    def encode(self, mask: Mask, parameters: tuple[int, ...]) -> Index:
        bits = parameters[0]
        fillers = mask.steps >> bits
        places = np.cumsum(fillers + 1) - 1
        entries = int(places[-1]) + 1 if places.size else 0
        stored = np.full(entries, (1 << bits) - 1, dtype=np.uint16)
        stored[places] = mask.steps & ((1 << bits) - 1)
        real: Bools | None = None
        if entries > mask.count:
            real = np.zeros(entries, dtype=np.bool_)
            real[places] = True
        return Index(self.name, (bits, entries), (Field(stored, 1 << bits),), real)

    def check(self, parameters: tuple[int, ...], grid: Grid, count: int) -> None:
        bits, entries = parameters
        if not 1 <= bits <= WIDEST or not count <= entries <= grid.size:
            raise refused(f"{count:,} gaps of {bits} bits and {entries - count:,} fillers on {grid.size:,} entries")

    def stored(self, parameters: tuple[int, ...], count: int) -> int:
        return parameters[1]

    def decode(self, grid: Grid, count: int, parameters: tuple[int, ...], read: Read) -> tuple[Positions, Bools | None]:
        bits, entries = parameters
        stored = read(entries, 1 << bits)
        last = int(stored.sum(dtype=np.int64)) + entries - 1
        if last >= grid.size:
            raise refused(f"gaps lead to position {last:,} of {grid.size:,}")
        positions = np.cumsum(stored, dtype=grid.kind)
        positions += np.arange(entries, dtype=grid.kind)
        if entries == count:
            return positions, None
        maybe: Bools = stored == (1 << bits) - 1
        maybe[-1] = False
        return positions, maybe


__all__ = ["WIDEST", "Relative"]
