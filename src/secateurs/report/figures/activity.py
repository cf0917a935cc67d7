"""What the layers of a network let through, from one pass of data through the captured program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.errors import UnknownNameError, explain, nearest
from secateurs.base.seeds import seeded
from secateurs.capture.graph import Graph, Node
from secateurs.capture.program import follows_inputs
from secateurs.capture.run import operator
from secateurs.score.samples import Samples

CONVOLUTIONS = {"aten.conv1d.default": 3, "aten.conv2d.default": 4, "aten.conv3d.default": 5}
"""Each with the number of dimensions of its weight."""

CHANNELWISE = ("aten.batch_norm.", "aten.hardswish", "aten.prelu.", "aten.dropout.")
"""What acts on every channel for itself without being element-wise by PyTorch's own tag."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: its `weight`, a leaf with channels along dimension 0, and the `value` it ends in.

    That is what it computes after the batch norm and the activation that follow it, with channels along `dim`; a sum
    with something else, a pooling or another layer is no longer the layer. `samples` says that dimension 0 are samples.
    """

    name: str
    weight: str
    value: int
    dim: int
    samples: bool


def layers(graph: Graph) -> tuple[Layer, ...]:
    """Every convolution and linear layer with a weight of its own, in the order of the run, by module path."""
    weights = {leaf.value: leaf.name for leaf in graph.leaves if leaf.kind == "parameter"}
    readers: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for value in set(node.inputs):
            readers.setdefault(value, []).append(node)
    moving = follows_inputs(graph)
    found: dict[str, Layer] = {}
    for node in graph.nodes:
        rank = CONVOLUTIONS.get(node.op, 0)
        if (rank or node.op == "aten.linear.default") and node.inputs[0] in moving and node.inputs[1] in weights:
            leaf = weights[node.inputs[1]]
            name = leaf.removesuffix(".weight")
            value = _end(graph, readers, moving, node)
            shape = graph.values[value].shape
            dim = 1 - (rank != len(shape)) if rank else len(shape) - 1
            found.setdefault(name, Layer(name, leaf, value, dim, samples=dim > 0))
    return tuple(found.values())


def _end(graph: Graph, readers: dict[int, list[Node]], moving: frozenset[int], node: Node) -> int:
    """The last value behind `node` that only it and what acts on each channel alone have made."""
    value = node.outputs[0]
    assert value is not None
    while len(after := readers.get(value, [])) == 1:
        step = after[0]
        alone = [item for item in step.inputs if item in moving] == [value]
        out = step.outputs[0]
        if (
            not alone
            or not _channelwise(step.op)
            or out is None
            or graph.values[out].shape != graph.values[value].shape
        ):
            break
        value = out
    return value


def _channelwise(op: str) -> bool:
    return op.startswith(CHANNELWISE) or torch.Tag.pointwise in operator(op).tags


def pick(graph: Graph, names: Sequence[str]) -> tuple[Layer, ...]:
    """The named layers. Raises `UnknownNameError` with the nearest names."""
    known = {layer.name: layer for layer in layers(graph)}
    for name in names:
        if name not in known:
            shown = ", ".join([*list(known)[:6], *["..."] * (len(known) > 6)])
            close = nearest(name, known)
            raise UnknownNameError(
                explain(
                    f"There is no layer named {name!r}",
                    evidence=f"{len(known)} convolutions and linear layers: {shown}",
                    next_step=f"did you mean {' or '.join(map(repr, close))}?" if close else "",
                )
            )
    return tuple(known[name] for name in names)


@dataclass(frozen=True)
class Activity:
    """One layer over the data: per channel `mean` of |activation| and `zeros`, the share of entries that are 0, `[n]`.

    `sample` is what it gave for the first sample, `[n, ...]`; `lowest` the smallest entry over all data.
    """

    mean: Tensor
    zeros: Tensor
    sample: Tensor
    lowest: float


@dataclass(frozen=True)
class Activities:
    """`of` the layers by name; `count` samples were looked at; `first` is the first tensor of the first sample."""

    of: dict[str, Activity]
    count: int
    first: Tensor


def activities(
    model: nn.Module, graph: Graph, data: Iterable[Any], chosen: Sequence[Layer], *, limit: int | None = None
) -> Activities:
    """One forward pass over the first `limit` batches of `data`. The model and the random states stay as they are.

    Raises `InputError` for data that does not fit the model.
    """
    sums: dict[str, _Sums] = {}
    watched: dict[int, list[Layer]] = {}
    for layer in chosen:
        sums[layer.name] = _Sums()
        watched.setdefault(layer.value, []).append(layer)

    def made(value: int, tensor: Tensor) -> None:
        for layer in watched.get(value, ()):
            sums[layer.name].add(layer, tensor)

    count, first = 0, torch.empty(0)
    with seeded(0), torch.no_grad():
        for batch in Samples(model, graph, data, limit=limit):
            batch.program.run(batch.begin(), made=made)
            first = first if count else _first(batch.given)
            count += batch.size
    return Activities({name: mine.activity() for name, mine in sums.items()}, count, first)


def _first(given: Sequence[Tensor]) -> Tensor:
    return next(iter(_rows(given)), torch.empty(0))


def _rows(given: Sequence[Tensor]) -> Iterator[Tensor]:
    yield from (tensor[0].detach().cpu() for tensor in given if tensor.dim() and len(tensor))


class _Sums:
    """Sums over samples and positions of one layer's channels, in float64, whatever the split into batches."""

    def __init__(self) -> None:
        self.entries = 0
        self.total = self.zeros = torch.zeros(())
        self.sample: Tensor | None = None
        self.lowest = float("inf")

    def add(self, layer: Layer, tensor: Tensor) -> None:
        channels = tensor.movedim(layer.dim, 0)
        rows = channels.reshape(len(channels), -1)
        self.total = self.total + rows.abs().sum(1, dtype=torch.float64).cpu()
        self.zeros = self.zeros + (rows == 0).sum(1).cpu()
        self.entries += rows.shape[1]
        self.lowest = min(self.lowest, float(rows.min()))
        if self.sample is None:
            own = tensor[0].movedim(layer.dim - 1, 0) if layer.samples else channels
            self.sample = own.detach().cpu().clone()

    def activity(self) -> Activity:
        assert self.sample is not None
        return Activity(self.total / self.entries, self.zeros.double() / self.entries, self.sample, self.lowest)


__all__ = ["Activities", "Activity", "Layer", "activities", "layers", "pick"]
