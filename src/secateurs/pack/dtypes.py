"""Types of entries that a file can hold: the code in the file, NumPy's name, and what stores the bits."""

from __future__ import annotations

from typing import Any

import numpy as np

_STORED = {
    "bool": "u1", "uint8": "u1", "int8": "i1", "uint16": "<u2", "int16": "<i2", "uint32": "<u4", "int32": "<i4",
    "uint64": "<u8", "int64": "<i8", "float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8",
    "float8_e4m3fn": "u1", "float8_e5m2": "u1", "complex64": "<c8",
}  # fmt: skip

DTYPES = tuple(_STORED)
"""By their code in the file: 0 is bool, 1 uint8, ..."""

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
"""What shared and scaled contents may decode to."""


def stored_as(dtype: str) -> np.dtype[Any]:
    """The little-endian type that holds the bits of `dtype` in the file."""
    return np.dtype(_STORED[dtype])


def in_memory(dtype: str) -> np.dtype[Any]:
    """The type of the values of a raw content that decodes to `dtype`: bfloat16 and float8 as unsigned bits."""
    return np.dtype("bool") if dtype == "bool" else stored_as(dtype).newbyteorder("=")


__all__ = ["DTYPES", "FLOATS", "in_memory", "stored_as"]
