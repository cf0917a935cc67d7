"""What an operator that sums channels away reads for one entry of its output: a patch and a row of weights.

Convolutions of every rank, grouped and transposed ones, and linear layers all are `y[i, o] = sum over channels c and
kernel positions r of patch[i, c, r] * weight[o, c, r]`, plus a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from secateurs.capture.graph import Node
from secateurs.capture.program import BatchAxis
from secateurs.couple.rules.registry import arguments, base_name, value

CONVOLUTIONS = frozenset(
    f"aten.{name}"
    for name in (
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    )
)


@dataclass(frozen=True)
class Rows:
    """A reader without a kernel: every place is one row of channels.

    `weight_value` is the number of a linear layer's weight. None stands for any other operator: it counts as the plain
    sum over the channels, one output.
    """

    dim: int
    weight_value: int | None = None

    def weight(self, tensor: Tensor | None, channels: int) -> Tensor:
        """Weights `[outputs, channels, 1]`, float64."""
        if tensor is None:
            return torch.ones(1, channels, 1, dtype=torch.float64)
        return tensor.detach().double().reshape(-1, channels, 1)

    def places(self, tensor: Tensor, axis: BatchAxis | None) -> tuple[int, int]:
        """How many samples there are, and at how many places each of them is read."""
        rows = tensor.numel() // tensor.shape[self.dim]
        samples = rows if axis is None else tensor.shape[axis.dim] // axis.entries
        return samples, rows // samples

    def patches(self, tensor: Tensor, axis: BatchAxis | None, sample: Tensor, place: Tensor) -> Tensor:
        """Patches `[entries, channels, 1]`, float64, of these samples at these places."""
        if axis is None:
            rows = tensor.movedim(self.dim, -1).flatten(0, -2).unsqueeze(1)
        else:
            apart = axis.by_sample(tensor).unsqueeze(1)  # [samples, 1, entries, the other dimensions]
            others = [dim for dim in range(tensor.dim()) if dim != axis.dim]
            rows = apart.movedim(2 if self.dim == axis.dim else 3 + others.index(self.dim), -1).flatten(1, -2)
        return rows[sample, place].double().unsqueeze(2)


@dataclass(frozen=True)
class Windows:
    """A convolution that reads `[samples, channels, *positions]` (or no samples at all).

    `kernel`, `stride`, `padding` (at the start), `dilation` and the size `out` of the output have one entry per
    dimension of the positions.
    """

    weight_value: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[int, ...]
    groups: int
    transposed: bool

    def weight(self, tensor: Tensor | None, channels: int) -> Tensor:
        """Weights `[outputs, channels, kernel positions]`, float64, with zeros between the groups."""
        assert tensor is not None
        blocks = tensor.detach().double().flatten(2).chunk(self.groups, 0)
        blocks = tuple(block.transpose(0, 1) for block in blocks) if self.transposed else blocks
        outputs, inputs, kernel = blocks[0].shape
        dense = blocks[0].new_zeros(self.groups * outputs, self.groups * inputs, kernel)
        for number, block in enumerate(blocks):
            dense[number * outputs : (number + 1) * outputs, number * inputs : (number + 1) * inputs] = block
        return dense

    def places(self, tensor: Tensor, axis: BatchAxis | None) -> tuple[int, int]:
        """How many samples there are, and at how many places each of them is read."""
        rows = self._batched(tensor).shape[0]
        entries = self._entries(tensor, axis)
        return rows // entries, entries * prod(self.out)

    def patches(self, tensor: Tensor, axis: BatchAxis | None, sample: Tensor, place: Tensor) -> Tensor:
        """Patches `[entries, channels, kernel positions]`, float64, of these samples at these places."""
        whole, entries, spots = self._batched(tensor), self._entries(tensor, axis), prod(self.out)
        entry = place // spots
        minor = axis is not None and axis.minor
        row = entry * (whole.shape[0] // entries) + sample if minor else sample * entries + entry
        rank = len(self.out)
        index = [row.reshape(-1, *(1,) * rank)]
        inside = torch.ones((), dtype=torch.bool, device=whole.device)
        for dim, at in enumerate(torch.unravel_index(place % spots, self.out)):
            position, valid = self._read_at(dim, at, whole.shape[2 + dim])
            shape = (-1, *(self.kernel[dim] if other == dim else 1 for other in range(rank)))
            index.append(position.reshape(shape))
            inside = inside & valid.reshape(shape)
        found = whole.movedim(1, -1)[tuple(index)] * inside.unsqueeze(-1)
        return found.flatten(1, -2).transpose(1, 2).double()

    def _read_at(self, dim: int, at: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Where the kernel lies in the input for output positions `at`: `[entries, kernel]`, and what is inside."""
        steps = torch.arange(self.kernel[dim], device=at.device) * self.dilation[dim]
        if self.transposed:
            found = at.unsqueeze(1) + self.padding[dim] - steps
            valid = found % self.stride[dim] == 0
            found = found.div(self.stride[dim], rounding_mode="floor")
        else:
            found = at.unsqueeze(1) * self.stride[dim] - self.padding[dim] + steps
            valid = torch.ones_like(found, dtype=torch.bool)
        return found.clamp(0, size - 1), valid & (found >= 0) & (found < size)

    def _batched(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(0) if tensor.dim() == len(self.out) + 1 else tensor

    def _entries(self, tensor: Tensor, axis: BatchAxis | None) -> int:
        return axis.entries if axis is not None and axis.dim == 0 and tensor.dim() == len(self.out) + 2 else 1


def reader(node: Node, read: int, dim: int, shapes: Sequence[Sequence[int]]) -> Rows | Windows:
    """How `node` reads value `read`, whose channels lie along `dim`; `shapes` are those of all values, by number."""
    given, op = arguments(node), base_name(node.op)
    weight = value(given.get("weight"))
    if weight is None or weight == read or value(given.get("input")) != read:
        return Rows(dim)
    kernel = tuple(shapes[weight][2:])
    if op == "aten.linear" and dim == len(shapes[read]) - 1:
        return Rows(dim, weight)
    if op not in CONVOLUTIONS or dim != len(shapes[read]) - len(kernel) - 1:
        return Rows(dim)
    out = next(item for item in node.outputs if item is not None)

    def each(item: int | Sequence[int]) -> tuple[int, ...]:
        numbers = (item,) if isinstance(item, int) else tuple(item)
        return numbers * len(kernel) if len(numbers) == 1 else numbers

    dilation = each(given["dilation"])
    padding = given["padding"]
    if isinstance(padding, str):
        padding = [
            step * (size - 1) // 2 if padding == "same" else 0 for step, size in zip(dilation, kernel, strict=True)
        ]
    return Windows(
        weight, kernel, each(given["stride"]), each(padding), dilation, tuple(shapes[out][-len(kernel) :]),
        int(given["groups"]), bool(given.get("transposed", "transpose" in op)),
    )  # fmt: skip


__all__ = ["Rows", "Windows", "reader"]
