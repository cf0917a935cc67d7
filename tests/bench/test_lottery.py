"""The benchmarks on LeNet-300-100: the network, what they add up, what they say without data."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bits, han, lenet, lottery
from benchmarks.by_seed import Study


def draw(seed: int, number: int, kind: str, metric: float, stop: int = 100) -> dict[str, Any]:
    return {
        "seed": seed, "round": number, "kind": kind, "kept": 0.8**number, "stop": stop, "loss": 0.1,
        "metric": metric, "metric_end": metric - 0.001,
    }  # fmt: skip


def draws(ticket: float) -> list[dict[str, Any]]:
    found = []
    for seed, shift in ((0, 0.0), (1, 0.01)):
        found += [draw(seed, 0, "ticket", 0.95 + shift, 200), draw(seed, 7, "ticket", ticket + shift)]
        found += [draw(seed, 7, "reinit", 0.94 + shift), draw(seed, 7, "random_mask", 0.93 + shift)]
    return found


def test_network_and_batches() -> None:
    model = lenet.lenet_300_100(3)
    assert sum(item.numel() for item in model.parameters()) == 266_610
    assert torch.equal(model[0].weight, lenet.lenet_300_100(3)[0].weight)
    assert not torch.equal(model[0].weight, lenet.lenet_300_100(4)[0].weight)
    images, labels = torch.arange(10.0).unsqueeze(1), torch.arange(10)
    batches = lenet.Batches(images, labels, 3)
    torch.manual_seed(0)
    seen = list(batches)
    assert [len(rows) for _, rows in seen] == [3, 3, 3]
    assert all(torch.equal(pixels[:, 0].long(), rows) for pixels, rows in seen)
    assert len({int(row) for _, rows in seen for row in rows}) == 9


@pytest.mark.data
def test_splits_do_not_overlap(data: Path) -> None:
    training, validation, test = lenet.splits(data)
    assert [len(labels) for _, labels in (training, validation, test)] == [55_000, 5_000, 10_000]
    assert 0.0 <= float(training[0].min()) < float(training[0].max()) <= 1.0
    assert training[0].data_ptr() + training[0].numel() * 4 == validation[0].data_ptr()


def test_summary_and_verdict_by_value() -> None:
    found = lottery.summary(draws(0.951))
    assert found["dense"]["metric"] == {"mean": 0.955, "min": 0.95, "max": 0.96}
    assert found["dense"]["stop"]["mean"] == 200
    assert found["ticket 7"]["kept"] == pytest.approx(0.8**7, abs=1e-4)
    assert lottery.verdict(draws(0.951)) == {
        "dense": 0.955, "ticket": 0.956, "reinit": 0.945, "random_mask": 0.935, "seeds": 2, "at_least_dense": True,
        "above_reinit": True,
    }  # fmt: skip
    assert not lottery.verdict(draws(0.949))["at_least_dense"]
    assert not lottery.verdict(draws(0.939))["above_reinit"]
    assert lottery.verdict(draws(0.95)[:2]) == {}


def test_shares_and_summary_of_the_curves() -> None:
    shares = han.shares()
    assert shares[-1] == pytest.approx(0.98)
    assert all((1 - b) / (1 - a) == pytest.approx(0.02 ** (1 / 6)) for a, b in itertools.pairwise(shares))
    heights = {"L1, not retrained": 0.7, "L2, not retrained": 0.6, "L1, retrained": 0.8, "L2, retrained": 0.9}
    curves = {name: [height] * 6 for name, height in heights.items()}
    one = {"seed": 0, "dense": {"L1": 0.97, "L2": 0.98}, "curves": {**curves, "L2, step by step": [0.95] * 6}}
    other = {"seed": 1, "dense": {"L1": 0.97, "L2": 0.98}, "curves": {**curves, "L2, step by step": [0.85] * 6}}
    assert all(han.summary([one])["seen"].values())
    seen = han.summary([{**one, "dense": {"L1": 0.80, "L2": 0.98}}])["seen"]
    assert [not value for value in seen.values()] == [False, True, False, True]
    found = han.summary([one, other])
    assert found["mean"]["L2, step by step"] == [0.9] * 6
    assert found["standard_deviation"]["L2, step by step"][0] == pytest.approx(0.0707, abs=1e-4)
    pytest.importorskip("plotly")
    figure = han.figure(found)
    lines = {trace.name: list(trace.y) for trace in figure.data}
    assert lines["L1, retrained"] == pytest.approx([-17.0] * 6)
    assert len(lines) == 5


@pytest.mark.parametrize("main", [lottery.main, han.STUDY.main, bits.STUDY.main])
def test_says_where_the_data_is_missing(main: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--data", str(tmp_path)])
    assert main() == 2
    assert str(tmp_path) in capsys.readouterr().out


def test_stored_tickets_are_those_of_the_settings() -> None:
    stored = json.loads(lottery.OUT.read_text())
    assert stored["settings"] == lottery.SETTINGS
    assert stored["summary"] == lottery.summary(stored["draws"])
    assert stored["verdict"] == lottery.verdict(stored["draws"])


@pytest.mark.parametrize("study", [han.STUDY, bits.STUDY])
def test_stored_results_are_those_of_the_settings(study: Study) -> None:
    stored = json.loads(study.out.read_text())
    assert stored["settings"] == study.settings
    assert stored["summary"] == study.summary(stored["by_seed"])
