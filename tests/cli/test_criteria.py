"""The verb `criteria`: its table, its JSON, its picture, its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateurs.cli import main

WORDS = ["criteria", "--model", "toy:Net", "--input", "1x1x6x6", "--data", "toy:loader", "--bootstrap", "20"]
SOME = ["--criterion", "l1", "--criterion", "mean_activation"]


@pytest.fixture(autouse=True)
def beside_toy(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)


def test_prints_a_table(capsys):
    assert main([*WORDS, *SOME]) == 0
    printed = capsys.readouterr().out
    assert "oracle" in printed
    assert "mean_activation" in printed


def test_json_and_picture(capsys, tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "out.html"
    assert main([*WORDS, *SOME, "--json", "--figure", str(page), "--loss", "toy:half"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["overall"]["l1"]["units"] == 40
    assert found["model"] == "toy:Net"
    assert "plotly" in page.read_text()


def test_an_unknown_criterion_is_refused(capsys):
    assert main([*WORDS, "--criterion", "l11"]) == 2
    assert "l1" in capsys.readouterr().err


def test_inputs_by_name(capsys):
    words = ["criteria", "--model", "toy:Net", "--input", "x=1x1x6x6", "--data", "toy:loader", "--bootstrap", "20"]
    assert main([*words, *SOME]) == 0
    assert "mean_activation" in capsys.readouterr().out
