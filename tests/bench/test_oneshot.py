"""The one-shot comparison: what order its cells have, what it resumes, what it adds up, what it draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sec
from benchmarks import oneshot, oneshot_cells, oneshot_tables
from benchmarks.oneshot_tables import STEPS


def row(criterion: str, reconstructed: float, cut: float = 0.5, network: str = "resnet56", macs: float = 0.7) -> Any:
    accuracy = {"original": 0.926, "cut": cut, "recalibrated": 0.8, "reconstructed": reconstructed}
    return {
        "network": network, "criterion": criterion, "macs": macs, "search": "global", "macs_left": 0.699,
        "accuracy": accuracy, "scoring": {"images": 512, "cpu_seconds": 12.345},
    }  # fmt: skip


REFUSED = {
    "network": "squeezenet", "criterion": "bn_scale", "macs": 0.7, "search": "global", "refused": "InputError: no norms"
}  # fmt: skip


def test_cells_are_all_there_once_the_most_telling_first():
    found = oneshot_cells.cells(["l1", "lasso", "oracle", "taylor"])
    assert len(found) == len(set(found)) == 3 * 4 * 4
    assert found[:3] == [
        ("resnet56", "l1", 0.7, "global"), ("resnet56", "lasso", 0.7, "uniform"), ("resnet56", "taylor", 0.7, "global")
    ]  # fmt: skip
    assert [share for _, _, share, _ in found[3:6]] == [0.5] * 3
    assert {cell[:3] for cell in found[6:8]} == {("resnet56", "oracle", 0.7), ("resnet56", "oracle", 0.5)}
    assert {cell[0] for cell in found[8:14]} == {"mobilenet", "squeezenet"}
    assert {cell[2] for cell in found[8:14]} == {0.7}
    assert {cell[1] for cell in found[-8:]} == {"oracle"}


def test_every_criterion_that_is_set_apart_is_registered():
    assert set(sec.list("criteria")) >= oneshot_cells.ORDERS | oneshot_cells.SLOW


def test_what_is_missing_keeps_its_order_and_a_new_row_takes_the_place_of_the_old():
    wanted = oneshot_cells.cells(["l1", "l2", "taylor"])
    rows = oneshot_tables.merged(oneshot_tables.merged([], row("l2", 0.9)), row("l1", 0.8))
    left = oneshot_tables.missing(wanted, rows)
    assert left == [cell for cell in wanted if cell[:3] not in {("resnet56", name, 0.7) for name in ("l1", "l2")}]
    again = oneshot_tables.merged(rows, row("l2", 0.7))
    assert [(each["criterion"], each["accuracy"]["reconstructed"]) for each in again] == [("l1", 0.8), ("l2", 0.7)]


def test_stored_rows_count_only_with_the_settings_that_made_them(tmp_path: Path):
    path = tmp_path / "rows.json"
    assert oneshot.stored(path) == []
    wanted = oneshot_cells.cells(["l1"])
    oneshot.write(path, [row("l1", 0.9)], wanted)
    assert oneshot.stored(path) == [row("l1", 0.9)]
    found = json.loads(path.read_text())
    assert found["missing"] == [list(cell) for cell in wanted[1:]]
    path.write_text(json.dumps({**found, "settings": {**found["settings"], "seed": 1}}))
    assert oneshot.stored(path) == []


def test_the_bar_by_value():
    assert oneshot_tables.bar([])["met"] is False
    found = oneshot_tables.bar([row("l1", 0.905), row("taylor", 0.906), row("fpgm", 0.92, macs=0.8), REFUSED])
    assert (found["best"], found["points_lost"], found["met"]) == ("taylor", 2.0, True)
    assert not oneshot_tables.bar([row("l1", 0.905)])["met"]
    assert not oneshot_tables.bar([row("l1", 0.92, network="mobilenet")])["met"]


def test_tables_and_plot_have_the_best_first_and_what_was_refused_only_in_the_table():
    rows = [REFUSED, row("l1", 0.85), row("taylor", 0.9), row("random", 0.85, cut=0.6)]
    first, second = oneshot_tables.tables(rows)
    assert list(first.columns[0].cells) == ["bn_scale"]
    assert list(second.columns[0].cells) == ["taylor", "random", "l1"]
    assert list(second.columns[3].cells) == ["50.0%", "60.0%", "50.0%"]
    (panel,) = oneshot_tables.plot_data(rows)
    assert panel == {
        "network": "resnet56", "macs": 0.7, "original": 0.926, "criteria": ["taylor", "random", "l1"],
        "cut": [0.5, 0.6, 0.5], "recalibrated": [0.8] * 3, "reconstructed": [0.9, 0.85, 0.85],
    }  # fmt: skip


def test_the_figure_has_a_trace_for_each_panel_and_step():
    pytest.importorskip("plotly")
    none = row("l2", 0.3, network="squeezenet")
    none["accuracy"]["recalibrated"] = None
    data = oneshot_tables.plot_data([row("l1", 0.85), row("taylor", 0.9), none])
    drawn = oneshot_tables.figure(data).data
    assert [trace.name for trace in drawn] == list(STEPS) * 2
    assert [tuple(trace.x) for trace in drawn] == [(0.5, 0.5), (0.8, 0.8), (0.9, 0.85), (0.5,), (None,), (0.3,)]
    assert [bool(trace.showlegend) for trace in drawn] == [True] * 3 + [False] * 3


def tiny(network: str, data: Path) -> oneshot_cells.Bench:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))) for _ in range(4)]
    return oneshot_cells.Bench(model, batches, sec.accuracy(batches))


def test_a_cell_has_every_step_and_scores_are_journalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oneshot, "build", tiny)
    cell = ("resnet56", "taylor", 0.7, "global")
    found = oneshot.Comparison(tmp_path, tmp_path).run(cell)
    assert oneshot_tables.key(found) == cell
    assert 0.3 < found["macs_left"] <= 0.7
    assert set(found["accuracy"]) == {"original", *STEPS}
    assert all(0 <= value <= 1 for value in found["accuracy"].values())
    assert found["scoring"]["images"] == found["calibration_images"] == 32
    again = oneshot.Comparison(tmp_path, tmp_path)
    monkeypatch.setattr(sec, "score", lambda *a, **k: pytest.fail("scored again"))
    half = again.run(("resnet56", "taylor", 0.5, "global"))
    assert half["scoring"] == found["scoring"]
    assert half["macs_left"] <= 0.5


def test_weights_alone_see_no_images_and_slow_criteria_a_quarter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oneshot, "build", tiny)
    comparison = oneshot.Comparison(tmp_path, tmp_path)
    assert comparison._scores("resnet56", "l1")["images"] == 0
    assert comparison._scores("resnet56", "oracle")["images"] == 8


def test_what_the_library_refuses_is_a_row_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oneshot, "build", tiny)
    found = oneshot.Comparison(tmp_path, tmp_path).run(("resnet56", "l1", 1e-6, "global"))
    assert found["refused"].startswith("BudgetError")
    assert "accuracy" not in found


def test_says_where_the_data_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["oneshot", "--data", str(tmp_path)])
    assert oneshot.main() == 2
    assert str(tmp_path) in capsys.readouterr().out
