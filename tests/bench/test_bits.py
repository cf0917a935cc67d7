"""Accuracy against bits: the summary by value, and its picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import secateurs as sec
from benchmarks import bits


def network(own: float, trained: dict[str, float], bytes_: int, error: float, kept: int) -> dict[str, Any]:
    """A row in which the shared weights are a point worse than the trained ones, and integers two points.

    The error is `error` with one bit, and a quarter with each bit more; the sum of squares is 10.
    """
    errors = {number: error / 4 ** (int(number) - 1) for number in trained}
    return {
        "float": {"accuracy": own, "bytes": 1000},
        "bits": {
            number: {
                "shared": {
                    "accuracy": value - 0.01,
                    "bytes": bytes_ * int(number),
                    "error": {
                        "absolute": errors[number],
                        "relative": errors[number] / 10,
                        "layers": {
                            "fc": {"weights": kept, "absolute": errors[number], "relative": errors[number] / 10}
                        },
                    },
                },
                "trained": {"accuracy": value},
                **({"integers": {"accuracy": value - 0.02, "bytes": bytes_}} if number != "1" else {}),
            }
            for number, value in trained.items()
        },
    }


def seed(number: int, pruned_at_2: float, pruned_bytes: int = 10, pruned_error: float = 0.5) -> dict[str, Any]:
    dense = network(0.98, {"1": 0.90, "2": 0.979, "3": 0.98}, 100, 4.0, 40)
    return {
        "seed": number,
        "dense": dense,
        "pruned": network(0.978, {"1": 0.95, "2": pruned_at_2, "3": 0.978}, pruned_bytes, pruned_error, 4),
    }


def test_summary_by_value():
    found = bits.summary([seed(0, 0.976), seed(1, 0.980)])
    assert found["seeds"] == 2
    assert found["dense"]["accuracy"] == 0.98 and found["dense"]["float_bytes"] == 1000
    assert found["dense"]["trained"] == {
        "accuracy": {"1": 0.9, "2": 0.979, "3": 0.98}, "spread": {"1": 0.0, "2": 0.0, "3": 0.0}, "fewest": 2,
    }  # fmt: skip
    assert found["dense"]["shared"]["fewest"] is None
    assert list(found["dense"]["integers"]["accuracy"]) == ["2", "3"]
    assert found["pruned"]["trained"]["accuracy"]["2"] == 0.978
    assert found["pruned"]["trained"]["spread"]["2"] == 0.00283
    assert found["pruned"]["bytes"] == {"1": 10, "2": 20, "3": 30}
    assert found["dense"]["error"]["absolute"] == {name: {"1": 4.0, "2": 1.0, "3": 0.25} for name in ("all", "fc")}
    assert found["pruned"]["error"]["relative"]["all"] == {"1": 0.05, "2": 0.0125, "3": 0.003125}
    assert found["pruned"]["error"]["by_weight"] == {"all": {"1": 0.125, "2": 0.03125, "3": 0.007812}}
    assert list(found["seen"].values()) == [True, True, True, False, True]  # 0.1 for each weight of the dense one
    finer = bits.summary([seed(0, 0.978, pruned_error=0.39)])
    assert list(finer["seen"].values()) == [True, True, True, True, True]


def test_what_is_not_seen_is_not_claimed():
    worse = bits.summary([seed(0, 0.95)])
    assert worse["pruned"]["trained"]["fewest"] == 3
    assert list(worse["seen"].values()) == [False, True, True, False, True]
    larger = bits.summary([seed(0, 0.978, pruned_bytes=101)])
    assert list(larger["seen"].values()) == [True, True, True, False, False]
    coarser = bits.summary([seed(0, 0.978, pruned_error=4.1)])
    assert list(coarser["seen"].values()) == [True, False, False, False, True]


def test_errors_are_those_of_kept_weights_by_hand():
    layers = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 3))
    layers[0].weight.data = torch.tensor([[1.0, 2.0, 0.0, 7.0]])
    layers[1].weight.data = torch.tensor([[-1.0], [0.0], [1.0]])
    found = bits.error(layers, sec.share_weights(layers, 1))
    first = {"weights": 3, "squares": 54.0, "absolute": 0.5, "relative": 0.5 / 54}  # 1 and 2 share 1.5
    second = {"weights": 2, "squares": 2.0, "absolute": 0.0, "relative": 0.0}
    assert found == {
        "absolute": 0.5, "relative": 0.5 / 56, "layers": {"0.weight": first, "1.weight": second},
    }  # fmt: skip


def test_the_figure_has_a_curve_for_each_network_and_way():
    drawn = bits.figure(bits.summary([seed(0, 0.978)]))
    assert [curve.name for curve in drawn.data] == [
        "dense, shared and trained", "dense, shared", "dense, integers", "dense, error",
        "pruned, shared and trained", "pruned, shared", "pruned, integers", "pruned, error",
    ]  # fmt: skip
    assert list(drawn.data[0].x) == [1, 2, 3] and list(drawn.data[0].y) == [0.9, 0.979, 0.98]
    assert list(drawn.data[3].y) == [0.4, 0.1, 0.025]
    assert "mean of 1 seeds" not in drawn.layout.title.text
