"""Strided kernels on LeNet-5: the two roads on a few images, how times are compared, and what is added up."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import secateurs as sec
from benchmarks import lenet, lenet_5, mnist_nets, strided


def seed(number: int, lost: float, ratio: float) -> dict[str, Any]:
    times = {"1": {"microseconds": {}, "over lowered, whole": [ratio, 1.4, 1.9], "over PyTorch": [1.2, 1.1, 1.3]}}
    last = {"pruned": 0.8, "retrained": 0.99 - lost, "conv2_weights": 10}
    road = {"strided": last, "columns": [260, 500], "apart": 1e-7, "times": times}
    return {"seed": number, "dense": 0.99, "alone": road, "combined": {**road, "kernels": last}}


def test_summary_by_value() -> None:
    found = strided.summary([seed(0, 0.005, 1.6), seed(1, 0.007, 1.8)])
    assert found["alone"]["points_lost"] == {"mean": 0.6, "standard_deviation": 0.14}
    assert found["alone"]["ratios"]["1"]["over lowered, whole"] == {"median": 1.7, "quartiles": [1.4, 1.9]}
    assert list(found["combined"]) == ["kernels", "strided", "points_lost", "columns", "ratios"]
    assert found["seen"]["alone: within a point"]
    assert found["seen"]["alone: at least 1.5 times as fast over lowered, whole, images at once: 1"]
    assert not found["seen"]["alone: at least 1.5 times as fast over PyTorch, images at once: 1"]
    assert not strided.summary([seed(0, 0.011, 1.4)])["seen"]["alone: within a point"]


def test_sides_take_turns_and_ratios_are_those_of_a_round() -> None:
    clock = {"a": iter([1.0, 2.0, 4.0, 8.0]), "b": iter([2.0, 4.0, 8.0, 16.0]), "c": iter([0.5, 1.0, 2.0, 4.0])}
    order: list[str] = []

    def turn(name: str) -> Any:
        return lambda: (order.append(name), next(clock[name]))[1]

    found = strided.interleaved({name: turn(name) for name in clock}, 4)
    assert found["over b"] == [2.0, 2.0, 2.0] and found["over c"] == [0.5, 0.5, 0.5]
    assert found["microseconds"]["a"] == 3e6
    assert sorted(order[:3]) == sorted(order[3:6]) == ["a", "b", "c"] and order[:3] != order[3:6]


class Few(lenet_5.Bench):
    """A few random images instead of MNIST."""

    def __init__(self, work: Any) -> None:
        torch.manual_seed(0)
        self.work, self.test, labels = work, torch.rand(100, 1, 28, 28), torch.randint(10, (100,))
        self.batches = lenet.Batches(self.test, labels, 50)
        self.judge = sec.accuracy(lenet.in_order(self.test, labels))


@pytest.mark.parametrize("road", [strided.alone, strided.combined])
def test_roads_end_with_a_lowered_convolution_that_is_the_masked_one(road: Any, tmp_path: Any) -> None:
    bench, dense = Few(tmp_path), mnist_nets.build("lenet_5").eval()
    model, masks, found = road(bench, dense, 0)
    mask = masks["conv2.weight"]
    assert torch.equal(model.get_parameter("conv2.weight") != 0, mask)
    channels = 20 if road is strided.alone else 10
    kept = 1.0 if road is strided.alone else 0.5
    assert mask.shape == (50 * channels // 20, channels, 5, 5)
    assert int(mask.flatten(2).any(2).sum()) == kept * mask[:, :, 0, 0].numel()
    assert found["strided"]["conv2_weights"] == int(mask.sum())
    made = strided.lowered(dense, model, mask, bench)
    assert made["apart"] < 1e-5 and made["lowered_accuracy"] == found["strided"]["retrained"]
    assert 12 * channels <= made["columns"][0] <= 13 * channels and made["columns"][1] == 500
    assert set(made["times"]) == {"1", "16", "100"}


def test_stored_results_are_those_of_the_settings() -> None:
    stored = json.loads(strided.STUDY.out.read_text())
    assert stored["settings"] == strided.SETTINGS
    assert stored["summary"] == strided.summary(stored["by_seed"])
