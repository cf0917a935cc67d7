"""`couple`: run the id engine over a graph and read the groups off it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
from torch import Tensor

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.capture.graph import Graph, Leaf
from secateurs.couple.coupler import Coupler, spread, varying
from secateurs.couple.group import Bools, ChannelGroup, Groups, Ints, Member
from secateurs.couple.rules import apply_rule
from secateurs.couple.solve import reasons, solve, unique_layers, unit_dim


def couple(graph: Graph, *, exclude: Iterable[str | type] = (), unit: str = "heads") -> Groups:
    """Which indices of which leaves live and die together.

    `exclude` keeps whole what matches: a glob on module or parameter names (`"layer4.*"`), or a module class; it pins
    the channels that these modules produce. `unit` decides what goes from attention: whole heads, or columns of every
    head.

    Raises `UnknownNameError` for an exclusion that matches nothing.
    """
    if unit not in ("heads", "head_dim"):
        raise InputError(explain(f"unit={unit!r} is not a unit of attention", next_step="use 'heads' or 'head_dim'"))
    c = Coupler(graph, unit)
    for leaf in graph.leaves:
        rank = len(leaf.shape)
        c.layers[leaf.value] = tuple(
            spread(c.fresh(size), dim, rank) for dim, size in enumerate(leaf.shape) if size > 1
        )
    axes = {
        (leaf.value, varying(layer)[0]): layer.reshape(-1) for leaf in graph.leaves for layer in c.layers[leaf.value]
    }
    for node in graph.nodes:
        c.node = node.index
        apply_rule(c, node)
    for number in graph.outputs:
        c.freeze_all(number, "the model returns it")
    _exclude(c, graph, list(exclude), axes)
    return _groups(c, graph, axes)


def _exclude(c: Coupler, graph: Graph, patterns: list[str | type], axes: dict[tuple[int, int], Tensor]) -> None:
    for pattern in patterns:
        matched = [leaf for leaf in graph.leaves if _matches(graph, leaf, pattern)]
        if not matched:
            names = sorted({name.rpartition(".")[0] for leaf in graph.leaves for name in leaf.names} - {""})
            text = pattern if isinstance(pattern, str) else pattern.__name__
            close = nearest(text, names)
            raise UnknownNameError(
                explain(
                    f"The exclusion {text!r} matches no module",
                    evidence=f"{len(names)} modules hold parameters, such as {', '.join(names[:5])}",
                    next_step=f"did you mean {', '.join(close)}?" if close else "",
                )
            )
        for leaf in matched:
            for dim in range(len(leaf.shape)):
                ids = axes.get((leaf.value, dim))
                if ids is not None and (leaf.value, dim) not in c.consumers:
                    c.freeze(ids, f"excluded by {pattern if isinstance(pattern, str) else pattern.__name__!r}")


def _matches(graph: Graph, leaf: Leaf, pattern: str | type) -> bool:
    for name in leaf.names:
        module = name.rpartition(".")[0]
        if isinstance(pattern, type):
            if graph.modules.get(module) == pattern.__name__:
                return True
        elif fnmatchcase(name, pattern) or fnmatchcase(module, pattern) or module.startswith(pattern + "."):
            return True
    return False


def _groups(c: Coupler, graph: Graph, axes: dict[tuple[int, int], Tensor]) -> Groups:
    labels = solve(c)
    rows = _rows(c, labels)
    frozen, frozen_texts = reasons(labels, c.frozen)
    changed, changed_texts = reasons(labels, c.inexact)
    leaf_rows = {key: labels[ids.numpy()] for key, ids in axes.items()}
    count = int(labels.max()) + 1 if labels.size else 0
    owned = np.zeros(count, dtype=bool)
    order = np.full(count, np.iinfo(np.int64).max)
    weights = {
        leaf.value
        for leaf in graph.leaves
        if leaf.kind == "parameter" or (leaf.dtype.is_floating_point and leaf.kind == "buffer")
    }
    for position, ((value, _), found) in enumerate(leaf_rows.items()):
        if value in weights:
            owned[found] = True
        np.minimum.at(order, found, position * 10_000_000 + np.arange(found.size))
    owned &= _read(c, graph, labels, rows)
    kind = _signatures(count, [*rows.values(), *leaf_rows.values()])
    shown = np.flatnonzero(owned & (frozen != -2))
    key = np.stack([kind[shown], frozen[shown]])
    _, group_of = np.unique(key, axis=1, return_inverse=True)
    group_of = np.asarray(group_of).reshape(-1)
    by_group: dict[int, list[int]] = {}
    for label, group in zip(
        shown[np.argsort(order[shown], kind="stable")], group_of[np.argsort(order[shown], kind="stable")], strict=True
    ):
        by_group.setdefault(int(group), []).append(int(label))
    unit_of = np.full(count, -1, dtype=np.int64)
    global_of = np.full(count, -1, dtype=np.int64)
    home = np.full(count, -1, dtype=np.int64)
    total = 0
    for number, members in enumerate(by_group.values()):
        unit_of[members] = np.arange(len(members))
        home[members] = number
        if frozen[members[0]] < 0:
            global_of[members] = np.arange(total, total + len(members))
            total += len(members)
    members_of = _members(c, graph, leaf_rows, home, unit_of)
    names = _names(members_of, len(by_group))
    groups = [
        ChannelGroup(
            name=names[number],
            size=len(found),
            members=tuple(members_of.get(number, ())),
            frozen=frozen_texts[frozen[found[0]]] if frozen[found[0]] >= 0 else None,
            inexact_because=_first_text(changed[found], changed_texts),
        )
        for number, found in enumerate(by_group.values())
    ]
    shared: dict[tuple[int, int], Ints] = {}
    cache: dict[int, tuple[int, Ints]] = {}
    for value, layers in c.layers.items():
        for layer in layers if value >= 0 else ():
            if id(layer) not in cache:
                dim = unit_dim(layer, labels)
                assert dim is not None
                cache[id(layer)] = (dim, global_of[rows[id(layer)]])
            dim, units = cache[id(layer)]
            if (units >= 0).any():
                shared[value, dim] = units
    for place, found in leaf_rows.items():
        units = global_of[found]
        if (units >= 0).any():
            shared[place] = units
    return Groups(graph, groups, shared, total, frozenset(c.inexact_nodes), c.unit)


def _read(c: Coupler, graph: Graph, labels: Ints, rows: dict[int, Ints]) -> Bools:
    """Labels that appear on a value other than a leaf: the rest is never read by this run, such as unused positions."""
    leaves = {leaf.value for leaf in graph.leaves}
    read = np.zeros(int(labels.max()) + 1 if labels.size else 0, dtype=np.bool_)
    for value, layers in c.layers.items():
        if value not in leaves:
            for layer in layers:
                read[rows[id(layer)]] = True
    return read


def _first_text(found: Ints, texts: list[str]) -> str | None:
    real = found[found >= 0]
    return texts[int(real.min())] if real.size else None


def _rows(c: Coupler, labels: Ints) -> dict[int, Ints]:
    """For every layer object, the labels along its unit dimension."""
    rows: dict[int, Ints] = {}
    for layer in unique_layers(c):
        dim = unit_dim(layer, labels)
        index = tuple(slice(None) if other == dim else slice(0, 1) for other in range(layer.dim()))
        rows[id(layer)] = labels[layer.numpy()[index].reshape(-1)]
    return rows


def _signatures(count: int, rows: list[Ints]) -> Ints:
    """A number per label, equal for labels that appear equally often on the same axes (64-bit random hashing)."""
    generator = np.random.default_rng(0)
    weights = generator.integers(1, 2**62, size=len(rows), dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for weight, row in zip(weights, rows, strict=True):
        np.add.at(total, row, weight)
    return total.astype(np.int64)


def _members(
    c: Coupler, graph: Graph, leaf_rows: dict[tuple[int, int], Ints], home: Ints, unit_of: Ints
) -> dict[int, list[Member]]:
    names = {leaf.value: leaf.name for leaf in graph.leaves}
    members: dict[int, list[Member]] = {}
    for (value, dim), found in leaf_rows.items():
        groups = home[found]
        for group in np.unique(groups[groups >= 0]):
            units = np.where(groups == group, unit_of[found], -1)
            role = "in" if (value, dim) in c.consumers else "out"
            members.setdefault(int(group), []).append(Member(names[value], dim, units, role))
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
