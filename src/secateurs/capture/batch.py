"""Graphs that run at any batch size, from two captures that differ in it.

A captured graph states sizes as numbers. Capturing once more with every input doubled along its first dimension shows
which of them follow the batch: a number that goes from `a` to `b` is `a + (b - a) / n * (batch - n)` for batch size n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateurs.capture.graph import Graph, Node, Ref


@dataclass(frozen=True, slots=True)
class Scaled:
    """A size that is `fixed + per_sample * batch`."""

    fixed: int
    per_sample: int


def scale_sizes(tree: Any, batch: int, device: torch.device) -> Any:
    """Arguments for this batch size and device."""
    if isinstance(tree, Scaled):
        return tree.fixed + tree.per_sample * batch
    if isinstance(tree, torch.device):
        return device
    if isinstance(tree, tuple):
        return tuple(scale_sizes(item, batch, device) for item in tree)
    if isinstance(tree, list):
        return [scale_sizes(item, batch, device) for item in tree]
    if isinstance(tree, Mapping):
        return {key: scale_sizes(item, batch, device) for key, item in tree.items()}
    return tree


def doubled(tree: Any) -> Any:
    """Inputs with every tensor repeated once along its first dimension."""
    return pytree.tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.dim() else t, tree)


def batch_size(graph: Graph) -> int | None:
    """The first dimension that all inputs share, None if they do not."""
    shapes = [graph.values[item.value].shape for item in graph.inputs]
    sizes = {shape[0] for shape in shapes if shape}
    return sizes.pop() if len(sizes) == 1 else None


def generalised(small: Graph, once: Graph, twice: Graph) -> Graph | None:
    """`small` with sizes that follow the batch as `Scaled`, from captures at batch n (`once`) and 2n (`twice`).

    None if the two captures do not run the same operators or hold different constants.
    """
    n = batch_size(once)
    if n is None or len(once.nodes) != len(twice.nodes):
        return None
    if once.constants.keys() != twice.constants.keys():
        return None
    if any(not _same(once.constants[name], twice.constants[name]) for name in once.constants):
        return None
    nodes: list[Node] = []
    for node, a, b in zip(small.nodes, once.nodes, twice.nodes, strict=True):
        if a.op != b.op:
            return None
        if a.op != node.op:
            nodes.append(node)
            continue
        args = _merge(node.args, a.args, b.args, n)
        kwargs = _merge(dict(node.kwargs), dict(a.kwargs), dict(b.kwargs), n)
        nodes.append(replace(node, args=args, kwargs=kwargs))
    output = _numbers_of_batch(small.output, once.output, twice.output, n)
    return None if output is _OTHER else replace(small, nodes=tuple(nodes), output=output)


_OTHER = object()


def _numbers_of_batch(small: Any, once: Any, twice: Any, n: int) -> Any:
    """An output structure whose integers say how they follow the batch; `_OTHER` if the captures differ otherwise."""
    if isinstance(once, (list, tuple)) and isinstance(twice, (list, tuple)) and len(once) == len(twice):
        items = [_numbers_of_batch(s, a, b, n) for s, a, b in zip(small, once, twice, strict=True)]
        return _OTHER if any(item is _OTHER for item in items) else type(small)(items)
    if isinstance(once, dict) and isinstance(twice, dict) and once.keys() == twice.keys():
        named = {key: _numbers_of_batch(small[key], once[key], twice[key], n) for key in small}
        return _OTHER if any(item is _OTHER for item in named.values()) else named
    if isinstance(once, Ref) and isinstance(twice, Ref):
        return small
    if type(once) is int and type(twice) is int:
        return Scaled(small, 0) if once == twice else _merge(small, once, twice, n)
    return small if type(once) is type(twice) and once == twice else _OTHER


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))


def _merge(small: Any, once: Any, twice: Any, n: int) -> Any:
    """A tree whose integers follow the batch where the captures say so. A cut size keeps its share per sample."""
    if isinstance(once, Ref) or isinstance(small, Ref):
        return small
    if isinstance(once, (list, tuple)) and isinstance(small, (list, tuple)) and len(once) == len(twice) == len(small):
        return type(small)(_merge(s, a, b, n) for s, a, b in zip(small, once, twice, strict=True))
    if isinstance(once, dict) and isinstance(small, dict):
        return {key: _merge(small[key], once.get(key), twice.get(key), n) for key in small}
    if isinstance(once, int) and isinstance(twice, int) and not isinstance(once, bool) and once != twice:
        slope, rest = divmod(twice - once, n)
        if rest or not isinstance(small, int):
            return small
        if once == slope * n and small != once:
            return Scaled(0, small // n)
        return Scaled(small - slope * n, slope)
    return small
