"""Files that are cut short, altered or forged are refused: no crash, no hang, no wrong load, no large allocation."""

from __future__ import annotations

import tracemalloc
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secateurs as sec
from secateurs.pack.coded import Coded, Raw
from secateurs.pack.container import CHECK, MAGIC, PREFIX, crc32, header_bytes, read, to_bytes
from secateurs.testing.damage import sealed
from secateurs.testing.hostile import LIMIT, SHARES, digest, mutant, outcome, program_files, sound_files
from secateurs.testing.hostile_program import Tight, TooMuch, used


def outcomes(kind: str, start: int, count: int) -> Counter[str]:
    """How often files of a kind come to what."""
    seen: Counter[str] = Counter()
    for number in range(start, start + count):
        found = mutant(number, kind)
        result = outcome(found)
        assert not result.startswith("wrong"), f"mutant {number} ({found.label}): {result}"
        seen[f"{found.how} {result}"] += 1
    return seen


@pytest.mark.parametrize("start", range(0, 2000, 500))
def test_mutants_by_number(start: int) -> None:
    seen = outcomes("tensors", start, 500)
    assert seen["body other"] and seen["body refused"] and seen["record refused"] and seen["flip refused"]


@pytest.mark.medium
@pytest.mark.parametrize("start", [0, 1000])
def test_mutants_with_a_program(start: int) -> None:
    """They are refused, or loaded as what they say, with and without the class; those that load run or raise."""
    seen = outcomes("program", start, 400)
    for how in (
        "operator",
        "reference",
        "atom",
        "number",
        "shape",
        "tree",
        "nesting",
        "length",
        "name",
        "call",
        "text",
    ):
        assert seen[f"{how} other, program refused"], how
    assert (
        seen["flip refused"] and seen["body other, runs, fits the class"] and seen["name other, runs, fits the class"]
    )
    assert seen["operator other, raises, fits the class"] and seen["record same, runs, fits the class"]


def test_mutants_of_the_released_layout() -> None:
    """What both readers say is the same, refusals included."""
    seen = outcomes("dc1", 0, 600)
    for how in ("flip", "splice", "layers"):
        assert seen[f"{how} refused"] and seen[f"{how} other"], how
    assert seen["cut refused"] and seen["count refused"]


@given(st.integers(0, 1 << 62))
@settings(max_examples=300)
def test_mutants_of_any_number(number: int) -> None:
    assert not outcome(mutant(number)).startswith("wrong")


def test_every_kind_has_its_share() -> None:
    assert Counter(mutant(number).kind for number in range(1000)) == {kind: 10 * n for kind, n in SHARES.items()}


def test_a_wrong_load_is_found() -> None:
    """A file that nothing was done to, judged as if it should hold something else, counts as wrong."""
    one, other = program_files()[0], program_files()[3]
    assert one.programmed is not None and other.programmed is not None
    decoded: dict[str, Any] = {}
    digest(read(one.data), decoded)
    assert used(one.data, one.programmed, decoded, LIMIT, same=True) == "runs, fits the class"
    name = next(name for name, (values, _) in decoded.items() if values.size > 8)
    swapped = {**decoded, name: (decoded[name][0] + 1, decoded[name][1])}
    with pytest.raises(AssertionError, match=f"`{name}` has other values"):
        used(one.data, one.programmed, swapped, LIMIT, same=False)
    with pytest.raises(AssertionError, match="does something else"):
        used(one.data, replace(one.programmed, output=other.programmed.output), decoded, LIMIT, same=True)


def test_a_run_is_stopped_before_it_takes_long() -> None:
    x = torch.ones(1000)
    with Tight():  # type: ignore[no-untyped-call]
        assert x.repeat(60).sum() == 60_000
        for much in (lambda: x.repeat(100_000), lambda: torch.arange(0, 1, 1e-9), lambda: x.expand(10**9, -1)):
            with pytest.raises(TooMuch):
                much()


def test_every_single_bit_counts() -> None:
    data = sound_files()[-2].data
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        with pytest.raises(sec.ArtifactError):
            digest(read(bytes(broken)))


@pytest.mark.parametrize("name", ["metadata", "graph"])
def test_a_text_that_takes_much_once_it_is_parsed_is_refused(name: str) -> None:
    """9 MB of empty lists are 240 MB of objects, and 9 kB in the file."""
    inside = "[" + "[]," * 3_000_000 + "[]]"
    data = to_bytes({}, {"a": "x"}, texts={"graph": "x"} if name == "graph" else {})
    text = next(text for text in read(data).texts if text.name == name)
    packed = zlib.compress(inside.encode(), 9)
    bomb = replace(text, stored=len(packed), plain=len(inside), crc=crc32(packed))
    rest = read(data)
    others = [bomb if text.name == name else text for text in rest.texts]
    bodies = [packed if text.name == name else b'{"a":"x"}' for text in rest.texts]
    whole = sealed(header_bytes(others, []), b"".join(bodies))
    assert len(whole) < 20_000
    with pytest.raises(sec.ArtifactError, match=f"the {name} of 9,000,004 bytes, once it is parsed"):
        read(whole)
    assert read(whole, limit=1 << 30).text(name) == inside


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
    leaves = (
        '{"leaves": 5}',
        '{"leaves": [5]}',
        '{"leaves": [{}]}',
        '{"leaves": [[[]]]}',
        '{"leaves": [[{}, 1, 2, 3]]}',
    )
    for text in ("[", "{}", "[" * 5000, '{"format": 1}', '{"format": 1e999}', *leaves):
        (tmp_path / "m.sec").write_bytes(to_bytes({}, texts={"graph": text}))
        with pytest.raises(sec.ArtifactError):
            sec.unpack(tmp_path / "m.sec")
