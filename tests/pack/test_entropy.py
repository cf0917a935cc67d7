"""Coders of integer streams against slow ones written here, hand-computed sizes, and each other."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from secateurs.base.errors import ArtifactError
from secateurs.pack.bits import pack_bits, unpack_bits
from secateurs.pack.entropy import CODERS, decode_stream, encode_stream, estimate_stream
from secateurs.pack.entropy.ans import quantise
from secateurs.pack.entropy.coder import count_symbols
from secateurs.pack.entropy.huffman import code_lengths

streams = st.integers(1, 300).flatmap(
    lambda bound: arrays.arrays(np.int64, st.integers(1, 400), elements=st.integers(0, bound - 1))
)


def skewed(count: int, seed: int = 0) -> np.ndarray:
    return np.minimum(np.random.default_rng(seed).geometric(0.3, count) - 1, 40)


@pytest.mark.parametrize("width", range(33))
def test_packed_numbers_stand_lowest_bit_first(width: int) -> None:
    rng = np.random.default_rng(width)
    for count in (0, 1, 7, 8, 9, 1000):
        numbers = rng.integers(0, 1 << width, count, dtype=np.uint64)
        whole = sum(int(number) << width * index for index, number in enumerate(numbers))
        data = pack_bits(numbers, width)
        assert data == whole.to_bytes((count * width + 7) // 8, "little")
        assert unpack_bits(data, count, width).tolist() == numbers.tolist()


def test_packing_goes_on_across_blocks() -> None:
    numbers = np.random.default_rng(0).integers(0, 32, (1 << 16) + 13)
    assert unpack_bits(pack_bits(numbers, 5), numbers.size, 5).tolist() == numbers.tolist()


def test_nibbles_low_first() -> None:
    assert pack_bits(np.array([4, 15, 15, 15, 2]), 4) == bytes([0xF4, 0xFF, 0x02])


def test_unused_bits_and_other_lengths_are_refused() -> None:
    with pytest.raises(ArtifactError, match="behind the last"):
        unpack_bits(b"\x88", 1, 4)
    with pytest.raises(ArtifactError, match="cannot stand in"):
        unpack_bits(b"\x08\x00", 1, 4)


def test_huffman_of_5_2_1_1_takes_15_bits() -> None:
    counts = np.array([5, 2, 1, 1])
    lengths = code_lengths(counts)
    assert lengths.tolist() == [1, 2, 3, 3]
    assert int((lengths * counts).sum()) == 15
    symbols = np.array([0, 0, 0, 0, 0, 1, 1, 2, 3])
    stream = CODERS["huffman"].encode(symbols, counts, 4)
    assert stream.payload == bytes([0b00000_101, 0b0_110_111_0])
    assert stream.table == bytes([4, 2, 0b11_11_10_01])


def test_a_single_symbol_takes_one_bit_each() -> None:
    stream = CODERS["huffman"].encode(np.full(9, 3), np.array([0, 0, 0, 9]), 4)
    assert stream.payload == bytes(2)
    assert decode_stream(1, stream.table, stream.payload, 9, 4).tolist() == [3] * 9


def entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


@given(streams)
@settings(max_examples=50)
def test_huffman_is_optimal_and_within_a_bit_of_the_entropy(symbols: np.ndarray) -> None:
    counts = np.bincount(symbols)
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    total = heap[0] if len(heap) == 1 else 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    bits = int((code_lengths(counts) * counts).sum())
    assert bits == total
    if np.count_nonzero(counts) > 1:
        assert entropy(counts) <= bits / symbols.size + 1e-9 < entropy(counts) + 1 + 1e-9


@given(streams, st.sampled_from(sorted(CODERS)))
@settings(max_examples=200)
def test_every_coder_gives_back_what_it_was_given(symbols: np.ndarray, name: str) -> None:
    bound = int(symbols.max()) + 1
    counts = count_symbols(symbols, bound)
    estimate = CODERS[name].estimate(counts, bound)
    if estimate is None:
        assert name == "ans" and np.count_nonzero(counts) < 2
        return
    stream = CODERS[name].encode(symbols, counts, bound)
    assert stream == CODERS[name].encode(symbols.copy(), counts, bound)
    assert abs(stream.bytes - estimate) <= 8
    assert decode_stream(CODERS[name].code, stream.table, stream.payload, symbols.size, bound).tolist() == (
        symbols.tolist()
    )


@pytest.mark.parametrize("name", sorted(CODERS))
@pytest.mark.parametrize("count", [300_000, (1 << 18) + 1])
def test_long_streams_cross_every_block(name: str, count: int) -> None:
    symbols = skewed(count)
    stream = CODERS[name].encode(symbols, np.bincount(symbols), 41)
    assert np.array_equal(decode_stream(CODERS[name].code, stream.table, stream.payload, count, 41), symbols)


def test_the_cheapest_is_taken() -> None:
    for symbols in (skewed(5000), np.arange(64), np.zeros(10, dtype=int), np.arange(70_000), skewed(20)):
        bound = int(symbols.max()) + 1
        counts = count_symbols(symbols, bound)
        sizes = [
            CODERS[name].encode(symbols, counts, bound).bytes
            for name in CODERS
            if (counts.size and CODERS[name].estimate(counts, bound) is not None) or name == "packed"
        ]
        stream = encode_stream(symbols, bound)
        assert stream.bytes == min(sizes)
        assert abs(estimate_stream(symbols, bound) - min(sizes)) <= 8
    assert encode_stream((np.arange(5000) % 20 == 0).astype(int), 2).coder == "ans"
    assert encode_stream(np.arange(64), 64).coder == "packed"
    assert encode_stream(np.zeros(0, dtype=int), 1).bytes == 1


def test_ans_comes_close_to_the_entropy() -> None:
    symbols = (np.random.default_rng(0).random(100_000) < 0.05).astype(int)
    stream = CODERS["ans"].encode(symbols, np.bincount(symbols), 2)
    assert 8 * len(stream.payload) < 1.003 * entropy(np.bincount(symbols)) * symbols.size + 64


@given(streams, st.sampled_from([8, 10, 12, 14, 16, 18]))
@settings(max_examples=50)
def test_frequencies_sum_and_forget_no_symbol(symbols: np.ndarray, bits: int) -> None:
    counts = np.bincount(symbols)
    frequencies = quantise(counts, bits)
    if frequencies is None:
        assert np.count_nonzero(counts) > 1 << (bits - 1)
        return
    assert frequencies.sum() == 1 << bits
    assert ((frequencies > 0) == (counts > 0)).all()


@given(streams, st.sampled_from(sorted(CODERS)), st.data())
@settings(max_examples=200)
def test_altered_streams_are_refused_or_give_symbols_in_range(
    symbols: np.ndarray, name: str, data: st.DataObject
) -> None:
    bound = int(symbols.max()) + 1
    counts = count_symbols(symbols, bound)
    if CODERS[name].estimate(counts, bound) is None:
        return
    stream = CODERS[name].encode(symbols, counts, bound)
    table, payload = bytearray(stream.table), bytearray(stream.payload)
    target = data.draw(st.sampled_from([part for part in (table, payload) if part]))
    target[data.draw(st.integers(0, len(target) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    count = symbols.size + data.draw(st.integers(-1, 1))
    try:
        found = decode_stream(CODERS[name].code, bytes(table), bytes(payload), count, bound)
    except ArtifactError:
        return
    assert found.shape == (count,) and (not count or int(found.max()) < bound)


def test_there_is_no_coder_nine() -> None:
    with pytest.raises(ArtifactError, match="no coder 9"):
        decode_stream(9, b"", b"", 0, 1)
