"""Canonical Huffman codes: only the lengths are stored; shorter codes first, then smaller symbols.

Huffman, A method for the construction of minimum-redundancy codes, 1952.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.pack.bits import Buffer, Numbers, pack_bits, packed_bytes, smallest, unpack_bits, width_of
from secateurs.pack.entropy.coder import LARGEST_ALPHABET, Coder, Counts, Stream, coder
from secateurs.pack.refuse import refused
from secateurs.pack.varint import Cursor, varint

LONGEST = 32
"""Bits of the longest code; counts that would need a longer one are left to the other coders."""

_BLOCK = 1 << 18
_SEGMENT = 1 << 15
"""Bits that are decoded at a time."""

Lengths = NDArray[np.int64]


def code_lengths(counts: Counts) -> Lengths:
    """Bits of each symbol's code `[symbols]`, 0 where it does not occur; a single symbol takes 1 bit.

    Among equal weights the smaller symbol goes first, leaves before inner nodes, older nodes before newer ones.
    """
    lengths = np.zeros(counts.size, dtype=np.int64)
    present = np.flatnonzero(counts).tolist()
    if len(present) < 2:
        lengths[present] = 1
        return lengths
    heap = [(int(counts[symbol]), place) for place, symbol in enumerate(present)]
    heapq.heapify(heap)
    parents = [0] * (2 * len(present) - 1)
    for node in range(len(present), len(parents)):
        (one, left), (other, right) = heapq.heappop(heap), heapq.heappop(heap)
        parents[left] = parents[right] = node
        heapq.heappush(heap, (one + other, node))
    depths = [0] * len(parents)
    for node in range(len(parents) - 2, -1, -1):
        depths[node] = depths[parents[node]] + 1
    lengths[present] = depths[: len(present)]
    return lengths


@dataclass(frozen=True)
class Codebook:
    """The canonical code of `lengths`: symbols in code order, and per length its first code and first rank."""

    lengths: Lengths
    order: NDArray[np.int64]
    first: NDArray[np.int64]
    rank: NDArray[np.int64]

    @classmethod
    def of(cls, lengths: Lengths) -> Codebook:
        present = np.flatnonzero(lengths)
        order = present[np.argsort(lengths[present], kind="stable")]
        per_length = np.bincount(lengths[present], minlength=LONGEST + 1)
        first, rank = np.zeros(LONGEST + 1, dtype=np.int64), np.zeros(LONGEST + 1, dtype=np.int64)
        for length in range(1, LONGEST + 1):
            first[length] = (first[length - 1] + (per_length[length - 1] if length > 1 else 0)) << 1
            rank[length] = rank[length - 1] + (per_length[length - 1] if length > 1 else 0)
        return cls(lengths, order, first, rank)

    @property
    def codes(self) -> NDArray[np.int64]:
        """Each symbol's code as a number."""
        found = np.zeros(self.lengths.size, dtype=np.int64)
        mine = self.lengths[self.order]
        found[self.order] = self.first[mine] + np.arange(self.order.size) - self.rank[mine]
        return found


@coder
class Huffman(Coder):
    """Table: size of the alphabet (varint), bits per length (byte), the lengths packed.

    Payload: the codes, high bit first.
    """

    name, code = "huffman", 1

    def estimate(self, counts: Counts, bound: int) -> float | None:
        if not counts.size:
            return None
        lengths = code_lengths(counts)
        if lengths.max() > LONGEST:
            return None
        return len(_table(lengths)) + (int((lengths * counts).sum()) + 7) // 8

    def encode(self, symbols: NDArray[np.integer[Any]], counts: Counts, bound: int) -> Stream:
        lengths = code_lengths(counts)
        return Stream(self.name, _table(lengths), _write(symbols, Codebook.of(lengths)))

    def decode(self, table: Buffer, payload: Buffer, count: int, bound: int) -> Numbers:
        lengths = _read_table(table, bound)
        kind = smallest(width_of(lengths.size))
        present = np.flatnonzero(lengths)
        if present.size == 1:
            if len(payload) != packed_bytes(count, 1) or any(payload):
                raise refused("the only symbol of a code is not written as zeros")
            return np.full(count, present[0], dtype=kind)
        return _read(payload, count, Codebook.of(lengths), kind)


def _table(lengths: Lengths) -> bytes:
    width = width_of(int(lengths.max()) + 1)
    return varint(lengths.size) + bytes([width]) + pack_bits(lengths, width)


