"""Where the units of a group are summed away: the places at which a removed channel is missed.

A channel lives on through batch norms, activations and poolings until an operator sums over its axis: a convolution, a
linear layer, a mean over channels. What that operator reads is the channel *as its consumers see it*; multiplying it by
zero there is what removing the channel means. A recurrent layer reads its own channels inside: there the columns of its
weight are the place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from secateurs.capture.graph import Graph, Node
from secateurs.capture.program import follows_inputs
from secateurs.couple.coupler import Coupler, spread
from secateurs.couple.group import Bools, Groups, Ints
from secateurs.couple.rules import RULES, apply_rule, indexing, movement
from secateurs.couple.rules.registry import base_name
from secateurs.couple.solve import components


@dataclass(frozen=True)
class Site:
    """Operand `value` of node `node` loses, by a sum along `dim`, the units of a group.

    `units[i]` is the unit (0..size-1 of the group) that owns index `i` along `dim`, or -1. `inside`: the operand is a
    weight, whose columns read what the node has computed itself.
    """

    node: int
    value: int
    dim: int
    units: Ints
    inside: bool = False


def consumption_sites(groups: Groups) -> dict[str, tuple[Site, ...]]:
    """`{group name: sites}` of every free group, in the order of the run.

    Of two activations that are multiplied and summed over an axis that they share, the first stands for both.
    """
    owner = _owners(groups)
    found: dict[str, list[Site]] = {group.name: [] for group in groups.free}
    for node, value, dim, lost, inside in _Losses(groups):
        units = np.where(lost, groups.axes[value, dim], -1)
        for number in np.unique(owner[units[units >= 0]]):
            name = groups.free[number].name
            mine = np.where((units >= 0) & (owner[units] == number), units - groups.offsets[name], -1)
            found[name].append(Site(node, value, dim, mine, inside))
    return {name: tuple(sites) for name, sites in found.items()}


class _Losses:
    """Iterates over `(node, value, dim, which indices are summed away, inside)`.

    Whether an axis passes through an operator or is summed cannot be told from units, which may be the same before and
    behind it, as in a residual block of one layer. So the operator's own rule runs once more, on fresh ids.
    """

    def __init__(self, groups: Groups) -> None:
        self.graph: Graph = groups.graph
        self.axes = groups.axes
        self.moving = follows_inputs(groups.graph)
        self.coupler = Coupler(groups.graph, groups.unit)
        self.dims: dict[int, list[int]] = {}
        for value, dim in groups.axes:
            self.dims.setdefault(value, []).append(dim)

    def __iter__(self) -> Iterator[tuple[int, int, int, Bools, bool]]:
        for node in self.graph.nodes:
            tracked = not self.dims.keys().isdisjoint(node.inputs) and not self.moving.isdisjoint(node.inputs)
            if tracked and _may_sum(node):
                yield from self._of(node)

    def _of(self, node: Node) -> Iterator[tuple[int, int, int, Bools, bool]]:
        c = self.coupler
        c.count, c.node = 0, node.index
        for kept in (c.layers, c.ties, c.tied_at, c.frozen, c.inexact, c.consumers, c.shapes):
            kept.clear()
        ids = {}
        for value in dict.fromkeys(node.inputs):
            shape = c.shape(value)
            for dim in self.dims.get(value, ()):
                ids[value, dim] = c.fresh(shape[dim])
            c.layers[value] = tuple(
                spread(ids[value, dim], dim, len(shape)) for dim in self.dims.get(value, ()) if shape[dim] > 1
            )
        apply_rule(c, node)
        labels = components(c)
        gone = np.ones(labels.size, dtype=np.bool_)
        for out in node.outputs:
            for layer in c.of(out) if out is not None else ():
                gone[labels[layer.numpy().reshape(-1)]] = False
        missed = np.zeros(labels.size, dtype=np.bool_)
        for (value, dim), mine in ids.items():
            at = labels[mine.numpy()]
            lost = gone[at] & ~missed[at] & (self.axes[value, dim] >= 0)
            if value in self.moving and lost.any():
                missed[at[lost]] = True
                yield node.index, value, dim, lost, False
        for (value, dim), mine in ids.items():
            at = labels[mine.numpy()]
            lost = ~missed[at] & (self.axes[value, dim] >= 0)
            if value not in self.moving and (value, dim) in c.consumers and lost.any():
                yield node.index, value, dim, lost, True


def _may_sum(node: Node) -> bool:
    """Whether the operator computes with what it reads: moving data loses indices too, but nothing is summed."""
    name = base_name(node.op)
    return name in RULES and RULES[name].__module__ not in (movement.__name__, indexing.__name__)


def _owners(groups: Groups) -> Ints:
    """For every global unit number the position of its group among the free ones."""
    owner = np.full(groups.units + 1, -1, dtype=np.int64)
    for number, group in enumerate(groups.free):
        start = groups.offsets[group.name]
        owner[start : start + group.size] = number
    return owner


def first_use(sites: Mapping[str, tuple[Site, ...]]) -> dict[str, int]:
    """`{group name: node}`: the first node that reads the group's channels away."""
    return {name: min(site.node for site in places) for name, places in sites.items() if places}


__all__ = ["Site", "consumption_sites", "first_use"]
