"""With --json, standard output is exactly one JSON document, whatever happens and whatever the user's code prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secateurs.cli import main

HERE = Path(__file__).parent
INPUT = ["--input", "1x1x6x6"]
NET = ["--model", "toy:chatty", *INPUT]
CUT = ["prune", *NET, "--budget", "macs=0.5", "--data", "toy:chatty_loader", "--evaluate", "toy:chatty_bias"]

SPARSE = ["sparsify", "--model", "toy:chatty", "--sparsity", "0.5", "--data", "toy:chatty_loader"]
SPARSE += ["--evaluate", "toy:chatty_bias"]


@pytest.fixture(autouse=True)
def beside_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)


DONE: dict[str, tuple[list[str], str]] = {
    "inspect": (["inspect", *NET], "groups"),
    "prune": ([*CUT, "--epochs", "1", "--out", "{folder}/cut"], "accuracy"),
    "export": (["export", *NET, "--out", "{folder}/m.onnx"], "bytes"),
    "measure": (["measure", *NET, "--device", "torch", "--rounds", "6"], "median"),
    "sensitivity": (["sensitivity", "--model", "toy:chatty", "--data", "toy:chatty_loader"], "largest"),
    "sparsify": ([*SPARSE, "--epochs", "1", "--out", "{folder}/sparse"], "layers"),
    "pack": (["pack", "--model", "toy:chatty", "--out", "{folder}/m.sec"], "rows"),
    "list": (["list"], "criteria"),
    "list ops": (["list", "ops"], "ops"),
}

REFUSED = {
    "criteria": ["criteria", *NET, "--data", "toy:loader", "--criterion", "l11"],
    "demo": ["demo", "--epochs", "-1"],
    "inspect": ["inspect", "--model", "toy:Nets", *INPUT],
    "inspect, no model": ["inspect"],
    "prune": ["prune", *NET, "--budget", "macs=0.0001"],
    "prune, no such option": [*CUT, "--flor", "0.5"],
    "prune, no number": [*CUT, "--granularity", "eight"],
    "prune, no such unit": [*CUT, "--unit", "head"],
    "prune, no recipe": ["prune", "--recipe", "none.yaml"],
    "prune, no training": [*CUT, "--epochs", "-2"],
    "export": ["export", "nowhere", "--out", "m.onnx"],
    "measure": ["measure", *NET, "--device", "gpu9"],
    "sensitivity": ["sensitivity", "--model", "toy:chatty"],
    "sparsify": ["sparsify", "--model", "toy:chatty", "--sparsity", "1.5"],
    "pack": ["pack", "--out", "m.sec"],
    "unpack": ["unpack", "none.sec"],
    "list": ["list", "criterions"],
    "no such verb": ["proon"],
}


@pytest.mark.medium
@pytest.mark.parametrize("name", DONE)
def test_done_is_one_document(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, key = DONE[name]
    assert main([*(word.format(folder=tmp_path) for word in words), "--json"]) == 0
    captured = capsys.readouterr()
    assert key in _one(captured.out)
    assert ("chatting" in captured.err) == ("toy:chatty" in words)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_is_one_document(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REFUSED[name], "--json"]) == 2
    found = _one(capsys.readouterr().out)
    assert set(found) == {"refused", "kind"} and found["refused"]


def test_not_met_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *NET, "--budget", "channels=0.3", "--granularity", "16", "--json"]) == 1
    assert _one(capsys.readouterr().out)["met"] is False


def test_a_metric_that_falls_too_far_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sparsify", "--model", "toy:chatty", "--sparsity", "0.9", "--evaluate", "toy:bias", "--max-drop", "0.1"]
    assert main([*words, "--json"]) == 1
    assert _one(capsys.readouterr().out)["met"] is False


def test_a_failure_of_other_code_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CUT, "--evaluate", "toy:broken", "--json"]) == 3
    captured = capsys.readouterr()
    assert "TypeError" in _one(captured.out)["failed"]
    assert "Traceback" in captured.err


@pytest.mark.medium
def test_progress_of_a_whole_process_goes_to_standard_error() -> None:
    """As a shell sees it, training included."""
    words = [sys.executable, "-m", "secateurs.cli", *CUT, "--epochs", "1"]
    quiet = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True, timeout=120)
    assert _one(quiet.stdout)["training"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert "fine-tune" in shown.stderr and "capture" in shown.stderr
    story = shown.stdout[shown.stdout.index("Budget met") :]
    assert "capture" not in story and "100%" not in story


def _one(text: str) -> Any:
    """The one document that `text` is; `json.loads` refuses anything before or after it."""
    return json.loads(text)
