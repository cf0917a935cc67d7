"""`CostModel`: the cost of any plan, from shapes alone, in a few microseconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix

from secateurs.cost.count import Cost, count_graph
from secateurs.cost.terms import Axis, terms
from secateurs.couple.group import Bools, Groups

Floats = NDArray[np.float64]


class CostModel:
    """Prices networks that keep some units of `groups`.

    Every axis that can shrink has a size that is linear in the units that live; every cost is a sum of products of
    sizes. Both are precomputed as arrays, so that a search can ask thousands of times.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        graph = groups.graph
        self._slot: dict[Axis, int] = {}
        self._rows: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        self._cols: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        self._base: list[int] = [1]
        self._shared: dict[int, int] = {}
        macs = terms(graph)
        leaves = [leaf for leaf in graph.leaves if leaf.kind != "constant"]
        parameters = [leaf for leaf in leaves if leaf.kind == "parameter"]
        self._macs = self._table([term.axes for term in macs])
        self._mac_nodes = np.array([term.node for term in macs], dtype=np.int64)
        self._params = self._table([_axes(leaf.value, leaf.shape) for leaf in parameters])
        self._leaves = self._table([_axes(leaf.value, leaf.shape) for leaf in leaves])
        self._itemsizes = np.array([leaf.dtype.itemsize for leaf in leaves], dtype=np.int64)
        self._unread_params = sum(_numel(leaf.shape) for leaf in graph.unread if leaf.kind == "parameter")
        self._unread_bytes = sum(_numel(leaf.shape) * leaf.dtype.itemsize for leaf in graph.unread)
        shape = (len(self._base), max(groups.units, 1))
        rows, columns = np.concatenate(self._rows), np.concatenate(self._cols)
        self._matrix = coo_matrix((np.ones(rows.size), (rows, columns)), shape=shape).tocsr()
        self._fixed = np.array(self._base, dtype=np.float64)

    def _table(self, products: list[tuple[Axis, ...]]) -> NDArray[np.int64]:
        """Slots of the sizes of every product, padded with slot 0, which is always 1."""
        width = max((len(axes) for axes in products), default=1)
        table = np.zeros((len(products), max(width, 1)), dtype=np.int64)
        for row, axes in enumerate(products):
            table[row, : len(axes)] = [self._slot_of(axis) for axis in axes]
        return table

    def _slot_of(self, axis: Axis) -> int:
        if axis in self._slot:
            return self._slot[axis]
        units = self.groups.axes.get(axis)
        if units is not None and id(units) in self._shared:
            slot = self._shared[id(units)]
        else:
            slot = len(self._base)
            size = self.groups.graph.values[axis[0]].shape[axis[1]]
            mine = units[units >= 0] if units is not None else np.zeros(0, dtype=np.int64)
            self._base.append(size - int(mine.size))
            self._rows.append(np.full(mine.size, slot, dtype=np.int64))
            self._cols.append(mine)
            if units is not None:
                self._shared[id(units)] = slot
        self._slot[axis] = slot
        return slot

    def sizes(self, alive: Bools) -> Floats:
        """The size of every slot when these units live."""
        full = alive.astype(np.float64) if alive.size else np.zeros(1)
        return np.asarray(self._fixed + self._matrix @ full)

    def macs(self, alive: Bools) -> int:
        """Multiply-accumulates of one run on inputs of the captured shape."""
        return int(np.prod(self.sizes(alive)[self._macs], axis=1).sum())

    def macs_by_node(self, alive: Bools) -> dict[int, int]:
        """MACs of every node that has any."""
        each = np.prod(self.sizes(alive)[self._macs], axis=1)
        result: dict[int, int] = {}
        for node, number in zip(self._mac_nodes.tolist(), each.tolist(), strict=True):
            result[node] = result.get(node, 0) + int(number)
        return result

    def params(self, alive: Bools) -> int:
        """Parameters, tied ones once."""
        return int(np.prod(self.sizes(alive)[self._params], axis=1).sum()) + self._unread_params

    def bytes(self, alive: Bools) -> int:
        """Bytes of parameters and buffers."""
        each = np.prod(self.sizes(alive)[self._leaves], axis=1)
        return int((each * self._itemsizes).sum()) + self._unread_bytes

    def metric(self, name: str, alive: Bools) -> int:
        """One of `"macs"`, `"params"`, `"bytes"`."""
        return {"macs": self.macs, "params": self.params, "bytes": self.bytes}[name](alive)

    def counts(self, alive: Bools) -> dict[str, int]:
        """All three."""
        return {"macs": self.macs(alive), "params": self.params(alive), "bytes": self.bytes(alive)}

    def cost(self, alive: Bools) -> Cost:
        """The whole account, by module and by operator and with peak memory; slower than the counts above."""
        touched = {value for value, _ in self.groups.axes}
        return count_graph(self.groups.graph, {value: self.groups.shape(value, alive) for value in touched})


def _axes(value: int, shape: tuple[int, ...]) -> tuple[Axis, ...]:
    return tuple((value, dim) for dim in range(len(shape)))


def _numel(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) if shape else 1
