"""Dropout shrinks with the layers that iterative pruning leaves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from train.networks import images, loader, points

import secateurs as sec

pytestmark = pytest.mark.medium

DATA = loader(points(60))


class WithDropout(nn.Module):
    """Modules are made in another order than they run; a convolution, and dropouts before and behind linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last, self.behind = nn.Linear(10, 3), nn.Dropout(0.2)
        self.beside, self.front = nn.Dropout2d(0.3), nn.Dropout(0.5)
        self.fc, self.conv, self.conv2 = nn.Linear(72, 10), nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.beside(self.conv(x))).flatten(1)
        return self.behind(self.last(self.fc(self.front(x)).relu()))  # type: ignore[no-any-return]


def test_dropout_shrinks_with_the_layer() -> None:
    """8 % of fc stay: 0.5 becomes 0.1414."""
    model, data = WithDropout(), loader(images(20))
    still = sec.FineTune(epochs=0, progress=False)
    common: dict[str, Any] = {"rounds": 2, "evaluate": lambda _: 0.0, "retrain": still}
    result = sec.iterative_prune(model, data, sparsity={"fc": 0.92, "last": 0.75}, **common)
    assert result.model.front.p == pytest.approx(0.5 * math.sqrt(58 / 720))
    assert result.model.front.p == pytest.approx(0.1414, abs=1e-3)
    assert result.model.behind.p == pytest.approx(0.2 * math.sqrt(7 / 30))
    assert (result.model.beside.p, model.front.p) == (0.3, 0.5)
    other = sec.iterative_prune(model, data, sparsity=0.75, dropout={"front": "last"}, **common)
    assert (other.model.front.p, other.model.behind.p) == (pytest.approx(0.5 * math.sqrt(7 / 30)), 0.2)
    left = sec.iterative_prune(model, data, sparsity=0.75, dropout=False, **common)
    assert (left.model.front.p, left.model.behind.p) == (0.5, 0.2)
    with torch.no_grad():
        model.fc.weight.zero_()
    gone = sec.iterative_prune(model, data, sparsity=sec.Threshold("value", 1e-9), **common)
    assert gone.model.front.p == 0.0
    with pytest.raises(sec.UnknownNameError, match="did you mean 'front'"):
        sec.iterative_prune(model, data, sparsity=0.5, dropout={"frnt": "fc"}, **common)


def test_dropout_shrinks_with_the_connections_that_there_were() -> None:
    """Pruned in two calls a layer has the rate that it has in one; between two linear layers, by the one behind it."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 10), nn.Dropout(0.5), nn.Linear(10, 10), nn.Linear(10, 3)), DATA
    common: dict[str, Any] = {"evaluate": lambda _: 0.0, "retrain": sec.FineTune(epochs=0, progress=False)}
    once = sec.iterative_prune(model, data, sparsity={"2": 0.9}, rounds=2, **common)
    half = sec.iterative_prune(model, data, sparsity={"2": 0.5}, rounds=1, **common)
    twice = sec.iterative_prune(half.model, data, sparsity={"2": 0.9}, rounds=2, **common)
    assert half.model[1].p == pytest.approx(0.5 * math.sqrt(50 / 100))
    assert twice.model[1].p == pytest.approx(once.model[1].p) == pytest.approx(0.5 * math.sqrt(10 / 100))
    train = sec.FineTune(epochs=1, lr=0.1, progress=False)  # zeros of the layer come back before it has a target
    later = sec.iterative_prune(
        half.model, data, sparsity=[{"0": 0.1}, {"2": 0.1}], evaluate=lambda _: 0.0, retrain=train
    )
    assert int(later.masks["2.weight"].sum()) == 90
    assert later.model[1].p == half.model[1].p, "it never rises"
