"""A journal survives being cut at any byte, and refuses what it did not write."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.base.errors import ArtifactError, InputError
from secateurs.base.journal import Journal

RUN = {"recipe": "abc", "seed": 0}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def filled(path: Path) -> Journal:
    journal = Journal(path, run=RUN)
    for number in range(3):
        journal.append(f"step {number}", {"loss": number / 7, "text": "\n\u2028"})
    return journal


def test_what_was_recorded_comes_back_in_order(tmp_path: Path) -> None:
    written = filled(tmp_path / "run/journal.jsonl")
    again = Journal(tmp_path / "run/journal.jsonl", run=RUN)
    assert list(again) == ["step 0", "step 1", "step 2"]
    assert len(again) == 3
    assert "step 1" in again
    assert "step 9" not in again
    assert {step: again[step] for step in again} == {step: written[step] for step in written}


@settings(max_examples=40)
@given(steps=st.dictionaries(st.text(), JSON, max_size=5))
def test_any_data_comes_back_equal(tmp_path_factory: pytest.TempPathFactory, steps: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("run") / "journal.jsonl"
    journal = Journal(path, run=RUN)
    for step, value in steps.items():
        journal.append(step, value)
    again = Journal(path, run=RUN)
    assert {step: again[step] for step in again} == steps


def test_cut_at_any_byte_it_continues_to_the_same_end(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    filled(whole)
    content = whole.read_bytes()
    for size in range(len(content) + 1):
        path = tmp_path / f"cut {size}"
        path.write_bytes(content[:size])
        journal = Journal(path, run=RUN)
        assert list(journal) == [f"step {number}" for number in range(content[:size].count(b"\n") - 1)]
        for number in range(len(journal), 3):
            journal.append(f"step {number}", {"loss": number / 7, "text": "\n\u2028"})
        assert path.read_bytes() == content


def test_once_computes_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> tuple[int, int]:
        calls.append(1)
        return (1, 2)

    first = Journal(tmp_path / "j", run=RUN).once("pair", compute)
    second = Journal(tmp_path / "j", run=RUN).once("pair", compute)
    assert first == second == [1, 2]
    assert len(calls) == 1


def test_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    with pytest.raises(ArtifactError, match=r"another run.*`seed` was 0 and is now 1.*Next:"):
        Journal(tmp_path / "j", run={"recipe": "abc", "seed": 1})


@pytest.mark.parametrize("line", [0, 1, 3])
@pytest.mark.parametrize("garbage", [b"garbage", b"[1, 2]", b'{"step": "x"}', b"\x00\xff\x80"])
def test_damage_is_refused_with_its_line(tmp_path: Path, line: int, garbage: bytes) -> None:
    filled(tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().split(b"\n")
    lines[line] = garbage
    (tmp_path / "j").write_bytes(b"\n".join(lines))
    with pytest.raises(ArtifactError, match=f"damaged.*line {line + 1}.*not a finished step"):
        Journal(tmp_path / "j", run=RUN)


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("my only copy")
    with pytest.raises(ArtifactError, match="not a journal"):
        Journal(tmp_path / "notes", run=RUN)
    assert (tmp_path / "notes").read_text() == "my only copy"


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {"x": {1, 2}}])
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path, value: object) -> None:
    journal = filled(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(InputError, match="'bad'.*finite numbers"):
        journal.append("bad", value)
    assert (tmp_path / "j").read_bytes() == before
    assert "bad" not in journal


def test_a_step_is_recorded_once(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    with pytest.raises(InputError, match="already"):
        journal.append("step 1", 0)
