"""Surgery against pruning step by step: the settings are what is trained, the summary by value, its picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from train.networks import loader, plain, points

import secateurs as sec
from benchmarks import surgery


def seed(number: int, error: float, times_fewer: float = 22.0) -> dict[str, Any]:
    """One in which the dense network errs by 1.8 %, the pruned ones by 2 % and 2.6 %, surgery as given."""

    def row(times: float, wrong: float) -> dict[str, Any]:
        return {"kept": {}, "weights": round(266_200 / times), "times_fewer": times, "error": wrong}

    return {
        "seed": number, "dense": row(1.0, 0.018), "iterative": row(12.0, 0.02),
        "iterative, as few": row(times_fewer, 0.026), "surgery": row(times_fewer, error),
    }  # fmt: skip


def test_summary_by_value() -> None:
    found = surgery.summary([seed(0, 0.017), seed(1, 0.021, 24.0)])
    assert found["seeds"] == 2
    assert found["surgery"] == {"weights": 11_596, "times_fewer": 23.0, "error": 0.019, "spread": 0.002828}
    assert found["dense"] == {"weights": 266_200, "times_fewer": 1.0, "error": 0.018, "spread": 0.0}
    assert list(found["seen"].values()) == [False, True, True]
    assert "than dense" in next(iter(found["seen"]))


def test_what_is_not_seen_is_not_claimed() -> None:
    assert list(surgery.summary([seed(0, 0.018)])["seen"].values()) == [True, True, True]
    assert list(surgery.summary([seed(0, 0.027)])["seen"].values()) == [False, False, False]
    assert list(surgery.summary([seed(0, 0.01), seed(1, 0.01, 19.9)])["seen"].values()) == [False] * 3


def test_as_many_epochs_for_each_way() -> None:
    settings = surgery.SETTINGS
    assert settings["retrain"]["epochs"] * settings["iterative"]["rounds"] == settings["operate"]["epochs"]
    assert settings["retrain"]["weight_decay"] == settings["operate"]["weight_decay"]


@pytest.mark.filterwarnings("ignore:Nothing is left")
def test_the_settings_are_what_is_trained() -> None:
    """A network with layers of the same names, for 20 steps: masks come in at the first and are held after the last."""
    wanted = surgery.surgery()
    assert sec.Sparsity.from_plain(wanted.plain()) == wanted
    model = nn.Sequential(*plain(width=12), nn.ReLU(), nn.Linear(3, 3))
    config = sec.FineTune(epochs=4, lr=0.1, sparsity=wanted, progress=False)
    result = sec.finetune(model, loader(points(40)), config)
    assert result.masks is not None
    assert set(result.masks) == {"0.weight", "2.weight", "4.weight"}
    assert all(torch.equal(mask, result.model.get_parameter(name) != 0) for name, mask in result.masks.items())
    assert not all(bool(mask.all()) for mask in result.masks.values())


def test_the_figure_has_a_point_for_each_network() -> None:
    pytest.importorskip("plotly")
    drawn = surgery.figure(surgery.summary([seed(0, 0.017)]))
    assert [list(point.x) for point in drawn.data] == [[1.0], [12.0], [22.0], [22.0]]
    assert [list(point.y) for point in drawn.data] == [[0.018], [0.02], [0.026], [0.017]]
    assert drawn.layout.title.text.endswith("mean of 1 seed")
