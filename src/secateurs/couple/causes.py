"""What holds channels that stay, in words: the cause, followed back to where it is, for the reasons of groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from secateurs.capture.graph import Node
from secateurs.couple.coupler import Coupler
from secateurs.couple.group import Ints


def fixed(c: Coupler, value: int) -> str:
    """A value that can lose nothing, and why: it is a model's input or a constant, or the operator that holds it."""
    inputs = {item.value: item.name for item in c.graph.inputs}
    leaves = {leaf.value: leaf for leaf in c.graph.leaves}
    while value >= 0:
        if value in inputs:
            return f"the model's input `{inputs[value]}`, which stays as it is"
        if value in leaves:
            leaf = leaves[value]
            return f"a {leaf.kind} of fixed size" + ("" if leaf.kind == "constant" else f", `{leaf.name}`")
        producer = c.graph.values[value].producer
        assert producer is not None
        node = c.graph.nodes[producer]
        if node.index in c.unruled:
            return f"the result of {node.where}, an operator without a rule"
        behind = [number for number in node.inputs if not c.of(number) and max(c.shape(number), default=1) > 1]
        if node.index in c.holding or not behind:
            return f"the result of {node.where}, which can not lose channels"
        value = behind[0]
    return "an intermediate result that can not lose channels"


def against(c: Coupler, node: Node, verb: str, a: int, ids_a: Tensor | None, b: int, ids_b: Tensor | None) -> str:
    """Why `Coupler.pair` freezes the one axis: the other belongs to a value that can lose nothing."""
    if (ids_a is None) == (ids_b is None):
        return ""
    return f"{node.where} {verb} {fixed(c, a if ids_a is None else b)}"


def alone(c: Coupler, labels: Ints, axes: Sequence[Tensor], label: int) -> str:
    """Why a group has one unit only, and so loses nothing: the operator that ties its channels together.

    `axes` are the ids of every axis that the unit lies on.
    """
    mine = max((ids[torch.from_numpy(labels[ids.numpy()] == label)] for ids in axes), key=lambda ids: ids.numel())
    if mine.numel() == 1:
        return "it is the only one of its kind, and the last one stays"
    by = _tied_by(c, labels, label, mine)
    cause = c.graph.nodes[by].where if by >= 0 else "how the model uses it"
    return f"{cause} makes its {mine.numel()} channels one unit, and the last unit stays"


def _tied_by(c: Coupler, labels: Ints, label: int, ids: Tensor) -> int:
    """The first node after which all these ids are one; -1 if none is."""
    left, right, nodes = [], [], []
    for (a, b), node in zip(c.ties, c.tied_at, strict=True):
        inside = labels[a.numpy()] == label
        if inside.any():
            left.append(a.numpy()[inside])
            right.append(b.numpy()[inside])
            nodes.append(node)
    low, high = 0, len(nodes)
    while low < high:
        middle = (low + high) // 2
        if _connected(left[: middle + 1], right[: middle + 1], ids.numpy()):
            high = middle
        else:
            low = middle + 1
    return nodes[low] if low < len(nodes) else -1


def _connected(left: list[Ints], right: list[Ints], ids: Ints) -> bool:
    met, compact = np.unique(np.concatenate([*left, *right, ids]), return_inverse=True)
    count = sum(part.size for part in left)
    pairs = (compact[:count], compact[count : 2 * count])
    edges = coo_matrix((np.ones(count, dtype=np.int8), pairs), shape=(met.size, met.size))
    _, part = connected_components(edges, directed=False)
    found = part[compact[2 * count :]]
    return bool((found == found[0]).all())
