"""What a coder of integer streams is, and which there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from secateurs.base.registry import Registry
from secateurs.pack.bits import Buffer, Numbers

Counts = NDArray[np.int64]

LARGEST_ALPHABET = (1 << 16) + 1
"""Coders with a table take symbols below this: a codebook of 2^16 entries and the filler."""

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Stream:
    """A coded stream: which coder, the bytes of its table, the bytes of its symbols."""

    coder: str
    table: bytes
    payload: bytes

    @property
    def bytes(self) -> int:
        return len(self.table) + len(self.payload)


class Coder(ABC):
    """Turns non-negative integers into bytes and back, exactly. `code` is what a file says for it."""

    name: ClassVar[str]
    code: ClassVar[int]

    @abstractmethod
    def estimate(self, counts: Counts, bound: int) -> float | None:
        """Bytes, table included, that symbols with these counts take; within a word of the truth.

        None when this coder does not code such streams.
        """

    @abstractmethod
    def encode(self, symbols: NDArray[np.integer[Any]], counts: Counts, bound: int) -> Stream:
        """The stream of `symbols` `[n]`, `counts` of which were counted; the same input gives the same bytes."""

    @abstractmethod
    def decode(self, table: Buffer, payload: Buffer, count: int, bound: int) -> Numbers:
        """`count` symbols below `bound`. Raises `ArtifactError` on bytes that no encoder writes."""


CODERS: Registry[Coder] = Registry("coder")


def coder(kind: type[Coder]) -> type[Coder]:
    """Decorator: registers a coder under its name."""
    CODERS.register(kind.name)(kind())
    return kind


def count_symbols(symbols: NDArray[np.integer[Any]], bound: int) -> Counts:
    """How often each symbol occurs, `[largest + 1]`; empty when the alphabet is too large for a table."""
    largest = int(symbols.max()) if symbols.size else -1
    if largest >= min(bound, LARGEST_ALPHABET):
        return np.zeros(0, dtype=np.int64)
    counts = np.zeros(largest + 1, dtype=np.int64)
    for start in range(0, symbols.size, _BLOCK):
        counts += np.bincount(symbols[start : start + _BLOCK], minlength=largest + 1)
    return counts


__all__ = ["CODERS", "LARGEST_ALPHABET", "Coder", "Counts", "Stream", "coder", "count_symbols"]
