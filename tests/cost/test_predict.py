"""`CostModel`: what it predicts for a plan is what the cut model counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sec
from secateurs.cost import CostModel
from secateurs.testing.chain import random_kept
from secateurs.testing.networks import random_network


@pytest.mark.parametrize("seed", range(12))
def test_prediction_is_the_count_of_the_cut_model(seed: int):
    model, inputs = random_network(seed, size=5)
    graph = sec.capture(model, inputs)
    groups = sec.couple(graph)
    keep = random_kept(seed)(groups)
    predicted = CostModel(groups).counts(groups.alive(keep))
    counted = sec.count(sec.cut(model, sec.plan(graph, groups, keep), inputs), inputs)
    assert predicted == {"macs": counted.macs, "params": counted.params, "bytes": counted.bytes}


def test_whole_network_and_every_single_unit():
    """Conv 3 to 6 channels on 8 x 8, then linear on the mean: unit by unit 64 · 27 + 4 MACs, 27 + 1 + 4 parameters."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    groups = sec.couple(sec.capture(model, torch.zeros(1, 3, 8, 8)))
    cost = CostModel(groups)
    for units in range(1, 7):
        alive = groups.alive({groups.free[0].name: range(units)})
        assert cost.macs(alive) == units * (64 * 27 + 4)
        assert cost.params(alive) == units * (27 + 1 + 4) + 4
        assert cost.bytes(alive) == cost.metric("bytes", alive) == 4 * cost.params(alive)
        assert sum(cost.macs_by_node(alive).values()) == cost.macs(alive)


def test_a_model_without_anything_to_remove_has_its_full_cost():
    groups = sec.couple(sec.capture(nn.Linear(3, 2), torch.zeros(1, 3)))
    assert not groups.free
    alive = np.ones(groups.units, dtype=np.bool_)
    assert CostModel(groups).counts(alive) == {"macs": 6, "params": 8, "bytes": 32}
