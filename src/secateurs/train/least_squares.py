"""The normal equations of a linear layer or a convolution: what it reads, and what it should put out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from secateurs.capture.graph import Node
from secateurs.couple.rules.registry import arguments, base_name

LAYERS = ("aten.linear", "aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution")


def is_layer(node: Node) -> bool:
    """Does the node multiply patches of its input by a weight? Transposed convolutions do not count."""
    return base_name(node.op) in LAYERS and not arguments(node).get("transposed")


@dataclass(frozen=True)
class Windows:
    """Where a layer looks: `kernel`, `stride`, `padding` (before and after) and `dilation` per spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @classmethod
    def of(cls, node: Node, weight: Sequence[int]) -> Windows:
        """Those of a node that reads a weight of this shape; a linear layer has no spatial dimension."""
        given = arguments(node)
        if base_name(node.op) == "aten.linear":
            return cls((), (), (), ())
        kernel = tuple(weight[2:])
        steps = _each(given["dilation"], len(kernel))
        if given["padding"] == "same":
            spans = [(size - 1) * step for size, step in zip(kernel, steps, strict=True)]
            padding = tuple((span // 2, span - span // 2) for span in spans)
        else:
            padding = tuple((p, p) for p in _each(0 if given["padding"] == "valid" else given["padding"], len(kernel)))
        return cls(kernel, _each(given["stride"], len(kernel)), padding, steps, given["groups"])

    def channels_last(self, output: Tensor) -> Tensor:
        """An output `[..., channels, *positions]` as rows `[positions, channels]`, samples outermost."""
        return output.movedim(output.dim() - 1 - len(self.kernel), -1).reshape(-1, self._channels(output))

    def patches(self, x: Tensor, rows: Tensor) -> Tensor:
        """What the layer reads for these rows of its output, `[rows, groups, inputs of a group * kernel]`, float64."""
        rank = len(self.kernel)
        channels = self._channels(x)
        x = x.reshape(-1, channels, *x.shape[x.dim() - rank :])
        if any(before or after for before, after in self.padding):
            x = functional.pad(x, [size for pair in reversed(self.padding) for size in pair])
        for dim, (size, step, gap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + dim, (size - 1) * gap + 1, step)[..., ::gap]
        places = torch.unravel_index(rows, (x.shape[0], *x.shape[2 : 2 + rank]))
        found = x.movedim(1, 1 + rank)[places]
        return found.reshape(len(rows), self.groups, -1).double()

    def _channels(self, tensor: Tensor) -> int:
        return tensor.shape[tensor.dim() - 1 - len(self.kernel)]


def _each(item: int | Sequence[int], rank: int) -> tuple[int, ...]:
    numbers = (item,) if isinstance(item, int) else tuple(item)
    return numbers * rank if len(numbers) == 1 else numbers


@dataclass
class Normal:
    """Sums of a least-squares problem per group: `gram` [groups, n, n], `right` [groups, n, outputs], `squares`
    [groups, outputs] of what is wanted, in float64.

    With `intercept` the last of the n inputs is the constant 1.
    """

    intercept: bool
    gram: Tensor = field(default_factory=lambda: torch.zeros(()))
    right: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, patches: Tensor, wanted: Tensor) -> None:
        """More rows: patches [rows, groups, inputs], outputs [rows, groups * outputs]."""
        inputs = patches.transpose(0, 1)
        if self.intercept:
            inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=2)
        outputs = wanted.double().reshape(len(wanted), inputs.shape[0], -1).transpose(0, 1)
        self.gram = self.gram + inputs.mT @ inputs
        self.right = self.right + inputs.mT @ outputs
        self.squares = self.squares + outputs.square().sum(1)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor | None]:
        """The weights `[groups, outputs, inputs]` and the intercept `[groups * outputs]` of the least squares.

        `ridge` times the mean square of the inputs is added for every square of a weight; the intercept goes free.
        """
        size = self.gram.shape[-1]
        inputs = size - int(self.intercept)
        penalty = torch.zeros(len(self.gram), size, dtype=torch.float64, device=self.gram.device)
        penalty[:, :inputs] = ridge * self.scale.unsqueeze(1)
        tiny = torch.finfo(torch.float64).eps * size * self.gram.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
        matrix = self.gram + torch.diag_embed(penalty + tiny.clamp(min=torch.finfo(torch.float64).tiny))
        found = torch.linalg.solve(matrix, self.right).mT
        return found[..., :inputs], found[..., -1].flatten() if self.intercept else None

    @property
    def scale(self) -> Tensor:
        """The mean over the inputs of their sums of squares, `[groups]`."""
        inputs = self.gram.shape[-1] - int(self.intercept)
        return self.gram.diagonal(dim1=1, dim2=2)[:, :inputs].mean(1)

    def centred(self) -> Normal:
        """The same problem with its intercept solved for: an ordinary one, of deviations from the means."""
        if not self.intercept:
            return self
        count = self.gram[:, -1:, -1:]
        sums, outputs = self.gram[:, :-1, -1:], self.right[:, -1:]
        gram = self.gram[:, :-1, :-1] - sums @ sums.mT / count
        right = self.right[:, :-1] - sums @ outputs / count
        return Normal(False, gram, right, self.squares - outputs.squeeze(1).square() / count.squeeze(2))

    def shift(self, weights: Tensor) -> Tensor | None:
        """The intercept `[groups * outputs]` that goes best with weights `[groups, outputs, inputs]`; None without."""
        if not self.intercept:
            return None
        carried = (weights @ self.gram[:, :-1, -1:]).squeeze(2)
        return ((self.right[:, -1] - carried) / self.gram[:, -1, -1:]).flatten()


__all__ = ["Normal", "Windows", "is_layer"]
