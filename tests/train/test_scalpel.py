"""The table of hardware classes, and its methods carried out together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train.networks import convolutional, images, loader, same, state
from train.test_soft import Residual

import secateurs as sec
from secateurs.base.errors import InputError, PlanError, UnknownNameError

IMAGE = torch.zeros(1, 1, 6, 6)
STAGE = sec.FineTune(epochs=2, lr=0.05, schedule="constant", progress=False, gates=sec.Gates(strength=0.04, start=0.82))
RETRAIN = sec.FineTune(epochs=1, lr=0.05, progress=False)


def methods(model: nn.Module, hardware: str, **more: Any) -> dict[str, str]:
    return {item.weight: item.method for item in sec.scalpel_plan(model, IMAGE, hardware=hardware, **more).layers}


def test_the_table():
    model = convolutional()
    assert methods(model, "microcontroller") == {"0.weight": "simd", "4.weight": "simd", "8.weight": "simd"}
    assert methods(model, "cpu") == {"0.weight": "nodes", "4.weight": "nodes", "8.weight": "simd"}
    assert methods(model, "gpu") == {"0.weight": "nodes", "4.weight": "nodes", "8.weight": "dense"}
    assert [sec.scalpel_plan(model, IMAGE, hardware=name).simd_width for name in ("microcontroller", "cpu", "gpu")] == [
        2, 8, None,
    ]  # fmt: skip
    assert sec.scalpel_plan(model, IMAGE, hardware="cpu", simd_width=16).simd_width == 16


def test_layers_that_share_their_nodes_name_one_group_and_the_rest_say_why_not():
    plan = sec.scalpel_plan(Residual(), IMAGE, hardware="gpu")
    assert plan.nodes == ("stem", "inner")
    assert {item.weight: item.group for item in plan.layers} == {
        "stem.weight": "stem", "inner.weight": "inner", "deep.weight": "inner", "outer.weight": "stem",
        "head.weight": None,
    }  # fmt: skip
    head = plan.layers[-1]
    assert (head.method, head.why) == ("dense", "the model returns it")
    assert methods(Residual(), "gpu", exclude=["inner"])["inner.weight"] == "dense"


def test_a_plan_is_data():
    plan = sec.scalpel_plan(convolutional(), IMAGE, hardware="cpu")
    assert sec.ScalpelPlan.from_json(plan.to_json()) == plan
    assert "moderate parallelism, 8 weights at a time" in str(plan)
    with pytest.raises(PlanError, match="not a plan of methods"):
        sec.ScalpelPlan.from_json("{}")


def carried_out(hardware: str, **more: Any) -> sec.Scalpel:
    data = loader(images(40))
    given = {"stages": STAGE, "thresholds": (0.15, 0.2), "finetune": RETRAIN, "retrain": RETRAIN, **more}
    return sec.scalpel(convolutional(width=12), IMAGE, data, hardware=hardware, evaluate=sec.accuracy(data), **given)


@pytest.mark.medium
def test_nodes_go_from_convolutions_and_groups_from_the_matrix_on_a_cpu():
    result = carried_out("cpu")
    assert result.nodes is not None
    assert result.weights is not None
    widths = result.nodes.stages[-1].widths
    assert set(widths) == {"0", "4"}
    assert result.model[0].out_channels == widths["0"] < 12
    assert list(result.weights.masks) == ["8.weight"]
    mask = result.weights.masks["8.weight"]
    assert 0 < result.weights.sparsity < 1
    for group in mask.split(8, dim=1):
        assert torch.equal(group.any(1), group.all(1))
    assert torch.equal(result.model[8].weight != 0, mask)
    assert [row.sparsity for row in result.weights.rounds] == sorted(row.sparsity for row in result.weights.rounds)
    assert "SIMD groups: baseline" in str(result)


@pytest.mark.medium
def test_only_groups_on_a_microcontroller_and_only_nodes_on_a_gpu(tmp_path: Path):
    small = carried_out("microcontroller", stages=())
    assert small.nodes is None
    assert small.weights is not None
    assert sorted(small.weights.masks) == ["0.weight", "4.weight", "8.weight"]
    large = carried_out("gpu", thresholds=(), folder=tmp_path)
    assert large.weights is None
    assert large.nodes is not None
    again = carried_out("gpu", thresholds=(), folder=tmp_path)
    assert same(state(again.model), state(large.model))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hardware": "cpus"}, UnknownNameError, "did you mean 'cpu'"),
        ({"simd_width": 0}, InputError, "simd_width=0 cannot be used"),
        ({"stages": ()}, InputError, "The plan needs `stages`.*nodes go from 0, 4"),
        ({"stages": RETRAIN}, InputError, "The plan needs `stages`"),
        ({"thresholds": ()}, InputError, "The plan needs `thresholds`.*weights go from 8.weight"),
        ({"thresholds": (0.2, 0.1)}, InputError, "do not rise"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(changes: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        carried_out(**{"hardware": "cpu", **changes})
