"""What scoring costs: the order of a round, costs in passes, the bar."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateurs as sec
from benchmarks import criteria_cost
from benchmarks.criteria_cost import BAR, MORE, PASSES, VARIANTS


def timed(*pairs: tuple[str, float]) -> criteria_cost.Round:
    return [{"name": name, "seconds": seconds} for name, seconds in pairs]


FIRST = timed(
    ("inference", 1.0), ("forward_backward", 3.0), ("l1", 0.1), ("taylor", 8.0), ("inference", 3.0),
    ("forward_backward", 5.0), ("apoz", 3.0), ("inference", 1.0), ("forward_backward", 1.0),
)  # fmt: skip


def test_every_round_has_every_name_and_begins_elsewhere():
    names = ["a", "b", "c", "d", "e", "f"]
    orders = [criteria_cost.turned(names, number, 3) for number in range(3)]
    assert orders == [names, ["b", "a", "f", "e", "d", "c"], ["e", "f", "a", "b", "c", "d"]]


def test_a_criterion_is_compared_with_the_passes_on_either_side():
    found = criteria_cost.ratios(FIRST)
    assert found["taylor"] == {"inference": 4.0, "forward_backward": 2.0}
    assert found["apoz"] == {"inference": 1.5, "forward_backward": 1.0}
    assert found["l1"] == pytest.approx({"inference": 0.05, "forward_backward": 0.025})


def test_the_summary_has_the_spread_over_rounds_cheapest_first():
    second = [{**item, "seconds": item["seconds"] * (3 if item["name"] == "taylor" else 1)} for item in FIRST]
    rows = criteria_cost.summary([FIRST, second])
    assert list(rows) == ["l1", "apoz", "taylor"]
    assert rows["taylor"] == {
        "kind": "one pass", "rounds": 2, "inference": [8.0, 4.0, 12.0], "forward_backward": [4.0, 2.0, 6.0]
    }  # fmt: skip
    assert rows["l1"]["kind"] == "weights"
    assert criteria_cost.table(rows).row_count == 3


def test_the_bar_names_one_pass_criteria_that_cost_more_and_no_others():
    def row(kind: str, cost: float) -> dict[str, object]:
        return {"kind": kind, "forward_backward": [cost, cost, cost]}

    kept = {"taylor": row("one pass", BAR), "oracle": row(MORE["oracle"], 99.0)}
    assert criteria_cost.bar(kept) == {"most_forward_backward_passes": BAR, "over": {}, "met": True}
    found = criteria_cost.bar({**kept, "obd": row("one pass", 4.01)})
    assert (found["over"], found["met"]) == ({"obd": 4.01}, False)
    assert not criteria_cost.bar({})["met"], "nothing was measured"


def test_all_that_is_named_exists():
    known = set(sec.list("criteria"))
    assert known | set(VARIANTS) >= set(MORE)
    assert {criterion for criterion, _ in VARIANTS.values()} <= known


def test_a_round_has_passes_before_between_and_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(criteria_cost, "TOGETHER", 2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    data = [(torch.randn(4, 3, 4, 4), torch.randint(0, 3, (4,))) for _ in range(3)]
    found = list(criteria_cost.measure(model, data, ["l1", "apoz", "oracle"]))
    passes = list(PASSES)
    assert [item["name"] for item in found] == [*passes, "l1", "apoz", *passes, "oracle", *passes]
    assert all(item["seconds"] > 0 for item in found)


def test_a_round_that_was_stopped_goes_on_with_what_it_lacks(tmp_path: Path):
    path = tmp_path / "cost.json"
    assert criteria_cost.stored(path, ["l1"]) == []
    stopped = [*FIRST[:4], {"name": "gone", "seconds": 1.0}]
    path.write_text(json.dumps({"settings": criteria_cost.SETTINGS, "rounds": [FIRST, stopped]}))
    rounds = criteria_cost.stored(path, ["l1", "taylor", "apoz"])
    assert rounds == [FIRST, FIRST[:4]]
    assert criteria_cost.left(rounds[1], ["apoz", "taylor", "obd"]) == ["apoz", "obd"]
    assert criteria_cost.summary(rounds)["taylor"]["forward_backward"][2] == 2.667, (
        "only the passes before it are there"
    )
    path.write_text(json.dumps({"settings": {}, "rounds": [FIRST]}))
    assert criteria_cost.stored(path, ["l1"]) == []


def test_says_where_the_data_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["criteria_cost", "--data", str(tmp_path)])
    assert criteria_cost.main() == 2
    assert str(tmp_path) in capsys.readouterr().out
