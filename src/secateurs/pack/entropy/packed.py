"""Every symbol in the same number of bits: the fallback that takes everything."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.pack.bits import Buffer, Numbers, pack_bits, packed_bytes, unpack_bits, width_of
from secateurs.pack.entropy.coder import Coder, Counts, Stream, coder
from secateurs.pack.refuse import refused


@coder
class Packed(Coder):
    """Table: one byte, the width in bits. Payload: the symbols, lowest bit first."""

    name, code = "packed", 0

    def estimate(self, counts: Counts, bound: int) -> float | None:
        return 1.0 + packed_bytes(int(counts.sum()), width_of(counts.size)) if counts.size else None

    def encode(self, symbols: NDArray[np.integer[Any]], counts: Counts, bound: int) -> Stream:
        width = width_of(int(symbols.max()) + 1) if symbols.size else 0
        return Stream(self.name, bytes([width]), pack_bits(symbols, width))

    def decode(self, table: Buffer, payload: Buffer, count: int, bound: int) -> Numbers:
        if len(table) != 1 or table[0] > width_of(bound):
            raise refused(f"numbers below {bound:,} are said to be wider than {width_of(bound)} bits")
        return unpack_bits(payload, count, table[0])


__all__ = ["Packed"]
