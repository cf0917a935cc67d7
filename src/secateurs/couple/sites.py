"""Where the units of a group are summed away: the places at which a removed channel is missed.

A channel lives on through batch norms, activations and poolings until an operator sums over its axis: a convolution, a
linear layer, a mean over channels. What that operator reads is the channel *as its consumers see it*; multiplying it by
zero there is what removing the channel means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from secateurs.capture.graph import Graph
from secateurs.couple.group import Groups, Ints


@dataclass(frozen=True)
class Site:
    """Operand `value` of node `node` loses, by a sum along `dim`, the units of a group.

    `units[i]` is the unit (0..size-1 of the group) that owns index `i` along `dim`, or -1.
    """

    node: int
    value: int
    dim: int
    units: Ints


def consumption_sites(groups: Groups) -> dict[str, tuple[Site, ...]]:
    """`{group name: sites}` of every free group, in the order of the run.

    Of two activations that are multiplied and summed over an axis that they share, the first stands for both.
    """
    graph = groups.graph
    moving = _depends_on_inputs(graph)
    dims: dict[int, list[tuple[int, Ints]]] = {}
    for (value, dim), units in groups.axes.items():
        if value in moving:
            dims.setdefault(value, []).append((dim, units))
    owner = _owners(groups)
    found: dict[str, list[Site]] = {group.name: [] for group in groups.free}
    starts = groups.offsets
    for node in graph.nodes:
        if not any(value in dims for value in node.inputs):
            continue
        gone = np.ones(groups.units + 1, dtype=np.bool_)  # index -1: what stays
        gone[-1] = False
        for out in (out for out in node.outputs if out is not None):
            for _, staying in dims.get(out, ()):
                gone[staying] = False
        for value in dict.fromkeys(node.inputs):
            for dim, units in dims.get(value, ()):
                lost = np.where(gone[units], units, -1)
                for number in np.unique(owner[lost[lost >= 0]]):
                    name = groups.free[number].name
                    mine = np.where((lost >= 0) & (owner[lost] == number), lost - starts[name], -1)
                    found[name].append(Site(node.index, value, dim, mine))
                gone[lost[lost >= 0]] = False
    return {name: tuple(sites) for name, sites in found.items()}


def _depends_on_inputs(graph: Graph) -> frozenset[int]:
    moving = {item.value for item in graph.inputs}
    for node in graph.nodes:
        if any(value in moving for value in node.inputs):
            moving.update(out for out in node.outputs if out is not None)
    return frozenset(moving)


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
