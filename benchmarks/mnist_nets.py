"""LeNet-300-100 and LeNet-5, any number of units wide, and cutting both.

LeNet-5 is the 20-50-500-10 form of Caffe and of the compression papers, with ReLU behind both poolings. LeCun, Bottou,
Bengio, Haffner: Gradient-based learning applied to document recognition, 1998.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec

WIDTHS = {"lenet_300_100": (300, 100), "lenet_5": (20, 50, 500)}
"""Units of the hidden layers."""


class LeNet300(nn.Module):
    """Images [N, 1, 28, 28] -> logits [N, 10]; 266,610 parameters, 266,200 of them weights."""

    def __init__(self, first: int = 300, second: int = 100) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class LeNet5(nn.Module):
    """Images [N, 1, 28, 28] -> logits [N, 10]; 431,080 parameters, 430,500 of them weights."""

    def __init__(self, first: int = 20, second: int = 50, third: int = 500) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(second * 16, third)
        self.fc2 = nn.Linear(third, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def build(name: str, widths: Sequence[int] | None = None) -> nn.Module:
    """The network of this name, as wide as published or as given."""
    kind: type[nn.Module] = {"lenet_300_100": LeNet300, "lenet_5": LeNet5}[name]
    return kind(*(widths or WIDTHS[name]))


def narrowed(model: nn.Module, widths: Sequence[int]) -> nn.Module:
    """The network cut to these numbers of hidden units: those of the largest weights (L2) stay."""
    inputs = torch.zeros(2, 1, 28, 28)
    graph = sec.capture(model, inputs)
    groups = sec.couple(graph)
    scores = sec.score(groups, model, "l2")
    keep = {
        group.name: scores[group.name].argsort(descending=True)[:width].sort().values.tolist()
        for group, width in zip(groups.free, widths, strict=True)
    }
    return sec.cut(model, sec.plan(graph, groups, keep), inputs)


def cleaned(model: nn.Module) -> nn.Module:
    """The same function without the hidden units that nothing reaches, or that reach nothing.

    Biases are no connections: what a unit without inputs puts out goes into the biases of those that read it.
    """
    inputs = torch.zeros(2, 1, 28, 28)
    while True:
        living = [units for units in alive(model) if len(units) > 1]
        kept = [units.nonzero().flatten().tolist() or [0] for units in living]  # a layer has at least one
        if [len(units) for units in living] == [len(units) for units in kept]:
            return model
        graph = sec.capture(model, inputs)
        groups = sec.couple(graph)
        keep = {group.name: units for group, units in zip(groups.free, kept, strict=True)}
        cutting = sec.cut_detailed(model, sec.plan(graph, groups, keep), inputs, groups=groups)
        model = sec.hand_over(cutting, model, inputs, groups=groups).model


def alive(model: nn.Module) -> list[Tensor]:
    """Per hidden layer, bool [units]: a weight leads in and a weight leads out."""
    layers = list(model.children())
    found = []
    for before, after in pairwise(layers):
        units = len(before.weight)
        out = after.weight.reshape(len(after.weight), units, -1).ne(0).any(2).any(0)
        found.append(before.weight.flatten(1).ne(0).any(1) & out)
    return found


def widths_of(state: Mapping[str, Any]) -> tuple[int, ...]:
    """The numbers of hidden units, from a state dict or the shapes in a file."""
    return tuple(item.shape[0] for name, item in state.items() if name.endswith("weight"))[:-1]


def weight_count(model: nn.Module) -> int:
    """Weights, without biases."""
    return sum(item.numel() for item in model.parameters() if item.dim() > 1)
