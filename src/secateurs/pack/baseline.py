"""What gzip alone makes of the weights, and formats of sparse matrices as they are in use: the numbers to beat."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
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

TINY = 2.0**-126
"""The smallest normal float32. What is smaller and not zero (1e-40) does nothing in a network, and costs what every
other number does: here it counts as +0.0, as -0.0 does."""


@dataclass(frozen=True)
class Baseline:
    """Bytes of the float32 weights as they are, and after gzip: of the original, and of what was packed.

    `forms`: of what was packed, the kept weights as float32 with their positions in a plain format, see `form_bytes`.
    `weights_original` and `weights_packed` are what gzip makes of the weights alone, see `weights_alone`.
    """

    raw: int
    gzip_original: int
    gzip_packed: int
    forms: Mapping[str, int] = field(default_factory=dict)
    weights_original: int = 0
    weights_packed: int = 0

    @property
    def rate(self) -> float:
        """Share of the compressed size that went: `1 - packed / original`."""
        return 1 - self.gzip_packed / self.gzip_original

    @property
    def factor(self) -> float:
        """How many times smaller the compressed size is: `original / packed`."""
        return self.gzip_original / self.gzip_packed

    @property
    def weights_rate(self) -> float | None:
        """The same share of the weights alone, which is where zeros are; None where there are none."""
        return 1 - self.weights_packed / self.weights_original if self.weights_original else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate, "factor": self.factor, "weights_rate": self.weights_rate}


def weights_alone(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The weight matrices and kernels: what has two axes or more, so neither biases nor norms nor their statistics."""
    return {name: tensor for name, tensor in tensors.items() if tensor.ndim > 1}


def gzip_bytes(tensors: Mapping[str, NDArray[Any]]) -> int:
    """How long `gzipped` is, without keeping it in memory."""
    return sum(map(len, _gzip(tensors)))


def gzipped(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """`tensors` in gzip, level 9, modification time 0: float32, C order, in their order, +0.0 below `TINY`.

    Before the numbers goes a line per tensor with its name and shape. The same tensors give the same bytes.
    """
    return b"".join(_gzip(tensors))


def _gzip(tensors: Mapping[str, NDArray[Any]]) -> Iterator[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    lines = "".join(f"{name} {'x'.join(map(str, tensor.shape))}\n" for name, tensor in tensors.items())
    yield packer.compress(lines.encode())
    for tensor in tensors.values():
        flat = np.ascontiguousarray(tensor).reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            numbers = flat[start : start + _BLOCK].astype("<f4")
            numbers[_nothing(numbers)] = 0
            yield packer.compress(numbers.tobytes())
    yield packer.flush()


def _nothing(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Which are zero, of either sign, or so small that they count as zero."""
    return np.asarray(np.abs(numbers) < TINY)


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
        mask = Mask.of(~_nothing(tensor))
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


__all__ = [
    "SIMD", "TINY", "Baseline", "form_bytes", "gzip_bytes", "gzipped", "raw_bytes", "weights_alone",
]  # fmt: skip
