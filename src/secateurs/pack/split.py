"""Floating-point values as their exponents, of which few are common, and the rest: sign and fraction, nearly random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.pack.bits import Numbers, smallest

LAYOUTS = {"float16": (5, 10), "bfloat16": (8, 7), "float32": (8, 23)}
"""Bits of exponent and of fraction, by type; a sign stands above them."""

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Split:
    """`exponents` `[n]` less `least`; `rests` `[n]`: sign above fraction, less the lowest `spare` bits, which are 0."""

    exponents: Numbers
    rests: Numbers
    least: int
    spare: int


def split(values: Numbers, dtype: str) -> Split:
    """The parts of `values` `[n]`, unsigned bits of `dtype`, with the largest `least` and `spare` that all allow."""
    wide, fraction = LAYOUTS[dtype]
    exponents = np.empty(values.size, dtype=np.uint8)
    for start in range(0, values.size, _BLOCK):
        exponents[start : start + _BLOCK] = values[start : start + _BLOCK] >> fraction & (1 << wide) - 1
    used = int(np.bitwise_or.reduce(values)) & (1 << fraction) - 1
    spare = (used & -used).bit_length() - 1 if used else fraction
    least = int(exponents.min()) if values.size else 0
    exponents -= np.uint8(least)
    rests = np.empty(values.size, dtype=smallest(1 + fraction - spare))
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        rests[start : start + _BLOCK] = (block & (1 << fraction) - 1 | block >> wide & 1 << fraction) >> spare
    return Split(exponents, rests, least, spare)


def joined(parts: Split, dtype: str) -> NDArray[np.unsignedinteger[Any]]:
    """The bits of the values that `split` took apart; numbers are below their `bounds`."""
    wide, fraction = LAYOUTS[dtype]
    kind = smallest(1 + wide + fraction)
    result = np.empty(parts.rests.size, dtype=kind)
    for start in range(0, result.size, _BLOCK):
        rests = parts.rests[start : start + _BLOCK].astype(kind) << parts.spare
        exponents = parts.exponents[start : start + _BLOCK].astype(kind) + parts.least
        sign = rests >> fraction << fraction + wide
        result[start : start + _BLOCK] = rests & (1 << fraction) - 1 | exponents << fraction | sign
    return result


def bounds(dtype: str, least: int, spare: int) -> tuple[int, int]:
    """Exponents less `least`, and rests less `spare` bits, are below these."""
    wide, fraction = LAYOUTS[dtype]
    return (1 << wide) - least, 1 << 1 + fraction - spare


__all__ = ["LAYOUTS", "Split", "bounds", "joined", "split"]
