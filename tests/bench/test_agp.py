"""AGP against one-shot: both ways end at the same sparsity, and what is added up."""

from __future__ import annotations

import json
from typing import Any

import torch

import secateurs as sec
from benchmarks import agp, lenet, mnist_nets


def row(one: float, gradual: float) -> dict[str, Any]:
    return {"dense": {"test": 0.99}, "one-shot": {"test": one}, "AGP": {"test": gradual}}


def test_summary_by_value() -> None:
    rows = {"lenet_5-90-2-0": row(0.98, 0.98), "lenet_5-90-2-1": row(0.98, 0.99), "resnet20-90-6-0": row(0.7, 0.69)}
    found = agp.summary(rows)
    assert list(found) == ["lenet_5, 90 %, 2 epochs", "resnet20, 90 %, 6 epochs"]
    first, second = found.values()
    assert first["AGP"]["test"] == {"mean": 0.985, "standard_deviation": 0.00707}
    assert first["points gained by AGP"]["test"] == {"mean": 0.5, "standard_deviation": 0.707}
    assert second["points gained by AGP"]["test"] == {"mean": -1.0, "standard_deviation": None}
    assert [one["at least as accurate"] for one in found.values()] == [True, False]
    assert agp.table(rows).row_count == 2


def test_both_ways_reach_the_same_sparsity() -> None:
    torch.manual_seed(0)
    data = lenet.Batches(torch.rand(60, 1, 28, 28), torch.randint(10, (60,)), 20)
    losses = []
    for schedule in agp.WAYS.values():
        sparsity = sec.Sparsity(0.9, schedule=schedule, exclude=["fc3"])
        config = sec.FineTune(epochs=8, lr=0.01, sparsity=sparsity, progress=False)
        found = sec.finetune(mnist_nets.build("lenet_300_100"), data, config)
        losses.append([epoch.loss for epoch in found.history])
        assert agp.zeros(found.model, ["fc3"]) == 0.9
        assert not (found.model.get_parameter("fc3.weight") == 0).any()
    assert losses[0] != losses[1]


def test_stored_cells_are_those_of_the_settings() -> None:
    stored = json.loads(agp.STUDY.out.read_text())
    assert stored["cells"] == agp.STUDY.stored() != {}
    assert stored["summary"] == agp.summary(stored["cells"])
