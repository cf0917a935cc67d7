"""The cheapest coder for a stream, by real bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.pack.bits import Buffer, Numbers, packed_bytes, width_of
from secateurs.pack.entropy.coder import CODERS, Counts, Stream, count_symbols
from secateurs.pack.refuse import refused

CLOSE = 16
"""Bytes by which an estimate may be off; coders that are this close are compared by what they write."""


def estimate_stream(symbols: NDArray[np.integer[Any]], bound: int) -> float:
    """Bytes, table included, that the cheapest coder takes for `symbols` `[n]` below `bound`."""
    counts = count_symbols(symbols, bound)
    if not counts.size:
        largest = int(symbols.max()) + 1 if symbols.size else 0
        return 1.0 + packed_bytes(symbols.size, width_of(largest))
    return min(_estimates(counts, bound).values())


def encode_stream(symbols: NDArray[np.integer[Any]], bound: int) -> Stream:
    """`symbols` `[n]`, each in 0..bound-1, by the coder whose table and payload are smallest."""
    counts = count_symbols(symbols, bound)
    if not counts.size:
        return CODERS["packed"].encode(symbols, counts, bound)
    estimates = _estimates(counts, bound)
    least = min(estimates.values())
    near = [name for name in estimates if estimates[name] <= least + CLOSE]
    return min((CODERS[name].encode(symbols, counts, bound) for name in near), key=_rank)


def decode_stream(code: int, table: Buffer, payload: Buffer, count: int, bound: int) -> Numbers:
    """`count` symbols below `bound`. Raises `ArtifactError` when the bytes are not such a stream."""
    coder = next((item for item in (CODERS[name] for name in CODERS) if item.code == code), None)
    if coder is None:
        raise refused(f"there is no coder {code}")
    symbols = coder.decode(table, payload, count, bound)
    if symbols.size and int(symbols.max()) >= bound:
        raise refused(f"a stream of numbers below {bound:,} holds {int(symbols.max()):,}")
    return symbols


def _estimates(counts: Counts, bound: int) -> dict[str, float]:
    found = {name: CODERS[name].estimate(counts, bound) for name in CODERS}
    return {name: size for name, size in found.items() if size is not None}


def _rank(stream: Stream) -> tuple[int, int]:
    return stream.bytes, CODERS[stream.coder].code


__all__ = ["CLOSE", "decode_stream", "encode_stream", "estimate_stream"]
