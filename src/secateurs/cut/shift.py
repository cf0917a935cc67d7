"""Where a number per output channel can be added to what an operator puts out: its bias, a batch norm, a new bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from secateurs.capture.graph import Graph, Node
from secateurs.couple.rules.registry import arguments, base_name, value

BIASED = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "linear"), "bias"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "bias"),
    "addmm": "self",
}


@dataclass(frozen=True)
class Place:
    """Where a shift of a node's output goes, and which `nodes` it moves along with it.

    `"bias"`: added to leaf `leaf`. `"norm"`: taken away from leaf `leaf`, the running mean of the batch norm that
    reads the output and nobody else does (exact in eval mode). `"new"`: the operator has no bias; `leaf` is its
    weight, or empty when that is computed.
    """

    kind: Literal["bias", "norm", "new"]
    leaf: str
    nodes: tuple[int, ...]


def place_of(graph: Graph, node: Node) -> Place | str:
    """Where a shift of the first output of `node` goes, or why it can go nowhere."""
    given, key = arguments(node), BIASED.get(base_name(node.op).split(".", 1)[1])
    leaves = {leaf.value: leaf.name for leaf in graph.leaves if leaf.kind != "constant"}
    bias = None if key is None else value(given[key])
    if bias is not None:
        if bias not in leaves or len(graph.values[bias].shape) != 1 or given.get("beta", 1) != 1:
            return f"the bias of {node.where} is computed, not a parameter of its own"
        return Place("bias", leaves[bias], _readers(graph, bias))
    mean = _running_mean(graph, node)
    if mean in leaves and len(_readers(graph, mean or 0)) == 1:
        return Place("norm", leaves[mean or 0], (node.index,))
    if key is None:
        return f"{node.where} takes no bias"
    weight = value(given["weight"])
    sharing = _readers(graph, weight or 0) if weight in leaves else _calls(graph, node)
    return Place("new", leaves.get(weight or 0, ""), sharing)


def _readers(graph: Graph, number: int) -> tuple[int, ...]:
    return tuple(node.index for node in graph.nodes if number in node.inputs)


def _calls(graph: Graph, node: Node) -> tuple[int, ...]:
    """The calls of the same operator in the same module."""
    return tuple(other.index for other in graph.nodes if (other.op, other.module) == (node.op, node.module))


def _running_mean(graph: Graph, node: Node) -> int | None:
    """The running mean of the batch norm, in eval mode, that alone reads the node's output."""
    out = node.outputs[0]
    if out is None or out in graph.outputs:
        return None
    readers = _readers(graph, out)
    following = graph.nodes[readers[0]] if len(readers) == 1 else node
    if base_name(following.op) != "aten.batch_norm" or arguments(following)["training"]:
        return None
    return value(arguments(following)["running_mean"])


__all__ = ["Place", "place_of"]
