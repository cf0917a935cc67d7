"""The benchmark of MobileNet's file: bits within the bytes, what it adds up, and what it says without data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sec
from benchmarks import pack_mobilenet
from benchmarks.pack_mobilenet import Bench
from secateurs.pack.integers import quantise


def bench(work: Path) -> Bench:
    """A tiny network in place of MobileNet, with its kernels in three numbers of bits."""
    torch.manual_seed(0)
    made = Bench.__new__(Bench)
    made.model, made.work = nn.Sequential(nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 1)).eval(), work
    coded = {name: {bits: quantise(made.model.get_parameter(name), bits) for bits in (2, 4, 8)}
             for name in ("0.weight", "2.weight")}  # fmt: skip
    errors = {"0.weight": {2: 1e-3, 4: 1e-4, 8: 1e-6}, "2.weight": {2: 1.0, 4: 0.1, 8: 0.001}}
    made._networks = {"dense": (made.model, coded, errors)}
    return made


def test_the_file_is_within_the_bytes_and_bits_go_where_they_matter(tmp_path: Path) -> None:
    mine = bench(tmp_path)
    model, coded = mine.chosen("dense", 4000)
    assert sec.pack(model, tmp_path / "file.sec", coded=coded).bytes <= 4000
    bits = {name: item.content.bits for name, item in coded.items()}  # type: ignore[union-attr]
    assert bits["2.weight"] > bits["0.weight"]


def test_plain_takes_one_number_of_bits_for_all(tmp_path: Path) -> None:
    _, coded = bench(tmp_path).plain(4000)
    assert len({item.content.bits for item in coded.values()}) == 1  # type: ignore[union-attr]


def cell(times: float, calibration: float, judged: float) -> dict[str, Any]:
    return {
        "original": {"calibration": 0.83, "judged": 0.834},
        "times_smaller": times, "accuracy": {"packed": {"calibration": calibration, "judged": judged}},
    }  # fmt: skip


def seeds(kind: str, *cells: dict[str, Any]) -> dict[str, Any]:
    return {f"{kind}-{seed}": item for seed, item in enumerate(cells)}


def test_both_halves_and_the_one_apart_must_be_within_the_bar() -> None:
    good, apart, over = cell(6.0, 0.825, 0.826), cell(8.0, 0.84, 0.82), cell(10.0, 0.81, 0.826)
    three = {**seeds("dense-6", good, good, good), **seeds("dense-8", apart, apart, apart),
             **seeds("dense-10", over, over, over)}  # fmt: skip
    found = pack_mobilenet.summary(three)
    assert found["smallest_within"] == 6.0
    assert found["met"]
    assert found["rows"]["dense-8"]["points_lost"]["packed"] == {"calibration": -1.0, "judged": 1.4, "all": 0.2}
    small = cell(4.0, 0.83, 0.834)
    assert not pack_mobilenet.summary(seeds("dense-4", small, small, small))["met"]
    assert pack_mobilenet.summary({})["smallest_within"] is None


def test_the_bar_is_for_the_mean_of_three_seeds() -> None:
    good, bad = cell(6.0, 0.83, 0.834), cell(5.5, 0.83, 0.807)
    assert not pack_mobilenet.summary(seeds("dense-6", good, good))["met"]
    found = pack_mobilenet.summary(seeds("dense-6", good, good, bad))
    assert found["rows"]["dense-6"]["points_lost"]["packed"]["judged"] == pytest.approx(0.9)
    assert found["rows"]["dense-6"]["judged_spread"]["packed"] == pytest.approx(1.56)
    assert found["smallest_within"] == 5.5


def test_halves_are_halves_and_differ() -> None:
    found = [pack_mobilenet.halves(seed) for seed in range(4)]
    assert all(sorted(one + other) == list(range(1000)) and len(one) == 500 for one, other in found)
    assert found[0] == found[1][::-1]
    assert len({tuple(one) for one, _ in found}) == 4
    assert found[2] == pack_mobilenet.halves(2)


def test_without_data_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pack_mobilenet", "--data", str(tmp_path)])
    assert pack_mobilenet.main() == 2
    assert "no ImageNet networks" in capsys.readouterr().out
