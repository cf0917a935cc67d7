"""Asymmetric numeral systems through `constriction`: a fraction of a bit per symbol where Huffman needs a whole one.

Duda, Asymmetric numeral systems, 2009. The coder has a state of 64 bits, words of 32, and probabilities of 24 bits;
frequencies are stored with fewer bits and scaled up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from constriction import stream as constriction
from numpy.typing import NDArray

from secateurs.pack.bits import Buffer, Numbers, pack_bits, packed_bytes, smallest, unpack_bits, width_of
from secateurs.pack.entropy.coder import LARGEST_ALPHABET, Coder, Counts, Stream, coder
from secateurs.pack.refuse import refused
from secateurs.pack.varint import Cursor, varint

PRECISION = 24
"""Bits of a probability in the coder."""

STORED = (8, 10, 12, 14, 16, 18)
"""Bits of a probability in the table: the cheapest is taken."""

_BLOCK = 1 << 20


def quantise(counts: Counts, bits: int) -> Counts | None:
    """Frequencies `[symbols]` that sum to 2^bits, at least 1 where the count is not 0.

    Each count is scaled and rounded down; what is missing or too much goes to, or comes from, the most frequent symbol
    (the smallest of several). None when that leaves it nothing.
    """
    total, present = int(counts.sum()), counts > 0
    frequencies = np.where(present, np.maximum(1, (counts << bits) // total), 0)
    most = int(np.argmax(counts))
    frequencies[most] += (1 << bits) - int(frequencies.sum())
    return frequencies if frequencies[most] >= 1 else None


def from_words(words: NDArray[np.uint32]) -> bytes:
    """The words of a coder as bytes, little-endian, without the zero bytes at the end."""
    return words.astype("<u4").tobytes().rstrip(b"\0")


def to_words(payload: Buffer) -> NDArray[np.uint32]:
    """The words that `from_words` wrote. Raises `ArtifactError` for bytes that it does not write."""
    if not len(payload) or not payload[-1]:
        raise refused(f"{len(payload):,} bytes are not the words of a coder")
    return np.frombuffer(bytes(payload) + bytes(-len(payload) % 4), dtype="<u4").astype(np.uint32)


@coder
class Ans(Coder):
    """Table: size of the alphabet (varint), bits of the sum (byte), bits per frequency (byte), the frequencies packed.

    Payload: 32-bit words, little-endian, as `AnsCoder` gives them, without the zero bytes at the end.
    """

    name, code = "ans", 2

    def estimate(self, counts: Counts, bound: int) -> float | None:
        found = _best(counts)
        return None if found is None else found[0]

    def encode(self, symbols: NDArray[np.integer[Any]], counts: Counts, bound: int) -> Stream:
        found = _best(counts)
        if found is None:
            raise ValueError("a stream with fewer than two symbols")
        _, bits, frequencies = found
        places = np.cumsum(frequencies > 0) - 1
        ans = constriction.stack.AnsCoder()
        for end in range(symbols.size, 0, -_BLOCK):
            ans.encode_reverse(places.astype(np.int32)[symbols[max(0, end - _BLOCK) : end]], _model(frequencies, bits))
        return Stream(self.name, _table(frequencies, bits), from_words(ans.get_compressed()))

    def decode(self, table: Buffer, payload: Buffer, count: int, bound: int) -> Numbers:
        frequencies, bits = _read_table(table, bound)
        ans, known = constriction.stack.AnsCoder(to_words(payload)), _model(frequencies, bits)
        symbols = np.flatnonzero(frequencies).astype(smallest(width_of(frequencies.size)))
        result = np.empty(count, dtype=smallest(width_of(frequencies.size)))
        for start in range(0, count, _BLOCK):
            result[start : start + _BLOCK] = symbols[ans.decode(known, min(_BLOCK, count - start))]
        if not ans.is_empty():
            raise refused(f"the coder is not at its beginning after {count:,} symbols")
        return result


def _best(counts: Counts) -> tuple[float, int, Counts] | None:
    """Bytes, bits of the sum and frequencies of the cheapest table; None for fewer than two symbols."""
    if np.count_nonzero(counts) < 2:
        return None
    found: tuple[float, int, Counts] | None = None
    for bits in STORED:
        frequencies = quantise(counts, bits)
        if frequencies is None:
            continue
        present = counts > 0
        coded = float((counts[present] * (bits - np.log2(frequencies[present]))).sum())
        size = len(_table(frequencies, bits)) + np.ceil(coded / 8 + 1)
        if found is None or size < found[0]:
            found = (size, bits, frequencies)
    return found


def _model(frequencies: Counts, bits: int) -> Any:
    """Exactly these frequencies: the fast construction gives every symbol 1 and shares out the rest in proportion."""
    scaled = (frequencies[frequencies > 0] << (PRECISION - bits)) - 1
    return constriction.model.Categorical(scaled.astype(np.float64), perfect=False)


def _table(frequencies: Counts, bits: int) -> bytes:
    width = width_of(int(frequencies.max()) + 1)
    return varint(frequencies.size) + bytes([bits, width]) + pack_bits(frequencies, width)


def _read_table(table: Buffer, bound: int) -> tuple[Counts, int]:
    cursor = Cursor(table, "a table of frequencies")
    size = cursor.number(min(bound, LARGEST_ALPHABET))
    bits, width = cursor.byte(), cursor.byte()
    if bits not in STORED or width > bits:
        raise refused(f"a table has frequencies of {width} bits that sum to 2^{bits}")
    frequencies = unpack_bits(cursor.take(packed_bytes(size, width)), size, width).astype(np.int64)
    cursor.end()
    if int(frequencies.sum()) != 1 << bits or np.count_nonzero(frequencies) < 2:
        raise refused(f"the frequencies of a table sum to {int(frequencies.sum()):,}, not to {1 << bits:,}")
    return frequencies, bits


__all__ = ["PRECISION", "STORED", "Ans", "from_words", "quantise", "to_words"]
