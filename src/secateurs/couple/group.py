"""`ChannelGroup`: sets of indices that live and die together.

A *unit* is the smallest thing that can be removed: one channel of every tensor that must lose it at the same time, or
one attention head with all its columns. A group is a row of units that sit side by side on the same axes and compete
with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from secateurs.base.errors import UnknownNameError, explain, nearest
from secateurs.capture.graph import Graph

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """One axis of one leaf that takes part in a group.

    `units[i]` is the unit (0..size-1) that owns index `i` of dimension `dim` of leaf `leaf`, or -1 where that index
    belongs to another group or cannot be removed. `role` is `"out"` when the axis produces the channels (filters,
    neurons, norm scales) and `"in"` when it consumes them.
    """

    leaf: str
    dim: int
    units: Ints
    role: str

    def positions(self, unit: int) -> Ints:
        """Indices along `dim` that unit `unit` owns."""
        return np.flatnonzero(self.units == unit)


@dataclass(frozen=True)
class ChannelGroup:
    """`size` units that live and die on their own, on the axes of `members`.

    `frozen` is None, or why none of them may be removed, naming the operator and the user's line. `exact` is False
    when a norm or another statistic runs over the removed axis, so that the rest changes; `inexact_because` says which.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen: str | None = None
    inexact_because: str | None = None

    @property
    def exact(self) -> bool:
        return self.inexact_because is None

    @cached_property
    def width(self) -> int:
        """Channels per unit: the fewest positions that one unit owns on any member's axis (64 for a head of 64)."""
        if not self.members or not self.size:
            return 1
        return max(1, min(int((member.units >= 0).sum()) // self.size for member in self.members))


class Groups(Sequence[ChannelGroup]):
    """All groups of a graph, frozen ones included. Behaves as a tuple of `ChannelGroup`.

    `axes[value, dim]` numbers the units on every axis of every value that can lose something (-1: stays); units are
    numbered through all free groups in order, so that one boolean array says what lives. `inexact_nodes` are the nodes
    that take statistics over an axis of units; `unit` is what goes from attention.
    """

    def __init__(
        self,
        graph: Graph,
        groups: Sequence[ChannelGroup],
        axes: Mapping[tuple[int, int], Ints],
        units: int,
        inexact_nodes: frozenset[int] = frozenset(),
        unit: str = "heads",
    ) -> None:
        self.graph = graph
        self.axes = axes
        self.units = units
        self.inexact_nodes = inexact_nodes
        self.unit = unit
        self._groups = tuple(groups)
        self._by_name = {group.name: group for group in self._groups}
        self.offsets: dict[str, int] = {}
        start = 0
        for group in self.free:
            self.offsets[group.name] = start
            start += group.size

    def __getitem__(self, index: int | str) -> ChannelGroup:  # type: ignore[override]
        if isinstance(index, int):
            return self._groups[index]
        if index in self._by_name:
            return self._by_name[index]
        close = nearest(index, self._by_name)
        raise UnknownNameError(
            explain(
                f"There is no group named {index!r}", next_step=f"did you mean {', '.join(close)}?" if close else ""
            )
        )

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self._groups)

    def __repr__(self) -> str:
        units = sum(group.size for group in self.free)
        return f"Groups({len(self.free)} free with {units:,} units, {len(self.frozen)} frozen)"

    def __str__(self) -> str:
        lines = [repr(self)]
        for group in self._groups:
            state = group.frozen or (f"changes the rest: {group.inexact_because}" if not group.exact else "free")
            lines.append(f"  {group.name}: {group.size} units of {group.width}: {state}")
        return "\n".join(lines)

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups from which something can be removed."""
        return tuple(group for group in self._groups if group.frozen is None)

    @property
    def frozen(self) -> tuple[ChannelGroup, ...]:
        """The groups that stay whole, each with its reason in `.frozen`."""
        return tuple(group for group in self._groups if group.frozen is not None)

    def alive(self, keep: Mapping[str, Sequence[int]]) -> Bools:
        """One boolean per unit: False for the units of the named groups that are not listed."""
        alive = np.ones(self.units, dtype=np.bool_)
        for name, units in keep.items():
            start = self.offsets[name]
            mine = np.zeros(self[name].size, dtype=np.bool_)
            mine[list(units)] = True
            alive[start : start + mine.size] = mine
        return alive

    def kept(self, value: int, dim: int, alive: Bools) -> Ints | None:
        """Indices that stay on one axis, or None if the axis can lose nothing."""
        units = self.axes.get((value, dim))
        return None if units is None else np.flatnonzero(np.where(units >= 0, alive[units], True))

    def shape(self, value: int, alive: Bools) -> tuple[int, ...]:
        """The shape of a value once the units that are not alive are gone."""
        old = self.graph.values[value].shape
        kept = [self.kept(value, dim, alive) for dim in range(len(old))]
        return tuple(size if indices is None else int(indices.size) for size, indices in zip(old, kept, strict=True))
