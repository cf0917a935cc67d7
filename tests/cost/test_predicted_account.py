"""The account of a plan that nobody has run equals the account of the model that it leaves."""

from __future__ import annotations

import pytest

import secateurs as sec
from secateurs.cost import CostModel
from secateurs.testing.networks import random_network


@pytest.mark.parametrize("seed", range(12))
def test_prediction_by_module_operator_and_memory(seed: int):
    model, inputs = random_network(seed)
    graph = sec.capture(model, inputs)
    groups = sec.couple(graph)
    if not groups.free:
        pytest.skip("nothing of this network can be removed")
    keep = {group.name: range((group.size + 1) // 2) for group in groups.free}
    plan = sec.plan(graph, groups, keep=keep)
    result = sec.cut_detailed(model, plan, inputs, form="auto")
    counted = sec.count(result.model, inputs)
    predicted = CostModel(groups).cost(groups.alive(keep))
    assert predicted.macs == counted.macs == plan.after["macs"]
    assert predicted.by_op() == counted.by_op()
    assert predicted.params == counted.params
    assert predicted.bytes == counted.bytes
    if result.form == "native":
        assert predicted.by_module() == counted.by_module()
        assert predicted.peak_memory == counted.peak_memory == plan.after["peak_memory"]
