"""The id engine: integer ids flow along the graph, ties between them say what lives and dies together.

Every index of every axis of every leaf gets a fresh integer id. A value carries *layers*: integer tensors of ids,
broadcastable to its shape, of size 1 along each dimension where nothing varies. An element of the value lives while
all its ids live. A dimension that no layer varies along can not lose anything.

A layer may vary along several dimensions at once: the output of a linear layer viewed as heads x columns. Only whole
slices can go, so such a layer must *collapse* onto one dimension, the unit, when an operator needs it to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from secateurs.capture.graph import Graph, Node

Layer = Tensor
Layers = tuple[Tensor, ...]


def varying(layer: Layer) -> tuple[int, ...]:
    """Dimensions along which the layer varies."""
    return tuple(dim for dim, size in enumerate(layer.shape) if size > 1)


def vector(layer: Layer, dim: int) -> Tensor:
    """A layer that varies along `dim` only, as a 1-D tensor."""
    return layer.reshape(layer.shape[dim])


def spread(ids: Tensor, dim: int, rank: int) -> Layer:
    """A 1-D tensor of ids as a layer of the given rank that varies along `dim`."""
    shape = [1] * rank
    shape[dim % rank] = ids.numel()
    return ids.reshape(shape)


class Coupler:
    """State of one coupling: ids given out, ties, freezes, and the layers of every value.

    `apart` are the values whose channels freeze where two of them meet element by element; by default none.
    """

    def __init__(self, graph: Graph, unit: str, apart: frozenset[int] = frozenset()) -> None:
        self.graph = graph
        self.unit = unit
        self.apart = apart
        self.layers: dict[int, Layers] = {}
        self.consumers: set[tuple[int, int]] = set()
        self.count = 0
        self.ties: list[tuple[Tensor, Tensor]] = []
        self.tied_at: list[int] = []
        self.frozen: list[tuple[Tensor, str]] = []
        self.inexact: list[tuple[Tensor, str]] = []
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.node: int = -1
        self.inexact_nodes: set[int] = set()
        self.holding: set[int] = set()
        self.unruled: set[int] = set()
        self.copies: set[int] = set()
        self.static: set[int] = {leaf.value for leaf in graph.leaves}
        for node in graph.nodes:
            if all(value in self.static for value in node.inputs):
                self.static.update(out for out in node.outputs if out is not None)

    # ids ---------------------------------------------------------------------------------------------------------

    def fresh(self, size: int) -> Tensor:
        """`size` ids that nothing else has."""
        self.count += size
        return torch.arange(self.count - size, self.count)

    def fresh_copies(self, size: int) -> Tensor:
        """`size` ids of repetitions: where they share an axis with channels, the channels are what can go."""
        ids = self.fresh(size)
        self.copies.update(ids.tolist())
        return ids

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Elementwise: the two live and die together. Shapes broadcast."""
        if a is not b:
            a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
            self.ties.append((a.reshape(-1), b.reshape(-1)))
            self.tied_at.append(self.node)

    def freeze(self, ids: Tensor, why: str) -> None:
        """None of these may be removed. An empty reason marks what nobody would ask about (kernel taps)."""
        if ids.numel():
            self.frozen.append((ids.reshape(-1), why))
            if why:
                self.holding.add(self.node)

    def change(self, ids: Tensor, why: str) -> None:
        """Removing one of these changes the others (statistics over the axis)."""
        self.inexact.append((ids.reshape(-1), why))
        self.inexact_nodes.add(self.node)

    # values ------------------------------------------------------------------------------------------------------

    def shape(self, value: int) -> tuple[int, ...]:
        return self.graph.values[value].shape if value >= 0 else self.shapes[value]

    def of(self, value: int) -> Layers:
        """The layers of a value; none for the caller's inputs."""
        return self.layers.get(value, ())

    def temporary(self, shape: tuple[int, ...], layers: Iterable[Layer]) -> int:
        """A number for a tensor inside a composite operator, such as attention scores."""
        number = -1 - len(self.shapes)
        self.shapes[number] = shape
        self.put(number, layers)
        return number

    def put(self, value: int | None, layers: Iterable[Layer]) -> None:
        """Set the layers of an output. A layer that does not vary pins its one id; overlapping layers lose one."""
        if value is None:
            return
        kept: list[Layer] = []
        for layer in sorted(layers, key=lambda item: (self._repeats(item), -item.numel())):
            if not varying(layer):
                continue
            taken = {dim for other in kept for dim in varying(other)}
            if taken & set(varying(layer)):
                by = f"{self.graph.nodes[self.node].where} makes one axis of" if self.node >= 0 else "an axis holds"
                self.freeze(layer, f"{by} two removable axes, of which only one can be cut")
            else:
                kept.append(layer)
        self.layers[value] = tuple(kept)

    def _repeats(self, layer: Layer) -> bool:
        """Whether the layer is an axis of repetitions."""
        return bool(self.copies) and layer.numel() > 0 and int(layer.reshape(-1)[0]) in self.copies

    def pin(self, layer: Layer, node: Node) -> Layer | None:
        """None, and the id frozen, if the layer has come down to a single id; else the layer."""
        if varying(layer):
            flat = layer.reshape(-1)
            if bool((flat == flat[0]).all()):
                self.freeze(flat[:1], f"{node.where} takes a piece that is this unit alone")
                return None
            return layer
        self.freeze(layer, f"{node.where} takes this index alone")
        return None

    def collapse(self, layer: Layer, dim: int) -> Layer:
        """The layer made to vary along `dim` only: ids along its other dimensions are tied."""
        small = layer
        for other in varying(layer):
            if other != dim:
                small = small.narrow(other, 0, 1)
        if small.numel() != layer.numel():
            self.tie(layer, small)
        return small

    def along(self, value: int, dim: int) -> Tensor | None:
        """Ids along one dimension as a 1-D tensor, collapsing a joint layer onto it; None where nothing varies."""
        rank = len(self.shape(value))
        dim %= max(rank, 1)
        for layer in self.of(value):
            if layer.shape[dim] > 1:
                small = self.collapse(layer, dim)
                if small is not layer:
                    self.layers[value] = tuple(small if item is layer else item for item in self.of(value))
                return vector(small, dim)
        return None

    def others(self, value: int, dims: Sequence[int]) -> Layers:
        """The layers of a value that vary along none of `dims`."""
        rank = len(self.shape(value))
        banned = {dim % rank for dim in dims} if rank else set()
        return tuple(layer for layer in self.of(value) if not banned & set(varying(layer)))

    def avoid(self, value: int, dims: Sequence[int], why: str) -> Layers:
        """Make no layer vary along `dims`: joint layers collapse onto another dimension, the rest freeze."""
        rank = len(self.shape(value))
        banned = {dim % rank for dim in dims} if rank else set()
        kept: list[Layer] = []
        for layer in self.of(value):
            free = [dim for dim in varying(layer) if dim not in banned]
            if not banned & set(varying(layer)):
                kept.append(layer)
            elif free:
                kept.append(self.collapse(layer, free[0]))
            else:
                self.freeze(layer, why)
        self.layers[value] = tuple(kept)
        return tuple(kept)

    def freeze_all(self, value: int, why: str) -> None:
        """Freeze every id of a value."""
        for layer in self.of(value):
            self.freeze(layer, why)

    def pair(self, a: Tensor | None, b: Tensor | None, why: str) -> Tensor | None:
        """Two axes that must stay equal: tie them, or freeze the one if the other can lose nothing."""
        if a is not None and b is not None:
            self.tie(a, b)
            return a
        rest = a if a is not None else b
        if rest is not None:
            self.freeze(rest, why)
        return None
