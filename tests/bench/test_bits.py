"""Accuracy against bits: the summary by value, and its picture."""

from __future__ import annotations

from typing import Any

from benchmarks import bits


def network(own: float, trained: dict[str, float], bytes_: int) -> dict[str, Any]:
    """A row in which the shared weights are a point worse than the trained ones, and integers two points."""
    return {
        "float": {"accuracy": own, "bytes": 1000},
        "bits": {
            number: {
                "shared": {"accuracy": value - 0.01, "bytes": bytes_ * int(number)},
                "trained": {"accuracy": value},
                **({"integers": {"accuracy": value - 0.02, "bytes": bytes_}} if number != "1" else {}),
            }
            for number, value in trained.items()
        },
    }


def seed(number: int, pruned_at_2: float, pruned_bytes: int = 10) -> dict[str, Any]:
    dense = network(0.98, {"1": 0.90, "2": 0.979, "3": 0.98}, 100)
    return {
        "seed": number,
        "dense": dense,
        "pruned": network(0.978, {"1": 0.95, "2": pruned_at_2, "3": 0.978}, pruned_bytes),
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
    assert list(found["seen"].values()) == [True, True]


def test_what_is_not_seen_is_not_claimed():
    worse = bits.summary([seed(0, 0.95)])
    assert worse["pruned"]["trained"]["fewest"] == 3
    assert list(worse["seen"].values()) == [False, True]
    larger = bits.summary([seed(0, 0.978, pruned_bytes=101)])
    assert list(larger["seen"].values()) == [True, False]


def test_the_figure_has_a_curve_for_each_network_and_way():
    drawn = bits.figure(bits.summary([seed(0, 0.978)]))
    assert [curve.name for curve in drawn.data] == [
        "dense, shared and trained", "dense, shared", "dense, integers",
        "pruned, shared and trained", "pruned, shared", "pruned, integers",
    ]  # fmt: skip
    assert list(drawn.data[0].x) == [1, 2, 3] and list(drawn.data[0].y) == [0.9, 0.979, 0.98]
    assert "mean of 1 seeds" not in drawn.layout.title.text
