"""The graph as it must look after a cut: same nodes, smaller leaves, sizes in arguments made to fit.

Most operators need nothing: their arguments name no size. Those that do are listed here, one small function each.
Operators that move indices of an owned axis about (roll, irregular slices, index tables) become one `index_select`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.base.errors import ProofError, explain
from secateurs.capture.graph import Graph, Leaf, Node, Ref, Value, map_refs
from secateurs.capture.run import operator
from secateurs.couple.group import Bools, Groups
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.couple.written import WRITES, only_written

Ints = np.ndarray


@dataclass
class Cutting:
    """A graph being rewritten for the units that live."""

    groups: Groups
    alive: Bools
    constants: dict[str, Tensor] = field(default_factory=dict)
    leaves: list[Leaf] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    targets: dict[int, tuple[int, Ref]] = field(default_factory=dict)
    """Views that are only written to and hold a whole axis now: which axis, and the constant with the entries meant."""

    @property
    def graph(self) -> Graph:
        return self.groups.graph

    def old(self, value: int) -> tuple[int, ...]:
        return self.graph.values[value].shape

    def new(self, value: int) -> tuple[int, ...]:
        return self.values[value].shape

    def kept(self, value: int, dim: int) -> Ints | None:
        """Indices that stay on an axis; None if it loses nothing."""
        kept = self.groups.kept(value, dim, self.alive)
        return None if kept is None or kept.size == self.old(value)[dim] else kept

    def constant(self, data: Tensor) -> Ref:
        """A new constant leaf."""
        name = f"cut.{len(self.constants)}"
        index = len(self.values)
        self.values.append(Value(index, tuple(data.shape), data.dtype, None, -1 - index))
        self.leaves.append(Leaf(name, (name,), "constant", index, tuple(data.shape), data.dtype))
        self.constants[name] = data
        return Ref(index)


Rewrite = Callable[[Cutting, Node, dict[str, Any]], Node]
REWRITES: dict[str, Rewrite] = {}


def rewrites(*names: str) -> Callable[[Rewrite], Rewrite]:
    """Register a rewriting for these operators."""

    def add(function: Rewrite) -> Rewrite:
        REWRITES.update({f"aten.{name}": function for name in names})
        return function

    return add


def rewrite(groups: Groups, alive: Bools) -> Graph:
    """The graph that is left when only these units live. Value numbers stay; new constants come after them."""
    graph = groups.graph
    cut = Cutting(groups, alive)
    cut.values = [replace(value, shape=groups.shape(value.index, alive)) for value in graph.values]
    cut.leaves = [replace(leaf, shape=cut.new(leaf.value)) for leaf in graph.leaves]
    nodes = [_rewritten(cut, node) for node in graph.nodes]
    kept = {name: slice_tensor(data, cut, graph.leaf(name).value) for name, data in graph.constants.items()}
    read = {value for node in nodes for value in node.inputs} | set(graph.outputs)
    unread = tuple(leaf for leaf in cut.leaves if leaf.kind != "constant" and leaf.value not in read)
    return replace(
        graph,
        nodes=tuple(nodes),
        values=tuple(cut.values),
        leaves=tuple(leaf for leaf in cut.leaves if leaf not in unread),
        unread=(*graph.unread, *unread),
        constants={**kept, **cut.constants},
    )


def slice_tensor(tensor: Tensor, cut: Cutting, value: int) -> Tensor:
    """The part of a leaf's data that stays, laid out in memory as before (channels last or not)."""
    found = tensor
    for dim in range(tensor.dim()):
        kept = cut.kept(value, dim)
        if kept is not None:
            found = found.index_select(dim, torch.from_numpy(kept).to(tensor.device))
    return tensor if found is tensor else found.contiguous(memory_format=_layout(tensor))


