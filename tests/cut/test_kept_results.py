"""Modules that keep results of their parameters between runs: a cut must not hand on what no longer fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec

torch.set_num_threads(1)
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


class Kept(nn.Module):
    """Doubles its weight once per eval mode and keeps the result; `train()` drops it, as vision libraries do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> nn.Module:
        self.kept = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x @ (2 * self.weight).T
        if "double" not in self.kept:
            self.kept["double"] = 2 * self.weight.detach()
        return x @ self.kept["double"].T


class Stubborn(Kept):
    """The same, but nothing ever drops what it keeps."""

    def train(self, mode: bool = True) -> nn.Module:
        return nn.Module.train(self, mode)


def network(kind: type[Kept]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), kind(8, 10), nn.ReLU(), nn.Linear(10, 2))


@pytest.mark.parametrize("kind", [Kept, Stubborn])
@pytest.mark.parametrize("training", [False, True])
def test_results_kept_before_the_cut_do_not_survive_it(kind: type[Kept], training: bool):
    model = network(kind).eval()
    model(X)
    for module in model.modules():
        module.training = training
    assert model[2].kept
    graph = sec.capture(model, X)
    groups = sec.couple(graph)
    keep = {"0": range(4), "2": range(5)} if kind is Kept else {"0": range(4)}  # a kept tensor is no parameter
    plan = sec.plan(graph, groups, keep)
    small = sec.cut(model, plan, X)
    assert all(module.training is training for module in small.modules())
    assert model[2].kept
    rows = len(keep.get("2", range(10)))
    weight = 2 * model[2].weight.detach()[:rows, :4]
    hidden = torch.relu(torch.relu(nn.functional.linear(X, model[0].weight[:4], model[0].bias[:4])) @ weight.T)
    expected = nn.functional.linear(hidden, model[4].weight[:, :rows], model[4].bias)
    for module in small.modules():
        module.training = False
    torch.testing.assert_close(small(X), expected)
    if kind is Kept:
        assert type(small) is nn.Sequential
