"""Who teaches in runs of several trainings: the original, from the first to the last.

A run of two parts is the second part on what the first one made, with the original as the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train.networks import convolutional, images, loader, plain, points, same, state

import secateurs as sec
from secateurs.base.errors import ArtifactError

pytestmark = pytest.mark.medium

IMAGE, DATA, POINTS = torch.zeros(1, 1, 6, 6), loader(images(40)), loader(points(60))
TAUGHT: dict[str, Any] = {
    "lr": 0.05, "schedule": "constant", "distil": sec.Distill(alpha=1.0), "progress": False,
}  # fmt: skip
RETRAIN = sec.FineTune(epochs=1, **TAUGHT)


def stage(strength: float) -> sec.FineTune:
    return sec.FineTune(epochs=2, gates=sec.Gates(strength=strength, start=0.82), **TAUGHT)


def nodes(model: nn.Module, strengths: list[float], **more: Any) -> nn.Module:
    stages = [stage(strength) for strength in strengths]
    return sec.node_prune(model, IMAGE, DATA, stages=stages, evaluate=sec.accuracy(DATA), **more).model


def weights(model: nn.Module, thresholds: list[float], **more: Any) -> nn.Module:
    given = [sec.Threshold("value", threshold) for threshold in thresholds]
    return sec.iterative_prune(
        model, DATA, sparsity=given, evaluate=sec.accuracy(DATA), retrain=RETRAIN, dropout=False, **more
    ).model


def channels(model: nn.Module, params: list[int], **more: Any) -> nn.Module:
    budgets = [sec.Budget(params=count) for count in params]
    return sec.train_prune_loop(
        model, torch.zeros(1, 4), POINTS, steps=budgets, evaluate=sec.accuracy(POINTS), retrain=RETRAIN, tolerance=1.0,
        granularity=1, min_channels=2, **more,
    ).model  # fmt: skip


PARTS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module], list[Any]]] = {
    "node_prune": (lambda: convolutional(width=12), nodes, [0.04, 0.05]),
    "iterative_prune": (convolutional, weights, [0.1, 0.15]),
    "train_prune_loop": (lambda: plain(width=12), channels, [70, 50]),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_original_teaches_all_parts(name: str) -> None:
    make, run, (one, two) = PARTS[name]
    model = make()
    first = run(model, [one])
    whole = state(run(model, [one, two]))
    assert same(whole, state(run(first, [two], teacher=model)))
    assert not same(whole, state(run(first, [two])))


def test_the_original_teaches_the_training_after_the_last_stage_of_nodes() -> None:
    model = convolutional(width=12)
    cut = nodes(model, [0.04])
    assert sum(item.numel() for item in cut.parameters()) < sum(item.numel() for item in model.parameters())
    by_hand = sec.finetune(cut, DATA, RETRAIN, teacher=model).model
    assert same(state(nodes(model, [0.04], finetune=RETRAIN)), state(by_hand))


def test_groups_of_weights_are_not_taught_by_what_the_nodes_left() -> None:
    model = convolutional(width=12)
    plan = sec.scalpel_plan(model, IMAGE, hardware="cpu")
    given: dict[str, Any] = {
        "hardware": plan, "stages": stage(0.04), "thresholds": (0.15,), "evaluate": sec.accuracy(DATA),
    }  # fmt: skip
    result = sec.scalpel(model, IMAGE, DATA, retrain=RETRAIN, **given)
    assert result.nodes is not None
    groups = {"pattern": "simd(8)", "only": plan.simd}
    found = state(result.model)
    assert same(found, state(weights(result.nodes.model, [0.15], teacher=model, **groups)))
    assert not same(found, state(weights(result.nodes.model, [0.15], **groups)))
    other = sec.scalpel(model, IMAGE, DATA, retrain=RETRAIN, teacher=convolutional(seed=9), **given)
    assert not same(state(other.nodes.model), state(result.nodes.model))  # type: ignore[union-attr]


def test_soft_pruning_learns_from_the_model_or_from_whom_it_is_told() -> None:
    model = convolutional()

    def run(**more: Any) -> dict[str, torch.Tensor]:
        return state(sec.soft_prune(model, IMAGE, DATA, finetune=RETRAIN, padding="mean", **more).model)

    assert same(run(), run(teacher=model))
    assert not same(run(), run(teacher=convolutional(seed=9)))


def test_a_run_of_another_teacher_is_another_run(tmp_path: Path) -> None:
    model = convolutional()
    once = weights(model, [0.1], folder=tmp_path)
    assert same(state(once), state(weights(model, [0.1], folder=tmp_path, teacher=model)))
    with pytest.raises(ArtifactError, match="belongs to another run"):
        weights(model, [0.1], folder=tmp_path, teacher=convolutional(seed=9))
