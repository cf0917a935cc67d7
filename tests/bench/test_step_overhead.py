"""Cost of holding zeros: both sides have the same network, and only one holds its zeros."""

from __future__ import annotations

import torch

from benchmarks import step_overhead


def test_the_sides_differ_in_the_masks_only():
    plain, held = (step_overhead.Side("lenet_300_100", "sgd", kind) for kind in (False, True))
    before = plain.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in held.model.state_dict().items())
    assert torch.equal(plain.images, held.images) and torch.equal(plain.labels, held.labels)
    zeros = held.model.fc1.weight == 0
    assert 0.89 < float(zeros.float().mean()) < 0.96
    for side in (plain, held):
        assert side.steps(2) > 0
    assert not held.model.fc1.weight[zeros].any()
    assert plain.model.fc1.weight[zeros].any()


def test_a_trial_has_the_ratio_of_its_rounds():
    found = step_overhead.trial("lenet_300_100", "adamw_fused", 3)
    ratios = sorted(held / plain for plain, held in found["rounds"])
    assert found["ratio"] == round(ratios[1], 4)
    assert len(found["rounds"]) == 3 and found["steps_per_turn"] >= 2
