"""Floating-point values split into exponents and the rest: bit for bit, smaller or not at all, refused when forged."""

from __future__ import annotations

import tracemalloc
import zlib
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack import format_reader

import secateurs as sec
from secateurs.pack.baseline import gzip_bytes
from secateurs.pack.bits import Numbers
from secateurs.pack.coded import Coded, Raw
from secateurs.pack.container import PREFIX, crc32, header_bytes, read, to_bytes
from secateurs.pack.dtypes import in_memory
from secateurs.pack.encode import _octets, encode
from secateurs.pack.ledger import ledger
from secateurs.pack.plain import plain
from secateurs.pack.record import RAW, SPLIT, Record
from secateurs.pack.split import LAYOUTS, bounds, joined, split
from secateurs.testing.damage import sealed
from secateurs.testing.packed import same_coded

TYPES = sorted(LAYOUTS)


def normal(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Normal numbers of standard deviation 0.05; bfloat16 as bits."""
    found = 0.05 * np.random.default_rng(seed).standard_normal(shape)
    return (found.astype("f4").view("u4") >> 16).astype("u2") if dtype == "bfloat16" else found.astype(dtype)


def unsplit(tensor: Coded) -> int:
    """Bytes of a dense tensor and its record when values are stored as they are."""
    octets = _octets(tensor)
    return octets.size + len(Record((), tensor.shape, tensor.dtype, RAW).to_bytes(b""))


@st.composite
def patterns(draw: st.DrawFn) -> tuple[str, Numbers]:
    """A type and bits of up to 100 values, of which some are the same in all of them."""
    dtype = draw(st.sampled_from(TYPES))
    kind = np.dtype(f"<u{in_memory(dtype).itemsize}")
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    free, fixed = (int.from_bytes(rng.bytes(kind.itemsize), "little") for _ in range(2))
    free = draw(st.sampled_from([free, -1 << draw(st.integers(0, 31)), -1, 0])) & ((1 << 8 * kind.itemsize) - 1)
    fixed = draw(st.sampled_from([fixed, 0])) & ~free
    count = draw(st.sampled_from([0, 1, 2, 7, 20, 100]))
    return dtype, (rng.integers(0, 1 << 8 * kind.itemsize, count, dtype=kind) & kind.type(free)) | kind.type(fixed)


@given(patterns())
@settings(max_examples=300)
def test_parts_give_every_bit_back(given: tuple[str, Numbers]) -> None:
    dtype, bits = given
    parts = split(bits, dtype)
    assert joined(parts, dtype).tobytes() == bits.tobytes()
    wide, fraction = LAYOUTS[dtype]
    for numbers, bound in zip((parts.exponents, parts.rests), bounds(dtype, parts.least, parts.spare), strict=True):
        assert numbers.size == bits.size and (not bits.size or int(numbers.max()) < bound)
    assert 0 <= parts.least < 1 << wide and 0 <= parts.spare <= fraction
    if bits.size:
        assert parts.exponents.min() == 0
        assert parts.spare == fraction or (parts.rests & 1).any()


@given(patterns(), st.sampled_from([None, 0.0, 0.1, 0.6, 0.99]))
@settings(max_examples=40)
def test_files_give_every_bit_back_and_no_record_grows(given: tuple[str, Numbers], sparse: float | None) -> None:
    dtype, bits = given
    values = bits.astype(bits.dtype.newbyteorder("="), copy=False).view(in_memory(dtype))
    kept = None
    if sparse is not None:
        kept = np.zeros(max(bits.size, int(bits.size / (1 - sparse))), dtype=bool)
        kept[np.random.default_rng(0).permutation(kept.size)[: bits.size]] = True
    tensor = Coded((bits.size,) if kept is None else kept.shape, Raw(values), kept, dtype)
    data = to_bytes({"w": tensor})
    same_coded(read(data).coded("w"), tensor)
    if kept is None:
        assert encode(tensor).size <= unsplit(tensor)
    [other] = format_reader.read(data).tensors
    found = [bytes(in_memory(dtype).itemsize) if entry is None else entry for entry in other.entries]
    assert b"".join(item for item in found if isinstance(item, bytes)) == tensor.decode().tobytes()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 16, 33, 64, 128, 300])
@pytest.mark.parametrize("dtype", TYPES)
def test_small_tensors_do_not_grow(dtype: str, count: int) -> None:
    for seed in range(3):
        for values in (normal((count,), dtype, seed), np.full(count, normal((1,), dtype, seed)[0])):
            tensor = plain(values, dtype)
            assert encode(tensor).size <= unsplit(tensor)


def test_the_same_value_everywhere_takes_no_more_than_its_bits() -> None:
    for value in (0.0, 1.0, -0.75, np.float32(0.1), np.inf, np.nan):
        tensor = Coded((1000,), Raw(np.full(1000, value, dtype=np.float32)))
        data = to_bytes({"w": tensor})
        assert read(data).records[0].content == SPLIT
        same_coded(read(data).coded("w"), tensor)
    assert encode(Coded((1000,), Raw(np.ones(1000, dtype=np.float32)))).size < 30


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.13), ("float16", 0.12), ("bfloat16", 0.28)])
def test_normal_weights_become_smaller(dtype: str, least: float) -> None:
    """Of 8 bits of an exponent about 2.6 are news, of 5 bits of a float16 nearly as many."""
    tensor = Coded((40, 50, 3, 3), Raw(normal((18_000,), dtype)), dtype=dtype)
    found = encode(tensor)
    assert found.record.content == SPLIT
    assert found.size <= (1 - least) * unsplit(tensor)


def test_random_bits_stay_as_they_are() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 32, 5000, dtype=np.uint32).view(np.float32)
    tensor = Coded((5000,), Raw(values))
    found = encode(tensor)
    assert found.record.content == RAW and found.size == unsplit(tensor)


def test_numbers_of_half_precision_take_half_of_single_precision() -> None:
    half = normal((100, 100), "float16")
    wide, narrow = (encode(plain(half.astype(dtype), dtype)) for dtype in ("float32", "float16"))
    assert wide.record.spare == 13
    assert wide.size < 1.02 * narrow.size


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_a_sparse_network_is_smaller_than_in_gzip(share: float) -> None:
    state = {f"layer{place}.weight": normal((64, 32, 3, 3), seed=place) * (place + 1) for place in range(3)}
    for values in state.values():
        values[np.abs(values) < np.quantile(np.abs(values), share)] = 0
    state |= {f"layer{place}.bias": normal((64,), seed=place) for place in range(3)}
    packed = to_bytes({name: plain(values, "float32") for name, values in state.items()})
    assert len(packed) < 0.95 * gzip_bytes(state)
    for name, values in state.items():
        assert np.array_equal(read(packed)[name], values)


@pytest.mark.parametrize("zeros", [0.0, 0.0005, 0.02, 0.1, 0.4, 0.98, 1.0])
@pytest.mark.parametrize("size", [64, 9000])
@pytest.mark.parametrize("dtype", TYPES)
def test_zeros_are_left_out_where_that_is_smaller(dtype: str, size: int, zeros: float) -> None:
    values = normal((size,), dtype)
    values[np.random.default_rng(1).permutation(size)[: round(zeros * size)]] = 0
    kept = values != 0
    forms = [Coded((size,), Raw(values), dtype=dtype), Coded((size,), Raw(values[kept]), kept, dtype)]
    assert encode(plain(values, dtype)).size == min(encode(form).size for form in forms)


def test_older_readers_can_read_what_has_no_split_values() -> None:
    whole = Coded((300,), Raw(np.arange(300)), dtype="int64")
    tensor = Coded((300,), Raw(normal((300,))))
    assert to_bytes({"w": whole})[8] == 2 and read(to_bytes({"w": whole}))["w"].tolist() == list(range(300))
    data = to_bytes({"w": tensor, "v": whole})
    assert data[8] == 3
    older = bytearray(data)
    older[8] = 2
    end = PREFIX + int.from_bytes(data[12:16], "little")
    older[end : end + 4] = crc32(bytes(older[:end])).to_bytes(4, "little")
    with pytest.raises(sec.ArtifactError, match="`w` has content 3"):
        read(bytes(older))


def test_a_file_of_version_2() -> None:
    """Sparse raw float32, float16 that would be split today, shared weights: as the writer of version 2 wrote them."""
    data = bytes.fromhex(
        "895345430d0a1a0a020000003e000000c2000000000000000003010008612e77656967687402020a0b0001030503000102ca15248b01020462"
        "6961730128090000851e9e0d0100016201040b1100020001013ef1c24433c3379104210e0000000000803f0000c0bf0000803e"
        + 40 * "003c" + "0106003800c0"
    )  # fmt: skip
    packed = read(data)
    packed.verify()
    assert packed["a.weight"].tolist() == [[0, 1, 0, 0, -1.5, 0, 0, 0, 0, 0], [0] * 9 + [0.25]]
    assert packed["a.bias"].tolist() == [1.0] * 40 and packed["b"].tolist() == [0.5, -2.0, -2.0, 0.5]
    assert len(format_reader.read(data).tensors) == 3
    again = to_bytes({name: packed.coded(name) for name in packed})
    assert again[8] == 3 and len(again) < len(data) - 60


def test_a_file_by_hand() -> None:
    """The example of the specification: 1.0, -1.5, 0.25, two packed streams of 2 bits a symbol."""
    header = bytes([0, 1, 1, 0, 1]) + b"w" + bytes([1, 3, 11, 3, 0, 125, 22, 0, 1, 1, 0, 1, 1])
    body = bytes([2, 0b00_10_10, 2, 0b00_11_00])
    data = sealed(header + zlib.crc32(body).to_bytes(4, "little"), body)
    assert read(data)["w"].tolist() == [1.0, -1.5, 0.25]
    [tensor] = format_reader.read(data).tensors
    assert tensor.entries == [np.float32(value).tobytes() for value in (1.0, -1.5, 0.25)]


def forged(tensor: Coded, body: bytes | None = None, **facts: object) -> bytes:
    """The file of one tensor with other facts in its record, or other bytes, and checksums that fit."""
    packed = read(to_bytes({"w": tensor}))
    body = packed.data[packed.header :].tobytes() if body is None else body
    record = replace(packed.records[0], crc=crc32(body), **facts)  # type: ignore[arg-type]
    return sealed(header_bytes((), [record]), body)


def test_forged_exponents_rests_and_lengths_are_refused() -> None:
    values = np.ldexp(np.float32(1.5), np.arange(40) % 4 - 2) * np.where(np.arange(40) % 3, 1, -1)
    tensor = Coded((40,), Raw(values.astype(np.float32)))
    packed = read(to_bytes({"w": tensor}))
    record = packed.records[0]
    assert (record.content, record.least, record.spare) == (SPLIT, 125, 22)
    same_coded(read(forged(tensor)).coded("w"), tensor)
    for facts, message in (
        ({"least": 254}, "below 2 are said to be wider"),
        ({"spare": 24}, "fractions less 24 bits"),
        ({"spare": 23}, "holds 4 where 2 is the most"),
        ({"dtype": "float16", "least": 32, "spare": 0}, "exponents from 32"),
        ({"dtype": "int32"}, "content 3 of type 6"),
        ({"dtype": "float64"}, "content 3 of type 12"),
        ({"shape": (41,)}, "41 numbers"),
        ({"streams": record.streams[:1]}, "header ends after"),
        ({"streams": (record.streams[0], replace(record.streams[1], payload=6))}, "parts end"),
    ):
        with pytest.raises(sec.ArtifactError, match=message):
            read(forged(tensor, **facts))["w"]  # type: ignore[arg-type]
    body = bytearray(packed.data[packed.header :].tobytes())
    body[0] = 3  # a wider symbol of exponents than its bytes hold
    with pytest.raises(sec.ArtifactError, match="cannot stand in"):
        read(forged(tensor, bytes(body)))["w"]


def test_a_bomb_is_refused_before_anything_is_allocated() -> None:
    tensor = Coded((1000,), Raw(np.ones(1000, dtype=np.float32)))
    for shape in ((1 << 40,), (1 << 20, 1 << 20)):
        data = forged(tensor, shape=shape)
        assert prod(shape) == 1 << 40 and len(data) < 100
        tracemalloc.start()
        with pytest.raises(sec.ArtifactError, match="above the limit"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_the_ledger_counts_split_values_as_codes() -> None:
    tensors = {"a.weight": plain(normal((30, 40)), "float32"), "a.bias": plain(normal((400,)), "float32")}
    packed = read(to_bytes(tensors))
    book = ledger(packed)
    assert sum(row.bytes for row in book.rows) == book.bytes == packed.end
    rows = {row.name: row for row in book.rows}
    for name, part in (("a.weight", "codes"), ("a.bias", "biases")):
        streams = packed.record(name).streams
        assert rows[name].form == "split dense" and len(streams) == 2
        assert rows[name].parts[part] == sum(stream.payload for stream in streams)
        assert rows[name].parts["tables"] == sum(stream.table for stream in streams)


def test_memory_stays_within_a_few_times_the_tensor() -> None:
    values = normal((1 << 20,))
    tensor = Coded(values.shape, Raw(values))
    tracemalloc.start()
    data = to_bytes({"w": tensor})
    assert tracemalloc.get_traced_memory()[1] < 4 * values.nbytes
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    assert read(data)["w"].tobytes() == values.tobytes()
    assert tracemalloc.get_traced_memory()[1] - before < 4 * values.nbytes
    tracemalloc.stop()
