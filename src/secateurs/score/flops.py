"""What a unit costs to compute, for criteria that hold it against its score."""

from __future__ import annotations

from math import prod

from secateurs.capture.graph import Graph, Node
from secateurs.couple.group import ChannelGroup
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.couple.rules.registry import value as argument_value
from secateurs.score.criterion import Context

CONVOLUTIONS = frozenset(f"aten.{name}" for n in (1, 2, 3) for name in (f"conv{n}d", f"conv_transpose{n}d"))


def unit_flops(group: ChannelGroup, context: Context) -> float:
    """Millions of FLOPs (two per multiply-accumulate) that produce one unit, at the captured inputs.

    The mean over the group's units of the convolutions and linear layers whose filters they are; nothing for what other
    operators do with the filters, nor for the consumers.
    """
    graph = context.groups.graph
    macs = 0.0
    for member in context.producers(group):
        value = graph.leaf(member.leaf).value
        share = int((member.units >= 0).sum()) / len(member.units)
        macs += share * sum(_macs(graph, node) for node in graph.nodes if _weight(node) == value)
    return 2 * macs / group.size / 1e6


def _weight(node: Node) -> int | None:
    name = base_name(node.op)
    return argument_value(arguments(node)["weight"]) if name == "aten.linear" or name in CONVOLUTIONS else None


def _macs(graph: Graph, node: Node) -> int:
    """All multiply-accumulates of a convolution or a linear layer."""
    given = arguments(node)
    weight = graph.values[given["weight"].value].shape
    output = next(out for out in node.outputs if out is not None)
    start = given["input"].value if "transpose" in node.op else output
    return prod((*graph.values[start].shape, *weight[1:]))  # the rest of the weight serves each entry
