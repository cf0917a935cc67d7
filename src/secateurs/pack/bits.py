"""Unsigned integers side by side in a fixed number of bits, the lowest bit first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.pack.refuse import refused

Numbers = NDArray[np.unsignedinteger[Any]]
Buffer = bytes | memoryview

WIDEST = 32
_BLOCK = 1 << 16
"""Values per step; a multiple of 8, so that every step begins at a byte."""


def width_of(bound: int) -> int:
    """Bits that hold every number from 0 to `bound - 1`; none when there is only 0."""
    return max(0, bound - 1).bit_length()


def packed_bytes(count: int, width: int) -> int:
    """Bytes that `count` numbers of `width` bits take."""
    return (count * width + 7) // 8


def smallest(width: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The unsigned type, little-endian, that holds `width` bits."""
    return np.dtype("u1" if width <= 8 else "<u2" if width <= 16 else "<u4")


def pack_bits(numbers: NDArray[np.integer[Any]], width: int) -> bytes:
    """`numbers` `[n]`, each below 2^width (0 <= width <= 32), in ceil(n * width / 8) bytes; unused bits are 0."""
    kind = smallest(width)
    if width in (8, 16, 32):
        return numbers.astype(kind).tobytes()
    if width == 24:
        return numbers.astype(kind).view(np.uint8).reshape(-1, kind.itemsize)[:, :3].tobytes()
    parts = []
    for start in range(0, numbers.size if width else 0, _BLOCK):
        block = numbers[start : start + _BLOCK].astype(kind)
        octets = block.view(np.uint8).reshape(block.size, kind.itemsize)
        bits = np.unpackbits(octets, axis=1, count=width, bitorder="little")
        parts.append(np.packbits(bits, bitorder="little").tobytes())
    return b"".join(parts)


def unpack_bits(data: Buffer, count: int, width: int) -> Numbers:
    """`count` numbers of `width` bits, in the smallest type that holds them.

    Raises `ArtifactError` when the length of `data` is another than theirs or an unused bit is set.
    """
    if not 0 <= width <= WIDEST or len(data) != packed_bytes(count, width):
        raise refused(f"{count:,} numbers of {width} bits cannot stand in {len(data):,} bytes")
    kind = smallest(width)
    if width == 0:
        return np.zeros(count, dtype=kind)
    if width in (8, 16, 32):
        return np.frombuffer(data, dtype=kind)
    if width == 24:
        wide = np.zeros((count, kind.itemsize), dtype=np.uint8)
        wide[:, :3] = np.frombuffer(data, dtype=np.uint8).reshape(count, 3)
        return wide.view(kind).reshape(count)
    used = count * width % 8
    if used and data[-1] >> used:
        raise refused("a bit behind the last packed number is set")
    result = np.empty(count, dtype=kind)
    octets = np.frombuffer(data, dtype=np.uint8)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        bits = np.unpackbits(octets[start * width // 8 :][: packed_bytes(size, width)], bitorder="little")
        rows = np.packbits(bits[: size * width].reshape(size, width), axis=1, bitorder="little")
        wide = np.zeros((size, kind.itemsize), dtype=np.uint8)
        wide[:, : rows.shape[1]] = rows
        result[start : start + size] = wide.view(kind)[:, 0]
    return result


__all__ = ["WIDEST", "Buffer", "Numbers", "pack_bits", "packed_bytes", "smallest", "unpack_bits", "width_of"]