def _read_table(table: Buffer, bound: int) -> Lengths:
    cursor = Cursor(table, "a table of code lengths")
    size = cursor.number(min(bound, LARGEST_ALPHABET))
    width = cursor.byte()
    if not size or width > width_of(LONGEST + 1):
        raise refused(f"a code has {size:,} symbols with lengths of {width} bits")
    lengths = unpack_bits(cursor.take(packed_bytes(size, width)), size, width).astype(np.int64)
    cursor.end()
    present = lengths[lengths > 0]
    whole = int((1 << (LONGEST - present[present <= LONGEST])).sum())
    single = present.size == 1 and present[0] == 1
    if present.size == 0 or present.max() > LONGEST or not (single or whole == 1 << LONGEST):
        raise refused("the lengths of a code do not make a complete code")
    return lengths


def _write(symbols: NDArray[np.integer[Any]], book: Codebook) -> bytes:
    """The codes one after the other, the high bit first, through words of 32 bits."""
    codes, lengths = book.codes.astype(np.uint64), book.lengths
    words: list[NDArray[np.uint64]] = []
    carry, used = np.uint64(0), 0  # the last word, not yet full, and how many of its bits are
    for start in range(0, symbols.size, _BLOCK):
        block = symbols[start : start + _BLOCK]
        mine = lengths[block]
        ends = np.cumsum(mine) + used
        begin = ends - mine
        word = begin >> 5
        placed = codes[block] << (64 - mine - (begin & 31)).astype(np.uint64)
        filled = np.zeros((int(ends[-1]) >> 5) + 2, dtype=np.uint64)
        heads = np.flatnonzero(np.diff(word, prepend=-1))
        filled[word[heads]] |= np.bitwise_or.reduceat(placed >> np.uint64(32), heads)
        filled[word[heads] + 1] |= np.bitwise_or.reduceat(placed & np.uint64(0xFFFFFFFF), heads)
        filled[0] |= carry
        used = int(ends[-1]) & 31
        whole = int(ends[-1]) >> 5
        words.append(filled[:whole])
        carry = filled[whole]
    total = sum(part.size for part in words) * 32 + used
    data = b"".join(part.astype(">u4").tobytes() for part in words) + int(carry).to_bytes(4, "big")
    return data[: (total + 7) // 8]


def _read(payload: Buffer, count: int, book: Codebook, kind: np.dtype[Any]) -> Numbers:
    """Segment by segment: the code at every bit is looked up, then the chain of codes is followed by doubling."""
    if count > 8 * len(payload):
        raise refused(f"{count:,} symbols cannot stand in {len(payload):,} bytes of codes")
    result = np.empty(count, dtype=kind)
    pairs = _pairs(payload)
    done, at = 0, 0
    while done < count:
        peek = _peek(pairs, at, _SEGMENT)
        lengths = _lengths_at(peek, book)
        chain = _chain(lengths, count - done)
        mine = lengths[chain[:-1]]
        ranks = book.rank[mine] + (peek[chain[:-1]] >> (LONGEST - mine)) - book.first[mine]
        result[done : done + mine.size] = book.order[ranks]
        done += mine.size
        at += int(chain[-1])
    if (at + 7) // 8 != len(payload) or (at % 8 and payload[-1] & (0xFF >> at % 8)):
        raise refused(f"the codes end at bit {at:,} of {8 * len(payload):,}")
    return result


def _pairs(payload: Buffer) -> NDArray[np.uint64]:
    """Word i and the one after it as 64 bits, with zeros behind the end."""
    words = np.frombuffer(bytes(payload) + bytes(-len(payload) % 4 + 8), dtype=">u4").astype(np.uint64)
    return words[:-1] << np.uint64(32) | words[1:]


def _peek(pairs: NDArray[np.uint64], at: int, size: int) -> NDArray[np.int64]:
    """The 32 bits that begin at each of `size` bits from `at` on."""
    bits = np.arange(at, at + size)
    shift = (32 - (bits & 31)).astype(np.uint64)
    found = pairs[np.minimum(bits >> 5, pairs.size - 1)] >> shift & np.uint64(0xFFFFFFFF)
    result: NDArray[np.int64] = found.astype(np.int64)
    return result


def _lengths_at(peek: NDArray[np.int64], book: Codebook) -> Lengths:
    """The length of the code that begins at each bit."""
    used = np.unique(book.lengths[book.order])
    lengths = np.full(peek.size, used[0], dtype=np.int64)
    for length in used[1:]:
        lengths[peek >= book.first[length] << (LONGEST - length)] = length
    return lengths


def _chain(lengths: Lengths, most: int) -> NDArray[np.int64]:
    """Where the codes begin that lie in the segment, at most `most`, and where the one after them does."""
    size = lengths.size
    jump = np.arange(size + LONGEST + 1)
    jump[:size] += lengths
    found = np.zeros(1, dtype=np.int64)
    while found[-1] < size and found.size <= most:
        found = np.concatenate([found, jump[found]])
        jump = jump[jump]
    return found[: min(int(np.searchsorted(found, size)), most) + 1]


__all__ = ["LONGEST", "Codebook", "Huffman", "code_lengths"]
