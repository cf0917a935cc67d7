"""What gzip alone makes of the weights: the number to beat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Baseline:
    """Bytes of the float32 weights as they are, and after gzip: of the original, and of what was packed."""

    raw: int
    gzip_original: int
    gzip_packed: int

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


def raw_bytes(tensors: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of `tensors` as float32."""
    return 4 * sum(tensor.size for tensor in tensors.values())


__all__ = ["Baseline", "gzip_bytes", "raw_bytes"]
