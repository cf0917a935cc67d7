"""`Plan`: what it removes, its text, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import secateurs as sec

X = torch.zeros(1, 3)


@pytest.fixture(scope="module")
def groups() -> sec.Groups:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    return sec.couple(sec.capture(model, X))


def planned(groups: sec.Groups, **keep: list[int]) -> sec.Plan:
    return sec.plan(groups.graph, groups, keep={name.removeprefix("_"): units for name, units in keep.items()})


def test_removed_names_every_axis_that_shrinks(groups: sec.Groups):
    plan = planned(groups, _0=[1, 4], _2=[3, 0])
    assert plan.removed == {
        "0.weight": {0: (0, 2, 3)},
        "0.bias": {0: (0, 2, 3)},
        "2.weight": {0: (1, 2), 1: (0, 2, 3)},
        "2.bias": {0: (1, 2)},
        "4.weight": {1: (1, 2)},
    }
    assert plan.before.items() >= {"macs": 43, "params": 54, "bytes": 216}.items()
    assert plan.after.items() >= {"macs": 2 * 3 + 2 * 2 + 2 * 2, "params": 14 + 6, "bytes": 4 * 20}.items()
    assert not plan.empty


def test_tied_tensors_are_listed_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.two.weight = self.one.weight
            self.stem = nn.Linear(3, 4)

        def forward(self, x):
            return self.head(self.two(torch.relu(self.one(self.stem(x)))))

    tied = sec.couple(sec.capture(Tied(), X))
    assert [group.size for group in tied.free] == [4]
    plan = sec.plan(tied.graph, tied, {tied.free[0].name: [0, 2]})
    assert plan.removed["one.weight"] == {0: (1, 3), 1: (1, 3)}
    assert "two.weight" not in plan.removed
    assert plan.removed["two.bias"] == {0: (1, 3)}


def test_empty_plan(groups: sec.Groups):
    plan = planned(groups)
    assert plan.empty
    assert plan.removed == {}
    assert plan.before == plan.after


def test_text_gives_the_plan_back(groups: sec.Groups):
    scores = {group.name: torch.rand(group.size).double() for group in groups.free}
    plan = sec.choose(groups.graph, groups, scores, sec.Budget(macs=0.5), criterion="own", seed=7)
    text = plan.to_json()
    assert sec.Plan.from_json(text) == plan
    assert sec.Plan.from_json(text).to_json() == text
    assert json.loads(text)["format"] == 1
    decisions = {decision.name: decision for decision in plan.groups}
    for name, row in scores.items():
        assert decisions[name].scores == tuple(row.tolist())
    assert (plan.criterion, plan.search, plan.seed, plan.budget) == ("own", "global", 7, "macs <= 50% of the original")


@pytest.mark.parametrize("change", ["cut", "format", "key", "missing", "indices", "list", "number", "empty"])
def test_text_that_is_no_plan(groups: sec.Groups, change: str):
    text = planned(groups, _0=[1, 4]).to_json()
    data = json.loads(text)
    broken = {
        "cut": text[: len(text) // 2],
        "format": json.dumps({**data, "format": 2}),
        "key": json.dumps({**data, "extra": 1}),
        "missing": json.dumps({key: value for key, value in data.items() if key != "graph_hash"}),
        "indices": json.dumps({**data, "removed": {"0.weight": {"zero": [1]}}}),
        "list": "[]",
        "number": "3",
        "empty": "",
    }
    with pytest.raises(sec.PlanError, match="not a Secateurs plan"):
        sec.Plan.from_json(broken[change])


@pytest.mark.parametrize(
    ("keep", "why"),
    [({"_0": []}, "nothing of it would be left"), ({"_0": [0, 5]}, "units 0 to 4"), ({"_0": [-1]}, "units 0 to 4"),
     ({"_4": [0]}, "frozen: .*returns it")],
)  # fmt: skip
def test_units_that_can_not_be_kept(groups: sec.Groups, keep: dict[str, list[int]], why: str):
    with pytest.raises(sec.PlanError, match=why):
        planned(groups, **keep)


def test_unknown_group_gives_the_nearest():
    model = nn.Sequential()
    model.add_module("encoder", nn.Linear(3, 5))
    model.add_module("head", nn.Linear(5, 2))
    found = sec.couple(sec.capture(model, X))
    with pytest.raises(sec.UnknownNameError, match="did you mean encoder"):
        sec.plan(found.graph, found, {"encodr": [0]})


def test_plan_explains_every_group(groups: sec.Groups):
    plan = planned(groups, _0=[1, 4])
    why = {decision.name: decision.why for decision in plan.groups}
    assert why["0"] == "kept 2 of 5 as asked"
    assert why["2"] == "kept whole: within the budget as it is"
    assert "returns it" in why["4"]
    assert [decision.name for decision in plan.groups if decision.frozen] == [group.name for group in groups.frozen]
