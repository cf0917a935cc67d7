"""Weights whose columns stand for the units of a group: zero there is zero for all who read the unit.

A unit that is multiplied by a number before every operator that sums it away is the same as the columns of those
operators' weights multiplied by it. So a gate on a unit needs no hook and no change of the model's code: it lives in
weights that are there already, whichever way they are called. The gradient to the gate is there too: with columns W and
the loss's gradient D to them, `sum W * D` is `sum x * dL/dx` over everything that reads the unit x.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from secateurs.capture.graph import Graph, Leaf, Node
from secateurs.couple.group import ChannelGroup, Groups, Member
from secateurs.couple.rules import RULES, movement
from secateurs.couple.rules.registry import base_name
from secateurs.couple.sites import Site, consumption_sites

LINEAR = frozenset(
    f"aten.{name}"
    for name in (
        "linear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d",
        "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "lstm", "gru", "rnn_tanh",
        "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    )
)  # fmt: skip
"""Operators that multiply what they sum with weights, each once."""


@dataclass(frozen=True)
class Columns:
    """`{group name: the weight axes that read its units}` and, for every other free group, why it has none."""

    found: dict[str, tuple[Member, ...]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def reading_columns(groups: Groups) -> Columns:
    """The weights that read each free group and nothing else, where these are all there is to its being read.

    A group is missing if a statistic runs over it, something other than a parameter's column reads it, or such a
    parameter has other readers too.
    """
    sites = consumption_sites(groups)
    leaves = _Leaves(groups.graph)
    result = Columns()
    dims: dict[str, int] = {}
    for group in groups.free:
        members = _of(group, sites[group.name], leaves)
        if isinstance(members, str):
            result.missing[group.name] = members
            continue
        twice = [member.leaf for member in members if dims.get(member.leaf, member.dim) != member.dim]
        if twice:
            result.missing[group.name] = f"`{twice[0]}`, which reads it, reads another group along another dimension"
            continue
        result.found[group.name] = members
        dims |= {member.leaf: member.dim for member in members}
    return result


def _of(group: ChannelGroup, sites: tuple[Site, ...], leaves: _Leaves) -> tuple[Member, ...] | str:
    """The members that read the group, or what else does."""
    if group.inexact_because is not None:
        return f"removing any changes the rest: {group.inexact_because}"
    nodes = leaves.graph.nodes
    held: dict[str, set[int]] = {}
    for site in sites:
        node = nodes[site.node]
        mine = [member.leaf for member in _readers(group) if leaves.feeds(member.leaf, node, inside=site.value)]
        if base_name(node.op) not in LINEAR or not mine:
            return f"{node.where} reads it, but not through a weight"
        for leaf in mine:
            held.setdefault(leaf, set()).add(node.index)
    members = tuple(member for member in _readers(group) if member.leaf in held)
    if not members:
        return "nothing reads it"
    for member in members:
        weight = leaves.graph.leaf(member.leaf)
        others = leaves.readers[weight.value] - held[member.leaf]
        if weight.kind != "parameter" or not weight.dtype.is_floating_point:
            return f"`{member.leaf}` reads it, which is no parameter that can be trained"
        if others:
            return f"`{member.leaf}`, which reads it, is also read by {nodes[min(others)].where}"
    if len({member.leaf for member in members}) < len(members):
        return "a weight reads it along two dimensions"
    return members


def _readers(group: ChannelGroup) -> Iterable[Member]:
    return (member for member in group.members if member.role == "in")


class _Leaves:
    """Which nodes compute with which leaf, as it is or merely rearranged."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._source: dict[int, Leaf] = {leaf.value: leaf for leaf in graph.leaves}
        self.readers: dict[int, set[int]] = {leaf.value: set() for leaf in graph.leaves}
        for node in graph.nodes:
            moved = _moves(node) and len(node.inputs) == 1
            for value in node.inputs:
                leaf = self._source.get(value)
                if leaf is None:
                    continue
                if moved:
                    self._source |= {out: leaf for out in node.outputs if out is not None}
                else:
                    self.readers[leaf.value].add(node.index)

    def feeds(self, leaf: str, node: Node, *, inside: int) -> bool:
        """Is the leaf an operand of the node? `inside` is the operand that loses units: itself, or another one."""
        value = self.graph.leaf(leaf).value
        own = self._source.get(inside)
        if own is not None:
            return own.value == value
        return node.index in self.readers[value]


def _moves(node: Node) -> bool:
    name = base_name(node.op)
    return name in RULES and RULES[name].__module__ == movement.__name__


__all__ = ["LINEAR", "Columns", "reading_columns"]