def _layout(tensor: Tensor) -> torch.memory_format:
    """Channels last only for what could not be called contiguous otherwise."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if layout is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=layout):
        return torch.contiguous_format
    return layout


def _rewritten(cut: Cutting, node: Node) -> Node:
    touched = [*node.inputs, *(out for out in node.outputs if out is not None)]
    if all(cut.old(value) == cut.new(value) for value in touched):
        return node
    change = REWRITES.get(base_name(node.op))
    return change(cut, node, arguments(node)) if change else node


def with_arguments(node: Node, op: str | None = None, **changed: Any) -> Node:
    """The node with some arguments replaced by name."""
    name = op or node.op
    given = {**({} if op else arguments(node)), **changed}
    schema = operator(name)._schema.arguments
    args = tuple(given[item.name] for item in schema if not item.kwarg_only)
    kwargs = {item.name: given[item.name] for item in schema if item.kwarg_only and item.name in given}
    return replace(
        node, op=name, args=args, kwargs={**kwargs} if op else {**dict(node.kwargs), **_only(kwargs, node, changed)}
    )


def _only(kwargs: dict[str, Any], node: Node, changed: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in kwargs.items() if name in node.kwargs or name in changed}


def _sizes(asked: list[int], shape: tuple[int, ...]) -> list[int]:
    """A size list for the new shape; a -1 stays a -1."""
    return [size if size == -1 else new for size, new in zip(asked, shape, strict=True)]


@rewrites("view", "_unsafe_view", "reshape", "expand", "broadcast_to")
def _shape_argument(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    name = "shape" if "shape" in given else "size"
    if not isinstance(given.get(name), (list, tuple)):
        return node
    return with_arguments(node, None, **{name: _sizes(list(given[name]), cut.new(node.outputs[0] or 0))})


@rewrites("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def _factory(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    return with_arguments(node, size=list(cut.new(node.outputs[0] or 0)))


@rewrites("unflatten")
def _unflatten(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    dim = given["dim"] % len(cut.old(node.inputs[0]))
    new = cut.new(node.outputs[0] or 0)[dim : dim + len(given["sizes"])]
    return with_arguments(node, sizes=_sizes(list(given["sizes"]), new))


@rewrites("conv1d", "conv2d", "conv3d", "convolution")
def _groups(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    if given["groups"] == 1:
        return node
    x, weight = node.inputs[:2]
    channels = cut.new(x)[len(cut.new(x)) - len(cut.new(weight)) + 1]
    return with_arguments(node, groups=channels // cut.new(weight)[1])


@rewrites("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_groups(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    if given["groups"] == 1:
        return node
    out, weight = node.outputs[0] or 0, node.inputs[1]
    channels = cut.new(out)[len(cut.new(out)) - len(cut.new(weight)) + 1]
    return with_arguments(node, groups=channels // cut.new(weight)[1])


@rewrites("group_norm")
def _group_norm(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    old, new = cut.old(node.inputs[0])[1], cut.new(node.inputs[0])[1]
    return node if given["num_groups"] == 1 else with_arguments(node, num_groups=given["num_groups"] * new // old)


@rewrites("layer_norm", "rms_norm")
def _layer_norm(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    shape = cut.new(node.inputs[0])
    return with_arguments(node, normalized_shape=list(shape[len(shape) - len(given["normalized_shape"]) :]))


@rewrites("scaled_dot_product_attention")
def _attention(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    width = cut.old(node.inputs[0])[-1]
    if given["scale"] is not None or cut.new(node.inputs[0])[-1] == width:
        return node
    return with_arguments(node, scale=1 / sqrt(width))


@rewrites("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "hsplit")
def _split(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    x = node.inputs[0]
    dim = given.get("dim", 1) % len(cut.old(x))
    if cut.kept(x, dim) is None:
        return node
    sizes = [cut.new(out)[dim] for out in node.outputs if out is not None]
    return with_arguments(node, op="aten.split_with_sizes.default", self=Ref(x), split_sizes=sizes, dim=dim)


@rewrites("select")
def _select(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    x = node.inputs[0]
    dim = given["dim"] % len(cut.old(x))
    kept = cut.kept(x, dim)
    if kept is None:
        return node
    return with_arguments(node, index=int(np.searchsorted(kept, given["index"] % cut.old(x)[dim])))


@rewrites("slice", "narrow")
def _slice(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    x = node.inputs[0]
    dim = given["dim"] % len(cut.old(x))
    if x in cut.targets and dim != cut.targets[x][0] and cut.kept(x, dim) is None:
        aimed, table = cut.targets[x]
        _aim(cut, node.outputs[0] or 0, aimed, cut.new(x)[aimed], table)
        return node
    if cut.kept(x, dim) is None:
        return node
    positions = moved_positions(cut, node, dim)
    steps = np.diff(positions)
    if positions.size and (steps == steps[:1]).all():
        first, step = int(positions[0]), int(steps[0]) if steps.size else given.get("step", 1)
        end = int(positions[-1]) + 1
        return with_arguments(node, op="aten.slice.Tensor", self=Ref(x), dim=dim, start=first, end=end, step=step)
    owned = {axis for axis in range(len(cut.old(x))) if cut.kept(x, axis) is not None}
    if only_written(cut.graph, node.outputs[0] or 0, owned):
        _aim(cut, node.outputs[0] or 0, dim, cut.new(x)[dim], cut.constant(torch.from_numpy(positions)))
        return with_arguments(node, op="aten.slice.Tensor", self=Ref(x), dim=dim, start=0, end=cut.new(x)[dim], step=1)
    return _index_select(cut, node, dim, positions)


def _aim(cut: Cutting, view: int, dim: int, size: int, table: Ref) -> None:
    shape = list(cut.new(view))
    shape[dim] = size
    cut.values[view] = replace(cut.values[view], shape=tuple(shape))
    cut.targets[view] = (dim, table)


@rewrites(*(name.rstrip("_") for name in WRITES))
def _write(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    """`x[:, ::2] = y`: the view keeps all channels, and the write names those that are meant."""
    view, out = node.inputs[0], node.outputs[0] or 0
    if view not in cut.targets:
        return node
    dim, table = cut.targets[view]
    dtype = cut.values[view].dtype
    what = given.get("src", given.get("value", 0))
    if not isinstance(what, Ref):
        what = cut.constant(torch.tensor(what, dtype=dtype))
    cut.values[out] = replace(cut.values[out], shape=cut.new(view))
    indices = [*[None] * dim, table]
    op = "aten.index_put_.default"
    return with_arguments(node, op=op, self=Ref(view), indices=indices, values=what, accumulate=False)


@rewrites("roll", "index_select", "index")
def _moved(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    x, out = node.inputs[0], node.outputs[0] or 0
    owned = [dim for dim in range(len(cut.old(x))) if cut.kept(x, dim) is not None]
    moved = [dim for dim in owned if _acts_along(node, given, dim, len(cut.old(x)))]
    if not moved:
        return node
    if len(moved) > 1 or len(cut.old(x)) != len(cut.old(out)):
        raise ProofError(explain("This movement can not be rewritten for the cut", where=node.where))
    return _index_select(cut, node, moved[0], moved_positions(cut, node, moved[0]))


def _acts_along(node: Node, given: dict[str, Any], dim: int, rank: int) -> bool:
    name = base_name(node.op)
    if name == "aten.roll":
        dims = given["dims"]
        return not dims or dim in {int(d) % rank for d in dims}
    if name == "aten.index":
        return dim < len(given["indices"]) and given["indices"][dim] is not None
    if name == "aten.index_select":
        return bool(dim == given["dim"] % rank)
    return dim == 1


def moved_positions(cut: Cutting, node: Node, dim: int) -> Ints:
    """For every index that stays on the output's axis, where it is found on the input's axis after the cut."""
    x, out = node.inputs[0], node.outputs[0] or 0
    rank = len(cut.old(x))
    tags = torch.arange(cut.old(x)[dim]).reshape([-1 if d == dim else 1 for d in range(rank)]).expand(cut.old(x))
    args, kwargs = map_refs(
        (node.args, dict(node.kwargs)), lambda ref: tags if ref.value == x else cut.graph.known[ref.value]
    )
    found = operator(node.op)(*args, **kwargs).movedim(dim, 0).reshape(cut.old(out)[dim], -1)[:, 0].numpy()
    kept_out = cut.kept(out, dim)
    kept_in = cut.kept(x, dim)
    source = found if kept_out is None else found[kept_out]
    return np.asarray(source if kept_in is None else np.searchsorted(kept_in, source))


def _index_select(cut: Cutting, node: Node, dim: int, positions: Ints) -> Node:
    table = cut.constant(torch.from_numpy(np.ascontiguousarray(positions)))
    return with_arguments(node, op="aten.index_select.default", self=Ref(node.inputs[0]), dim=dim, index=table)


@rewrites("pad", "constant_pad_nd")
def _pad(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    x, out = node.inputs[0], node.outputs[0] or 0
    rank = len(cut.old(x))
    pad = list(given["pad"])
    for place in range(len(pad) // 2):
        dim = rank - 1 - place
        kept = cut.groups.kept(out, dim, cut.alive)
        if kept is None or cut.old(out)[dim] == cut.new(out)[dim]:
            continue
        before, after = pad[2 * place], pad[2 * place + 1]
        start, end = max(before, 0), cut.old(out)[dim] - max(after, 0)
        crop_before, crop_after = _cropped(cut, x, dim, before, after)
        pad[2 * place] = int((kept < start).sum()) - crop_before
        pad[2 * place + 1] = int((kept >= end).sum()) - crop_after
    return with_arguments(node, pad=pad)


def _cropped(cut: Cutting, x: int, dim: int, before: int, after: int) -> tuple[int, int]:
    """How many kept indices negative padding takes off at either end."""
    kept = cut.groups.kept(x, dim, cut.alive)
    kept = np.arange(cut.old(x)[dim]) if kept is None else kept
    return int((kept < max(-before, 0)).sum()), int((kept >= cut.old(x)[dim] - max(-after, 0)).sum())


@rewrites("col2im")
def _col2im(cut: Cutting, node: Node, given: dict[str, Any]) -> Node:
    return node
