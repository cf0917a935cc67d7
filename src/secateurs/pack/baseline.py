"""What gzip alone makes of the weights, and formats of sparse matrices as they are in use: the numbers to beat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.pack.bits import width_of
from secateurs.pack.index import Mask, csr, relative
from secateurs.pack.index.relative import WIDEST

_BLOCK = 1 << 22


SIMD = 8
"""Weights of a group that is kept or not: float32 numbers in a register of 256 bits."""


@dataclass(frozen=True)
class Baseline:
    """Bytes of the float32 weights as they are, and after gzip: of the original, and of what was packed.

    `forms`: of what was packed, the kept weights as float32 with their positions in a plain format, see `form_bytes`.
    """

    raw: int
    gzip_original: int
    gzip_packed: int
    forms: Mapping[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Share of the compressed size that went: `1 - packed / original`."""
        return 1 - self.gzip_packed / self.gzip_original

    @property
    def factor(self) -> float:
        """How many times smaller the compressed size is: `original / packed`."""
        return self.gzip_original / self.gzip_packed

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate, "factor": self.factor}


def gzip_bytes(tensors: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of `tensors` in gzip, level 9, modification time 0: float32, C order, in their order, +0.0 for -0.0.

    Before the numbers goes a line per tensor with its name and shape.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    lines = "".join(f"{name} {'x'.join(map(str, tensor.shape))}\n" for name, tensor in tensors.items())
    size = len(packer.compress(lines.encode()))
    for tensor in tensors.values():
        flat = np.ascontiguousarray(tensor).reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            size += len(packer.compress((flat[start : start + _BLOCK].astype("<f4") + np.float32(0)).tobytes()))
    return size + len(packer.flush())


def form_bytes(tensors: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Bytes of `tensors` as float32, those of at least two dimensions sparse, numbers in as few bits as they all need.

    `"csr"`: sparse rows. `"relative"`: gaps of the width that takes least, fillers with a value of zero (Deep
    Compression). `"simd"`: aligned groups of `SIMD` weights of a row of which one is kept, short ones filled with zeros
    (Scalpel). Nothing is quantised or coded by entropy.
    """
    found = dict.fromkeys(("csr", "relative", "simd"), 0)
    for tensor in tensors.values():
        if tensor.ndim < 2:
            found = {name: size + 4 * tensor.size for name, size in found.items()}
            continue
        mask = Mask.of(np.asarray(tensor != 0))
        bits = {
            "csr": csr.Csr().bits(mask, ()) + 32 * mask.count,
            "relative": min(relative.Relative.entries(mask, width) * (width + 32) for width in range(1, WIDEST + 1)),
            "simd": _simd_bits(mask),
        }
        found = {name: size + (bits[name] + 7) // 8 for name, size in found.items()}
    return found


def _simd_bits(mask: Mask) -> int:
    per_row = -(-mask.grid.columns // SIMD)
    filled = np.zeros((mask.grid.rows, per_row * SIMD), dtype=np.bool_)
    filled[:, : mask.grid.columns] = mask.kept
    groups = int(np.count_nonzero(filled.reshape(mask.grid.rows, per_row, SIMD).any(axis=2)))
    return groups * (32 * SIMD + width_of(per_row)) + (mask.grid.rows + 1) * width_of(groups + 1)


def raw_bytes(tensors: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of `tensors` as float32."""
    return 4 * sum(tensor.size for tensor in tensors.values())


__all__ = ["SIMD", "Baseline", "form_bytes", "gzip_bytes", "raw_bytes"]
