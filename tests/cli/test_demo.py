"""The demo does what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import secateurs as sec
from secateurs.cli import main
from secateurs.cli.digits import DigitNet, load_digits


@pytest.mark.slow
def test_the_demo_cuts_to_half_and_what_it_saves_works(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    before, after = report["cost"]["macs"]
    assert after <= before / 2
    assert report["bit_equal"] is True
    assert report["measured"]["device"] == "onnxruntime"
    assert all(layer["after"] % 8 == 0 for layer in report["layers"] if layer["after"] < layer["before"])
    loaded = sec.load(tmp_path / "demo" / "artifact", build=DigitNet)
    digits = load_digits()
    assert digits.accuracy(loaded) == report["accuracy"]["fine-tuned"]
    assert report["accuracy"]["original"] > 0.97
    assert report["accuracy"]["fine-tuned"] > report["accuracy"]["original"] - 0.02


def test_the_data_is_split_once_and_for_all() -> None:
    digits = load_digits()
    images, labels = digits.train.tensors
    assert images.shape == (1437, 1, 16, 16)
    assert len(digits.test) == 360
    assert 0.0 <= float(images.min()) and float(images.max()) <= 1.0
    assert sorted(set(labels.tolist())) == list(range(10))
    first, second = next(iter(digits.loader(3))), next(iter(digits.loader(3)))
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))
