"""LeNet-300-100 and LeNet-5, any number of units wide, and the same numbers faster while LeNet-5 is trained.

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


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """`model(images)` for images [N, 28, 28], several times faster for LeNet-5 when its gradients are wanted."""
    if isinstance(model, LeNet5):
        x = images.permute(1, 2, 0).contiguous().unsqueeze(0)
        for layer in (model.conv1, model.conv2):
            pooled = _Pooled.apply(x, layer.weight)
            x = F.relu(pooled + layer.bias.view(-1, 1, 1, 1))
        return model.fc2(F.relu(model.fc1(x.flatten(0, 2).t())))
    return model(images.unsqueeze(1))


class _Pooled(torch.autograd.Function):
    """Max pooling of a 5x5 convolution as one matrix product: [C, H, W, N], [O, C, 5, 5] -> [O, h, w, N].

    With the images along the last axis, copies and sums run over whole vectors. The four places of a pooling window are
    four blocks of columns; the first of equal ones is the largest, as in PyTorch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        channels, rows, columns, images = x.shape
        h, w = (rows - 4) // 2, (columns - 4) // 2
        patches = _windows(x, h, w).reshape(channels * 25, 4 * h * w * images)
        places = (weight.flatten(1) @ patches).view(len(weight), 4, h, w, images)
        ctx.save_for_backward(patches, weight, places)
        ctx.shape, ctx.wanted = x.shape, ctx.needs_input_grad[0]
        upper, lower = torch.maximum(places[:, 0], places[:, 1]), torch.maximum(places[:, 2], places[:, 3])
        return torch.maximum(upper, lower)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        patches, weight, places = ctx.saved_tensors
        upper, lower = torch.maximum(places[:, 0], places[:, 1]), torch.maximum(places[:, 2], places[:, 3])
        each = torch.empty_like(places)
        below = gradient * (lower > upper)
        above = gradient - below
        torch.mul(above, places[:, 1] > places[:, 0], out=each[:, 1])
        torch.sub(above, each[:, 1], out=each[:, 0])
        torch.mul(below, places[:, 3] > places[:, 2], out=each[:, 3])
        torch.sub(below, each[:, 3], out=each[:, 2])
        flat = each.view(len(weight), -1)
        slopes = (flat @ patches.t()).view(weight.shape)
        if not ctx.wanted:
            return None, slopes
        x = gradient.new_zeros(ctx.shape)
        h, w = gradient.shape[1:3]
        carried = (weight.flatten(1).t() @ flat).view(_windows(x, h, w).shape)
        for r in range(5):
            for s in range(5):
                for a in range(2):
                    for b in range(2):
                        x[:, r + a : r + a + 2 * h : 2, s + b : s + b + 2 * w : 2] += carried[:, r, s, a, b]
        return x, slopes


def _windows(x: Tensor, h: int, w: int) -> Tensor:
    """View [C, 5, 5, 2, 2, h, w, N]: what is under the kernel's 5 x 5 at the 2 x 2 places of h x w pooling windows."""
    c, down, right, n = x.stride()
    shape = (len(x), 5, 5, 2, 2, h, w, x.shape[3])
    return x.as_strided(shape, (c, down, right, down, right, 2 * down, 2 * right, n))


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
