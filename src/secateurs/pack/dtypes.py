"""Types of entries that a file can hold: the code in the file, NumPy's name, and what stores the bits.

Numbers of codebooks and scales are float32 and stored in fewer bits where that loses none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_STORED = {
    "bool": "u1", "uint8": "u1", "int8": "i1", "uint16": "<u2", "int16": "<i2", "uint32": "<u4", "int32": "<i4",
    "uint64": "<u8", "int64": "<i8", "float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8",
    "float8_e4m3fn": "u1", "float8_e5m2": "u1", "complex64": "<c8",
}  # fmt: skip

DTYPES = tuple(_STORED)
"""By their code in the file: 0 is bool, 1 uint8, ..."""

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
"""What shared and scaled contents may decode to."""


TABLES = ("float32", "float16", "bfloat16")
"""How the numbers of a codebook or of scales are stored, by the code in the file."""


def stored_as(dtype: str) -> np.dtype[Any]:
    """The little-endian type that holds the bits of `dtype` in the file."""
    return np.dtype(_STORED[dtype])


def in_memory(dtype: str) -> np.dtype[Any]:
    """The type of the values of a raw content that decodes to `dtype`: bfloat16 and float8 as unsigned bits."""
    return np.dtype("bool") if dtype == "bool" else stored_as(dtype).newbyteorder("=")


def narrowest(numbers: NDArray[np.float32]) -> str:
    """The type of the fewest bits that holds all of `numbers` exactly: one of `TABLES`."""
    exact = [kind for kind in TABLES[1:] if from_table(to_table(numbers, kind), kind).tobytes() == numbers.tobytes()]
    return exact[0] if exact else TABLES[0]


def to_table(numbers: NDArray[np.float32], kind: str) -> bytes:
    """The bytes of `numbers` as `kind`, little-endian; what bfloat16 has no room for is cut off."""
    if kind == "bfloat16":
        return (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return numbers.astype(stored_as(kind)).tobytes()


def from_table(data: bytes | memoryview, kind: str) -> NDArray[np.float32]:
    """The numbers whose bytes these are."""
    if kind == "bfloat16":
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype=stored_as(kind)).astype(np.float32)


__all__ = ["DTYPES", "FLOATS", "TABLES", "from_table", "in_memory", "narrowest", "stored_as", "to_table"]
