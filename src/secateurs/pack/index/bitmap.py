"""One bit per entry."""

from __future__ import annotations

import numpy as np

from secateurs.pack.bits import packed_bytes, unpack_bits
from secateurs.pack.coded import Bools
from secateurs.pack.index.encoding import Encoding, Field, Grid, Index, Mask, Positions, Read, encoding, set_bits
from secateurs.pack.refuse import refused

UNITS = (2, 4, 8)
"""Entries that make one number of the field: what an entropy coder sees as a symbol."""


@encoding
class Bitmap(Encoding):
    """Parameter: entries per number, u. Field: ceil(entries / u) numbers, the first entry in the lowest bit."""

    name, code, parameters, fields = "bitmap", 2, 1, 1

    def choices(self, mask: Mask) -> list[tuple[int, ...]]:
        return [(unit,) for unit in UNITS]

    def bits(self, mask: Mask, parameters: tuple[int, ...]) -> int:
        return -(-mask.grid.size // parameters[0]) * parameters[0]

    def encode(self, mask: Mask, parameters: tuple[int, ...]) -> Index:
        unit = parameters[0]
        octets = np.packbits(mask.kept.reshape(-1), bitorder="little")
        numbers = unpack_bits(octets.tobytes(), octets.size * 8 // unit, unit)[: -(-mask.grid.size // unit)]
        return Index(self.name, parameters, (Field(numbers, 1 << unit),))

    def check(self, parameters: tuple[int, ...], grid: Grid, count: int) -> None:
        if parameters[0] not in UNITS:
            raise refused(f"a bitmap in units of {parameters[0]}")

    def decode(self, grid: Grid, count: int, parameters: tuple[int, ...], read: Read) -> tuple[Positions, Bools | None]:
        unit = parameters[0]
        numbers = read(-(-grid.size // unit), 1 << unit).astype(np.uint8, copy=False)
        per_octet = 8 // unit
        octets = np.zeros(packed_bytes(numbers.size, unit), dtype=np.uint8)
        for place in range(per_octet):
            mine = numbers[place::per_octet]
            octets[: mine.size] |= mine << (place * unit)
        return set_bits(octets, grid, count), None


__all__ = ["UNITS", "Bitmap"]
