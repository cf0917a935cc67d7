"""The account of a plan that nobody has run equals the account of the model that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

import secateurs as sec
from secateurs.capture import Graph
from secateurs.cost import CostModel
from secateurs.couple import Groups
from secateurs.testing.networks import random_network


def _cuttable(start: int) -> Iterator[tuple[nn.Module, Any, Graph, Groups]]:
    """Random networks of which something can be removed."""
    for seed in range(start, start + 100):
        model, inputs = random_network(seed)
        graph = sec.capture(model, inputs)
        groups = sec.couple(graph)
        if groups.free:
            yield model, inputs, graph, groups


@pytest.mark.parametrize("start", range(0, 1200, 100))
def test_prediction_by_module_operator_and_memory(start: int):
    model, inputs, graph, groups = next(_cuttable(start))
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
