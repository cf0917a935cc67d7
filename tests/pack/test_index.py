"""Every index encoding passes the suite that ships with the package; hand-computed examples; the formulas of size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from secateurs.base.errors import ArtifactError
from secateurs.pack.coded import Bools
from secateurs.pack.index import ENCODINGS, Grid, Mask
from secateurs.testing.encodings import EncodingConformance


class TestRelative(EncodingConformance):
    encoding = "relative"


class TestBitmap(EncodingConformance):
    encoding = "bitmap"


class TestContext(EncodingConformance):
    encoding = "context"


class TestCsr(EncodingConformance):
    encoding = "csr"


def grouped() -> Iterator[Bools]:
    rng = np.random.default_rng(0)
    for rows, columns, size in [(4, 16, 2), (3, 13, 4), (5, 19, 8), (1, 8, 8), (2, 64, 64)]:
        groups = rng.random((rows, -(-columns // size))) < 0.5
        groups[0, 0] = True
        yield np.repeat(groups, size, axis=1)[:, :columns]
    yield np.broadcast_to((rng.random((4, 6)) < 0.5)[:, :, None, None], (4, 6, 3, 3)).copy()


class TestGroups(EncodingConformance):
    encoding = "groups"
    fits = staticmethod(grouped)


def strided() -> Iterator[Bools]:
    rng = np.random.default_rng(0)
    for outputs, inputs, taps in [(4, 3, 9), (1, 5, 25), (6, 4, 1), (2, 2, 3)]:
        start, stride = rng.integers(0, taps + 1, inputs), rng.integers(1, taps + 1, inputs)
        distance = np.arange(taps) - start[:, None]
        kept = (distance >= 0) & (distance % stride[:, None] == 0)
        yield np.broadcast_to(kept, (outputs, inputs, taps)).copy()


class TestStrided(EncodingConformance):
    encoding = "strided"
    fits = staticmethod(strided)


def test_every_encoding_is_in_this_file() -> None:
    tested = {kind.encoding for kind in EncodingConformance.__subclasses__()}
    assert tested == set(ENCODINGS)
    assert len({ENCODINGS[name].code for name in ENCODINGS}) == len(ENCODINGS)
    assert all(ENCODINGS[name].code > 0 for name in ENCODINGS)


def at(size: int, *positions: int) -> Mask:
    kept = np.zeros(size, dtype=np.bool_)
    kept[list(positions)] = True
    return Mask.of(kept)


def test_gaps_of_the_worked_example() -> None:
    index = ENCODINGS["relative"].encode(at(50, 0, 5, 40), (4, 5))
    assert index.parameters == (4, 5)
    assert index.fields[0].numbers.tolist() == [0, 4, 15, 15, 2]
    assert index.real is not None and index.real.tolist() == [True, True, False, False, True]
    assert (np.cumsum(index.fields[0].numbers + 1) - 1).tolist() == [0, 5, 21, 37, 40]


@pytest.mark.parametrize("bits", range(1, 17))
def test_fillers_are_those_of_the_slow_rule(bits: int) -> None:
    """Gap above 2^B: filler of 2^B - 1, subtract 2^B, repeat."""
    rng = np.random.default_rng(bits)
    positions = np.cumsum(rng.integers(1, 3 << bits, 40))
    positions[0] = (1 << bits) - 1  # a gap of exactly 2^B needs no filler
    positions.sort()
    stored, before = [], -1
    for position in positions.tolist():
        gap = position - before
        while gap > 1 << bits:
            stored.append((1 << bits) - 1)
            gap -= 1 << bits
        stored.append(gap - 1)
        before = position
    mask = at(int(positions[-1]) + 70, *positions)
    index = ENCODINGS["relative"].encode(mask, (bits, 0))
    assert index.fields[0].numbers.tolist() == stored
    assert index.fillers == len(stored) - len(set(positions.tolist()))


def test_an_empty_layer_has_no_entries_and_no_filler_trails() -> None:
    assert ENCODINGS["relative"].encode(at(1000), (4, 0)).fields[0].numbers.size == 0
    assert ENCODINGS["relative"].encode(at(1000, 0), (4, 0)).fields[0].numbers.tolist() == [0]


def test_sizes_are_those_of_the_formulas() -> None:
    """Groups: groups * b_idx + (rows + 1) * b_ptr; sparse rows: nnz * b_idx + (rows + 1) * b_ptr."""
    kept = np.zeros((4, 32), dtype=np.bool_)
    kept[0, 8:16] = kept[2, 0:8] = kept[2, 24:32] = True
    mask = Mask.of(kept)
    assert ENCODINGS["groups"].choices(mask) == [(8,)]
    assert ENCODINGS["groups"].bits(mask, (8,)) == 3 * 2 + 5 * 5
    assert ENCODINGS["csr"].bits(mask, ()) == 24 * 5 + 5 * 5
    assert ENCODINGS["bitmap"].bits(mask, (8,)) == 128
    index = ENCODINGS["groups"].encode(mask, (8,))
    assert [field.numbers.tolist() for field in index.fields] == [[0, 1, 1, 3, 3], [1, 0, 3]]
    index = ENCODINGS["csr"].encode(mask, ())
    assert index.fields[0].numbers.tolist() == [0, 8, 8, 24, 24]
    assert index.fields[1].numbers.tolist() == [*range(8, 16), *range(8), *range(24, 32)]


def test_a_group_at_the_end_of_a_row_has_its_real_elements() -> None:
    kept = np.zeros((2, 10), dtype=np.bool_)
    kept[0, 8:] = kept[1, :4] = True
    mask = Mask.of(kept)
    assert ENCODINGS["groups"].choices(mask) == [(4,)]
    index = ENCODINGS["groups"].encode(mask, (4,))
    assert index.fields[1].numbers.tolist() == [2, 0]


def test_taps_of_a_3x3_kernel_with_stride_2() -> None:
    kept = np.zeros((2, 2, 3, 3), dtype=np.bool_)
    kept.reshape(2, 2, 9)[:, 0, ::2] = True
    index = ENCODINGS["strided"].encode(Mask.of(kept), ())
    assert [field.numbers.tolist() for field in index.fields] == [[0, 9], [1, 8]]
    kept[0, 0, 0, 1] = True
    assert ENCODINGS["strided"].choices(Mask.of(kept)) == []


def test_grids() -> None:
    assert Grid.of((4, 3, 2, 5)) == Grid(4, 30, 10)
    assert Grid.of((4, 3)) == Grid(4, 3, 1)
    assert Grid.of((4,)) == Grid(1, 4, 1)
    assert Grid.of(()) == Grid(1, 1, 1)
    assert Grid.of((4, 3, 0)).maps == 0


def test_a_filler_cannot_be_the_last_entry() -> None:
    relative = ENCODINGS["relative"]
    stored = np.array([15, 15], dtype=np.uint16)
    positions, maybe = relative.decode(Grid(1, 100), 1, (4, 2), lambda count, bound: stored)
    assert positions.tolist() == [15, 31] and maybe is not None and maybe.tolist() == [True, False]
    with pytest.raises(ArtifactError, match="lead to position 31 of 20"):
        relative.decode(Grid(1, 20), 2, (4, 2), lambda count, bound: stored)


@pytest.mark.parametrize(
    ("name", "parameters"), [("bitmap", (8,)), ("csr", ()), ("groups", (20,)), ("strided", ()), ("relative", (4, 0))]
)
def test_reading_an_index_takes_little_memory(name: str, parameters: tuple[int, ...]) -> None:
    """Whoever forges a file chooses the index; positions are of 32 bits, and few of them are there twice."""
    mask = Mask.of(np.ones((1000, 200, 20), dtype=np.bool_))
    index = ENCODINGS[name].encode(mask, parameters)
    small = [field.numbers.astype("u1" if field.bound <= 256 else "<u2" if field.bound <= 1 << 16 else "<u4")
             for field in index.fields]  # fmt: skip
    fields, count = iter(small), mask.count
    tracemalloc.start()
    try:
        positions, _ = ENCODINGS[name].decode(mask.grid, count, index.parameters, lambda *_: next(fields))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(positions, mask.positions)
    assert peak <= 11 * count


def test_grids_without_entries_may_be_wide() -> None:
    for grid in (Grid(0, 1 << 31), Grid(0, (1 << 32) - 1, 3)):
        for name in ("csr", "groups"):
            parameters = (2,) * ENCODINGS[name].parameters
            ENCODINGS[name].check(parameters, grid, 0)
            positions, _ = ENCODINGS[name].decode(grid, 0, parameters, lambda count, bound: np.zeros(count, np.uint8))
            assert positions.size == 0
