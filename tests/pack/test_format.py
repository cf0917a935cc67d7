"""A second reader, written from the specification alone, agrees with the package bit for bit."""

from __future__ import annotations

import ast
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack import format_reader

import secateurs as sec
from secateurs.pack.coded import Coded, Scaled, Shared
from secateurs.pack.container import MAGIC, read, to_bytes, write
from secateurs.pack.dtypes import DTYPES, FLOATS, TABLES
from secateurs.pack.entropy import CODERS
from secateurs.pack.index import ENCODINGS
from secateurs.testing.damage import sealed
from secateurs.testing.hostile import LIMIT, mutant, outcome
from secateurs.testing.packed import coded_tensors, sample_tensors


def agree(data: bytes) -> None:
    mine, other = read(data), format_reader.read(data)
    assert other.metadata == mine.metadata
    assert other.texts == {text.name: mine.text(text.name) for text in mine.texts}
    assert [name for tensor in other.tensors for name in tensor.names] == list(mine)
    for tensor in other.tensors:
        name = tensor.names[0]
        values, coded = mine[name], mine.coded(name)
        assert (tuple(tensor.shape), tensor.type) == (values.shape, coded.dtype)
        kept = np.array([entry is not None for entry in tensor.entries], dtype=bool).reshape(values.shape)
        assert kept.all() if coded.kept is None else np.array_equal(kept, coded.kept)
        raw = [_bits(entry, values.dtype) for entry in tensor.entries]
        assert raw == _quiet(values, tensor.entries)


def _quiet(values: np.ndarray, entries: list[bytes | float | None]) -> list[bytes]:
    """The bytes of each, with the NaNs quiet that Python's floats, of which the second reader makes use, make quiet."""
    size = values.dtype.itemsize
    found = [values.tobytes()[at : at + size] for at in range(0, values.nbytes, size)]
    nan = [isinstance(entry, float) and math.isnan(entry) for entry in entries]
    return [item[:2] + bytes([item[2] | 0x40]) + item[3:] if is_nan else item
            for item, is_nan in zip(found, nan, strict=True)]  # fmt: skip


def _bits(entry: bytes | float | None, dtype: np.dtype) -> bytes:
    if entry is None:
        return bytes(dtype.itemsize)
    return entry if isinstance(entry, bytes) else format_reader.octets(entry, "float32")


@pytest.mark.parametrize("name", sample_tensors())
def test_samples(name: str) -> None:
    agree(to_bytes({name: sample_tensors()[name]}))


def test_a_file_of_many_with_texts_and_ties() -> None:
    tensors: Mapping[str, Coded] = {name: sample_tensors()[name] for name in ("raw.dense", "raw.gaps", "shared.dense")}
    agree(to_bytes(tensors, {"a": [1, "ü"]}, tied={"raw.x": "raw.gaps"}, texts={"graph": "node " * 99, "n": "x"}))
    agree(to_bytes({}))


@given(st.lists(coded_tensors(), max_size=3))
@settings(max_examples=60)
def test_random_tensors(tensors: list[Coded]) -> None:
    agree(to_bytes({f"layer{place}.weight": tensor for place, tensor in enumerate(tensors)}))


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_codes_are_rounded_to_the_type_of_their_tensor(dtype: str, tmp_path: Path) -> None:
    """Halfway between two numbers, too large, too small, and what the products of integers and scales are."""
    book = [0.0, 1 / 3, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 65519.0, 65520.0, 3.4e38, 6e-8, -2.9e-8]
    shared = Coded((11,), Shared(np.arange(11), np.array(book, dtype=np.float32)), dtype=dtype)
    rng = np.random.default_rng(0)
    scales = rng.random(5).astype(np.float32) * np.float32(1000)
    scaled = Coded((4, 5), Scaled(rng.integers(-127, 128, 20), scales, 8, 1), dtype=dtype)
    path = write(tmp_path / "m.sec", {"shared": shared, "scaled": scaled})
    state = sec.unpack(path)
    for tensor in format_reader.read(path.read_bytes()).tensors:
        mine = state[tensor.names[0]]  # type: ignore[index]
        raw = mine.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[mine.element_size()]).numpy().tobytes()
        assert raw == b"".join(format_reader.octets(entry, tensor.type) for entry in tensor.entries)


@pytest.mark.parametrize("start", range(0, 3000, 500))
def test_forged_files_that_are_read_are_read_alike(start: int) -> None:
    """What gets past the checks of the package, the second reader takes for the same."""
    alike = 0
    for found in (mutant(number, "tensors") for number in range(start, start + 500)):
        if found.signed and outcome(found) != "refused":
            records = read(found.data, limit=LIMIT).records
            if sum(record.size for record in records) < 20_000:
                agree(found.data)
                alike += 1
    assert alike > 50


@pytest.mark.parametrize("turned", [False, True])
def test_contexts_in_both_directions(turned: bool) -> None:
    """Runs of kept entries, and the same again twenty steps on."""
    rng = np.random.default_rng(0)
    runs = np.repeat(rng.random((10, 30)) < 0.1, 2, axis=0)
    kept = np.concatenate([runs, runs ^ (rng.random(runs.shape) < 0.01)])
    kept = kept if turned else np.ascontiguousarray(kept.T)
    count = int(np.count_nonzero(kept))
    tensor = Coded(kept.shape, Shared(rng.integers(0, 4, count), np.arange(4, dtype=np.float32)), kept)
    data = to_bytes({"w": tensor})
    form, _ = read(data).record("w").parameters
    assert (form % 2 == 1, form // 2) == (turned, 20)
    agree(data)


def test_every_coder_encoding_and_content_is_among_the_samples() -> None:
    records = [read(to_bytes({"w": tensor})).records[0] for tensor in sample_tensors().values()]
    assert {stream.coder for record in records for stream in record.streams} == {CODERS[name].code for name in CODERS}
    used = {record.index for record in records}
    assert used >= {0} | {ENCODINGS[name].code for name in ENCODINGS if name != "csr"}
    assert {record.content for record in records} == {0, 1, 2, 3}
    assert {record.table for record in records} == set(TABLES)


def test_sparse_rows_which_are_rarely_the_smallest() -> None:
    """By hand: a 2 x 3 matrix with 7 at (0, 2) and 9 at (1, 0), as bytes."""
    header = bytes([0, 1])  # no text, one tensor
    header += bytes([1, 0, 1]) + b"w" + bytes([2, 2, 3])  # one name, shape 2 x 3
    header += bytes([1, 0, 3, 2])  # uint8, raw, sparse rows, 2 kept
    header += bytes([0, 1, 1, 0, 1, 1])  # two packed streams
    body = bytes([2, 0b10_01_00, 2, 0b00_10, 7, 9])  # pointers 0, 1, 2; columns 2, 0

    data = sealed(header + zlib.crc32(body).to_bytes(4, "little"), body)
    assert read(data)["w"].tolist() == [[0, 0, 7], [9, 0, 0]]
    agree(data)


def test_the_second_reader_shares_nothing_with_the_first() -> None:
    tree = ast.parse((Path(__file__).parent / "format_reader.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert modules == {"__future__", "dataclasses", "json", "math", "struct", "typing", "zlib"}


def test_the_specification_names_what_there_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    assert MAGIC.hex(" ").upper() in text
    flat = " ".join(text.split())
    assert ", ".join(f"{code} {name}" for code, name in enumerate(DTYPES)) in flat
    for name in ENCODINGS:
        assert f"| {ENCODINGS[name].code} | {name} |" in text
    for name in CODERS:
        assert f"**{CODERS[name].code}, {name}" in text.lower()
