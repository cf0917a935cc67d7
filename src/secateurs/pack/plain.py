"""Tensors as they are: raw values, without the zeros where that is shorter. Nothing is quantised."""

from __future__ import annotations

from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.pack.coded import Bools, Coded, Raw
from secateurs.pack.dtypes import FLOATS
from secateurs.pack.encode import encode

_TABLE = 1024
"""Bytes that a bitmap never takes beside the entropy of its bits."""


def plain(values: NDArray[Any], dtype: str) -> Coded:
    """`values` of any shape as a coded tensor that decodes to `dtype`, sparse if its file is smaller so.

    Zeros are exact zeros; -0.0 becomes +0.0. bfloat16 and float8 are given as unsigned bits.
    """
    zero = _is_zero(values, dtype)
    zeros = int(np.count_nonzero(zero))
    flat = np.ascontiguousarray(values).reshape(values.shape)
    if not zeros:
        return Coded(values.shape, Raw(flat.reshape(-1)), dtype=dtype)
    kept = np.asarray(~zero)
    sparse = Coded(values.shape, Raw(flat[kept]), kept, dtype)
    if zeros * values.itemsize / 2 > _entropy(zeros / values.size) * values.size / 8 + _TABLE:
        return sparse
    dense = Coded(values.shape, Raw(np.where(zero, values.dtype.type(0), flat).reshape(-1)), dtype=dtype)
    return sparse if encode(sparse).size < encode(dense).size else dense


def _entropy(share: float) -> float:
    """Of a bit that is set with this probability, above 0, in bits."""
    return -share * log2(share) - ((1 - share) * log2(1 - share) if share < 1 else 0.0)


def _is_zero(values: NDArray[Any], dtype: str) -> Bools:
    """Which entries are zero, of either sign."""
    if values.dtype.kind == "u" and (dtype in FLOATS or dtype.startswith("float8")):
        zero: Bools = np.asarray(values << 1 == 0)  # all but the sign
        return zero
    return np.asarray(values == 0)


__all__ = ["plain"]
