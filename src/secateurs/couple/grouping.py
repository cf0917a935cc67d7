"""From labels to groups: units that appear equally often on the same axes stand side by side in one group."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from secateurs.capture.graph import Graph, Node
from secateurs.couple.causes import alone
from secateurs.couple.coupler import Coupler
from secateurs.couple.group import Bools, ChannelGroup, Groups, Ints, Member
from secateurs.couple.solve import reasons, solve, unique_layers, unit_dim

Axis = tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """Labels along every axis: by layer object, with its dimension, and by leaf axis."""

    layers: dict[int, tuple[int, Ints]]
    leaves: dict[Axis, Ints]
    count: int


def read_groups(c: Coupler, graph: Graph, axes: dict[Axis, Tensor]) -> Groups:
    """Solve the ties and collect the groups. `axes` holds the ids of every leaf axis."""
    labels = solve(c)
    count = int(labels.max()) + 1 if labels.size else 0
    rows = Rows(_layer_rows(c, labels), {key: labels[ids.numpy()] for key, ids in axes.items()}, count)
    frozen, frozen_texts = reasons(labels, c.frozen)
    changed, changed_texts = reasons(labels, c.inexact)
    read = _read(c, graph, rows)
    _hold_unread(graph, rows, read, frozen, frozen_texts)
    members_of_group = _partition(graph, rows, read, frozen)
    _hold_last(c, axes, labels, rows, frozen, frozen_texts, members_of_group)
    unit_of = np.full(count, -1, dtype=np.int64)
    global_of = np.full(count, -1, dtype=np.int64)
    home = np.full(count, -1, dtype=np.int64)
    total = 0
    for number, members in enumerate(members_of_group):
        unit_of[members] = np.arange(members.size)
        home[members] = number
        if frozen[members[0]] < 0:
            global_of[members] = np.arange(total, total + members.size)
            total += members.size
    leaf_members = _members(c, graph, rows, home, unit_of)
    names = _names(leaf_members, len(members_of_group))
    groups = [
        ChannelGroup(
            name=names[number],
            size=int(members.size),
            members=tuple(leaf_members[number]),
            frozen=frozen_texts[frozen[members[0]]] if frozen[members[0]] >= 0 else None,
            inexact_because=_first_text(changed[members], changed_texts),
        )
        for number, members in enumerate(members_of_group)
    ]
    return Groups(graph, groups, _unit_axes(c, rows, global_of), total, frozenset(c.inexact_nodes), c.unit)


def _layer_rows(c: Coupler, labels: Ints) -> dict[int, tuple[int, Ints]]:
    """For every layer object its unit dimension and the labels along it."""
    rows: dict[int, tuple[int, Ints]] = {}
    for _, layer in unique_layers(c):
        dim = unit_dim(layer, labels)
        assert dim is not None
        index = tuple(slice(None) if other == dim else slice(0, 1) for other in range(layer.dim()))
        rows[id(layer)] = (dim, labels[layer.numpy()[index].reshape(-1)])
    return rows


def _partition(graph: Graph, rows: Rows, read: Bools, frozen: Ints) -> list[Ints]:
    """The labels of every group, in order of first appearance; groups in the order of their first label."""
    order = np.full(rows.count, np.iinfo(np.int64).max)
    owned = np.zeros(rows.count, dtype=np.bool_)
    weights = {
        leaf.value
        for leaf in graph.leaves
        if leaf.kind == "parameter" or (leaf.kind == "buffer" and leaf.dtype.is_floating_point)
    }
    start = 0
    for (value, _), found in rows.leaves.items():
        if value in weights:
            owned[found] = True
        np.minimum.at(order, found, start + np.arange(found.size))
        start += found.size
    owned &= (read | (frozen >= 0)) & (frozen != -2)
    shown = np.flatnonzero(owned)
    if not shown.size:
        return []
    shown = shown[np.argsort(order[shown], kind="stable")]
    key = np.stack([_signatures(rows)[shown], frozen[shown]])
    _, first, group = np.unique(key, axis=1, return_index=True, return_inverse=True)
    group = np.asarray(group).reshape(-1)
    split = np.split(shown[np.argsort(group, kind="stable")], np.cumsum(np.bincount(group))[:-1])
    return [split[number] for number in np.argsort(first, kind="stable")]


def _hold_unread(graph: Graph, rows: Rows, read: Bools, frozen: Ints, texts: list[str]) -> None:
    """Parameter entries that no result of this run has stay: another run may read them. Adds to `frozen`, `texts`."""
    readers: dict[int, Node] = {}
    for node in graph.nodes:
        for value in node.inputs:
            readers.setdefault(value, node)
    for leaf in graph.leaves:
        for dim in range(len(leaf.shape) if leaf.kind == "parameter" else 0):
            found = rows.leaves.get((leaf.value, dim), np.zeros(0, dtype=np.int64))
            idle = found[~read[found] & (frozen[found] == -1)]
            if idle.size:
                where = readers[leaf.value].where if leaf.value in readers else "this run"
                frozen[idle] = len(texts)
                texts.append(f"{where} cuts it off or folds it away: no result of this run has it")


def _hold_last(
    c: Coupler,
    axes: dict[Axis, Tensor],
    labels: Ints,
    rows: Rows,
    frozen: Ints,
    texts: list[str],
    members_of_group: list[Ints],
) -> None:
    """A group of one unit would be left empty, so it stays. Adds to `frozen` and `texts`."""
    for members in members_of_group:
        if members.size == 1 and frozen[members[0]] < 0:
            frozen[members[0]] = len(texts)
            mine = [axes[place] for place, found in rows.leaves.items() if (found == members[0]).any()]
            texts.append(alone(c, labels, mine, int(members[0])))


def _read(c: Coupler, graph: Graph, rows: Rows) -> Bools:
    """Labels that appear on a value other than a leaf: the rest is never read by this run, such as unused positions."""
    leaves = {leaf.value for leaf in graph.leaves}
    read = np.zeros(rows.count, dtype=np.bool_)
    for key in {id(layer) for value, layers in c.layers.items() if value not in leaves for layer in layers}:
        read[rows.layers[key][1]] = True
    return read


def _signatures(rows: Rows) -> Ints:
    """A number per label, equal for labels that appear equally often on the same axes (64-bit random hashing)."""
    generator = np.random.default_rng(0)
    every = [*(found for _, found in rows.layers.values()), *rows.leaves.values()]
    weights = generator.integers(1, 2**62, size=len(every), dtype=np.uint64)
    total = np.zeros(rows.count, dtype=np.uint64)
    for weight, found in zip(weights, every, strict=True):
        np.add.at(total, found, weight)
    return total.astype(np.int64)


def _members(c: Coupler, graph: Graph, rows: Rows, home: Ints, unit_of: Ints) -> dict[int, list[Member]]:
    names = {leaf.value: leaf.name for leaf in graph.leaves}
    members: dict[int, list[Member]] = {}
    for (value, dim), found in rows.leaves.items():
        role = "in" if (value, dim) in c.consumers else "out"
        groups, units = home[found], unit_of[found]
        if groups.size and (groups == groups[0]).all():
            if groups[0] >= 0:
                members.setdefault(int(groups[0]), []).append(Member(names[value], dim, units, role))
            continue
        for number in np.unique(groups[groups >= 0]):
            mine = np.where(groups == number, units, -1)
            members.setdefault(int(number), []).append(Member(names[value], dim, mine, role))
    return members


def _names(members: dict[int, list[Member]], count: int) -> list[str]:
    """Each group is named after the first module that produces its channels."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for number in range(count):
        mine = members[number]
        first = next((member for member in mine if member.role == "out"), mine[0])
        name = first.leaf.rpartition(".")[0] or first.leaf
        if first.role == "in":
            name += " (input)"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return names


def _unit_axes(c: Coupler, rows: Rows, global_of: Ints) -> dict[Axis, Ints]:
    """Global unit numbers along every axis that can lose something; equal layers share one array."""
    shared: dict[Axis, Ints] = {}
    cache: dict[int, tuple[int, Ints] | None] = {}
    for value, layers in c.layers.items():
        for layer in layers if value >= 0 else ():
            if id(layer) not in cache:
                dim, found = rows.layers[id(layer)]
                units = global_of[found]
                cache[id(layer)] = (dim, units) if (units >= 0).any() else None
            entry = cache[id(layer)]
            if entry is not None:
                shared[value, entry[0]] = entry[1]
    for place, found in rows.leaves.items():
        units = global_of[found]
        if (units >= 0).any():
            shared[place] = units
    return shared


def _first_text(found: Ints, texts: list[str]) -> str | None:
    real = found[found >= 0]
    return texts[int(real.min())] if real.size else None
