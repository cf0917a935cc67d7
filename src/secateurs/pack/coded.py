"""`Coded`: one tensor in the form in which it is stored: which entries are kept, and what stands for their values.

Methods that quantise make these; the file writes them down and gives them back, bit for bit. Entries that are not kept
are exactly +0.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.base.errors import InputError, explain

Bools = NDArray[np.bool_]
Codes = NDArray[np.integer[Any]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Raw:
    """Values as they are: `[kept]` in row-major order, of any dtype that safetensors knows except sub-byte ones."""

    values: NDArray[np.generic]


@dataclass(frozen=True)
class Shared:
    """Weight sharing: entry i is `codebook[codes[i]]`. `codes` `[kept]` in 0..k-1, `codebook` float32 `[k]`, k <= 2^16.

    Codes are of any integer type. Han et al., Deep Compression, 2016.
    """

    codes: Codes
    codebook: Floats


@dataclass(frozen=True)
class Scaled:
    """Linear integers: entry i is `codes[i] * scale[channel of i]` in float32, channels along `axis` (None: one scale).

    `codes` `[kept]` are signed and fit `bits` bits in two's complement without the lowest value (symmetric around 0).
    """

    codes: Codes
    scale: Floats
    bits: int
    axis: int | None = 0


@dataclass(frozen=True)
class Coded:
    """A tensor of `shape` whose `kept` entries (None: all) are given by `content`; it decodes to `dtype`.

    `dtype` is NumPy's name of it; `"bfloat16"` is stored as the bits of its values (`uint16`).
    """

    shape: tuple[int, ...]
    content: Raw | Shared | Scaled
    kept: Bools | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        numbers = self.content.values if isinstance(self.content, Raw) else self.content.codes
        if self.kept is not None and self.kept.shape != self.shape:
            raise _misfit(f"kept is {self.kept.shape}, the tensor {self.shape}")
        if numbers.shape != (self.count,):
            raise _misfit(f"{numbers.shape} values for {self.count} kept entries")

    @property
    def count(self) -> int:
        """How many entries are kept."""
        return prod(self.shape) if self.kept is None else int(np.count_nonzero(self.kept))

    def decode(self) -> NDArray[np.generic]:
        """The tensor, of `shape`; float32 for shared and scaled contents, else as the values are."""
        values = _values(self)
        if self.kept is None:
            return values.reshape(self.shape)
        result = np.zeros(self.shape, dtype=values.dtype)
        result[self.kept] = values
        return result


def _values(tensor: Coded) -> NDArray[np.generic]:
    content = tensor.content
    if isinstance(content, Raw):
        return content.values
    if isinstance(content, Shared):
        return content.codebook[content.codes]
    if content.axis is None:
        return content.codes.astype(np.float32) * content.scale
    axes = [-1 if axis == content.axis else 1 for axis in range(len(tensor.shape))]
    channels = np.broadcast_to(np.arange(tensor.shape[content.axis]).reshape(axes), tensor.shape)
    mine = channels.reshape(-1) if tensor.kept is None else channels[tensor.kept]
    return content.codes.astype(np.float32) * content.scale[mine]


def _misfit(evidence: str) -> InputError:
    return InputError(explain("A coded tensor does not fit its shape", evidence=evidence))


__all__ = ["Coded", "Raw", "Scaled", "Shared"]
