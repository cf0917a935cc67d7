"""Files that are cut short, altered or forged are refused: no crash, no hang, no wrong load, no large allocation."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secateurs as sec
from secateurs.pack.coded import Coded, Raw
from secateurs.pack.container import CHECK, MAGIC, PREFIX, header_bytes, read, to_bytes
from secateurs.testing.hostile import digest, mutant, outcome, sealed, sound_files


@pytest.mark.parametrize("start", range(0, 3000, 500))
def test_mutants_by_number(start: int) -> None:
    seen: Counter[str] = Counter()
    for number in range(start, start + 500):
        found = mutant(number)
        result = outcome(found)
        assert not result.startswith("wrong"), f"mutant {number} ({found.how}): {result}"
        seen[f"{found.how} {result}"] += 1
    assert seen["body other"] and seen["body refused"] and seen["record refused"] and seen["flip refused"]


@given(st.integers(0, 1 << 62))
@settings(max_examples=300)
def test_mutants_of_any_number(number: int) -> None:
    assert not outcome(mutant(number)).startswith("wrong")


def test_every_single_bit_counts() -> None:
    data = sound_files()[-2].data
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        with pytest.raises(sec.ArtifactError):
            digest(bytes(broken))


def test_every_length_counts() -> None:
    data = sound_files()[-2].data
    for length in range(len(data)):
        with pytest.raises(sec.ArtifactError):
            read(data[:length])
    with pytest.raises(sec.ArtifactError):
        read(data + b"\0")


def test_a_bomb_is_refused_before_anything_is_allocated() -> None:
    """A few bytes that say they are 2^40 zeros: pruned away, in a bitmap of one symbol, in rows without columns."""
    for shape in ((1 << 20, 1 << 20), (1 << 40, 0), (1 << 62, 1 << 62, 1 << 62)):
        record = Coded((1, 1), Raw(np.zeros(0, dtype=np.float32)), np.zeros((1, 1), dtype=bool))
        packed = read(to_bytes({"w": record}))
        huge = replace(packed.records[0], shape=shape)
        data = sealed(header_bytes((), [huge]), packed.data[packed.header :].tobytes())
        tracemalloc.start()
        with pytest.raises(sec.ArtifactError, match=r"above the limit of 268,435,456 bytes.*larger `limit`"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_many_tensors_share_one_limit() -> None:
    tensor = Coded((100,), Raw(np.zeros(0, dtype=np.float32)), np.zeros(100, dtype=bool))
    data = to_bytes({f"w{place}": tensor for place in range(10)})
    read(data, limit=4000).verify()
    with pytest.raises(sec.ArtifactError, match="`w9`"):
        read(data, limit=3999)


def test_texts_share_the_limit_with_each_other_and_with_tensors() -> None:
    tensor = Coded((100,), Raw(np.zeros(0, dtype=np.float32)), np.zeros(100, dtype=bool))
    data = to_bytes({"w": tensor}, texts={"a": "a" * 300, "b": "b" * 300})
    read(data, limit=1000).verify()
    with pytest.raises(sec.ArtifactError, match="`w`"):
        read(data, limit=999)
    with pytest.raises(sec.ArtifactError, match="300 where 299"):
        read(data, limit=599)


def test_tensors_without_entries_count() -> None:
    """Rows without columns are free of bytes, not of work."""
    rows = Coded((1000, 0), Raw(np.zeros(0, dtype=np.float32)))
    data = to_bytes({"a": rows, "b": rows})
    read(data, limit=8000).verify()
    with pytest.raises(sec.ArtifactError, match="`b`"):
        read(data, limit=7999)


def test_a_tensor_without_a_name_is_refused() -> None:
    data = to_bytes({"x": Coded((), Raw(np.ones(1, dtype=np.float32)))})
    packed = read(data)
    header = data[PREFIX : packed.header - CHECK]
    assert header.startswith(b"\0\1\1\0\1x")
    with pytest.raises(sec.ArtifactError, match="no name"):
        read(sealed(b"\0\1\0" + header[3:], data[packed.header :]))


def test_whatever_is_wrong_the_file_is_named(tmp_path: Path) -> None:
    data = to_bytes({"x": Coded((), Raw(np.ones(1, dtype=np.float32)))}, {"a": 1})
    at = read(data).header
    for place in (20, at, len(data) - 1):  # header, text, tensor
        (tmp_path / "m.sec").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(sec.ArtifactError, match=r"Where: .*m\.sec"):
            read(tmp_path / "m.sec").verify()


def test_a_text_that_inflates_to_more_than_it_says_is_refused() -> None:
    data = to_bytes({}, texts={"note": "a" * 100_000})
    with pytest.raises(sec.ArtifactError, match="100,000 where 5,000"):
        read(data, limit=5000)
    text = read(data).texts[0]
    body = data[read(data).header :]
    for plain in (99_999, 100_001, text.stored + 1):
        lie = read(sealed(header_bytes([replace(text, plain=plain)], []), body))
        with pytest.raises(sec.ArtifactError, match="does not inflate"):
            lie.text("note")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/w", "a/b", "a\\b", "a\0b", "a..b", ".", "", "a\nb"])
def test_names_that_are_paths_are_refused(name: str) -> None:
    data = to_bytes({"x" * max(1, len(name)): Coded((), Raw(np.ones(1, dtype=np.float32)))})
    end = PREFIX + int.from_bytes(data[len(MAGIC) + 4 : len(MAGIC) + 8], "little")
    header = data[PREFIX:end]
    old = bytes([max(1, len(name))]) + b"x" * max(1, len(name))
    assert old in header
    changed = sealed(header.replace(old, bytes([len(name)]) + name.encode()), data[end + CHECK :])
    with pytest.raises(sec.ArtifactError, match="is named"):
        read(changed)


def test_a_name_twice_is_refused() -> None:
    data = to_bytes(
        {"xa": Coded((), Raw(np.ones(1, dtype=np.float32))), "xb": Coded((), Raw(np.ones(1, dtype=np.float32)))}
    )
    end = PREFIX + int.from_bytes(data[len(MAGIC) + 4 : len(MAGIC) + 8], "little")
    header = data[PREFIX:end].replace(b"\x01\x01b", b"\x01\x01a")
    with pytest.raises(sec.ArtifactError, match="occurs twice: 'xa'"):
        read(sealed(header, data[end + CHECK :]))


def test_foreign_and_newer_files_say_so(tmp_path: Path) -> None:
    for content in (b"", b"x", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "m.sec").write_bytes(content)
        with pytest.raises(sec.ArtifactError, match="not a sound packed model"):
            sec.unpack(tmp_path / "m.sec")
    data = bytearray(to_bytes({}))
    for version in (0, 1, 4):
        data[8] = version
        with pytest.raises(sec.ArtifactError, match=f"says version {version}, this version of Secateurs reads 2 and 3"):
            read(bytes(data))


def test_a_forged_program_is_refused(tmp_path: Path) -> None:
    for text in ("[", "{}", "[" * 5000, '{"format": 1}'):
        (tmp_path / "m.sec").write_bytes(to_bytes({}, texts={"graph": text}))
        with pytest.raises(sec.ArtifactError):
            sec.unpack(tmp_path / "m.sec")
