"""`count`: what one network costs, in total, by module and by operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import nn

from secateurs.capture.graph import Graph
from secateurs.capture.trace import capture
from secateurs.cost.terms import terms


@dataclass(frozen=True)
class Cost:
    """Counts for one run on inputs of the given shape.

    `macs`: multiply-accumulates (see `cost/terms.py` for the definition). `params`: parameters, tied ones once.
    `bytes`: parameters and buffers. `peak_memory`: bytes of the largest set of activations that are alive at once,
    inputs included, weights not; views share memory.
    """

    macs: int
    params: int
    bytes: int
    peak_memory: int
    modules: Mapping[str, int] = field(default_factory=dict)
    ops: Mapping[str, int] = field(default_factory=dict)
    module_params: Mapping[str, int] = field(default_factory=dict)

    def by_module(self) -> dict[str, int]:
        """MACs by module path, in the order in which they run."""
        return dict(self.modules)

    def by_op(self) -> dict[str, int]:
        """MACs by operator, most first."""
        return dict(sorted(self.ops.items(), key=lambda item: -item[1]))

    def table(self) -> str:
        """MACs and parameters by module, as text."""
        width = max([len(name) for name in self.modules] + [6])
        lines = [f"{'module':<{width}} {'MACs':>16} {'parameters':>14}"]
        for name, macs in self.modules.items():
            lines.append(f"{name:<{width}} {macs:>16,} {self.module_params.get(name, 0):>14,}")
        lines.append(f"{'total':<{width}} {self.macs:>16,} {self.params:>14,}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, int]:
        """The four totals."""
        return {"macs": self.macs, "params": self.params, "bytes": self.bytes, "peak_memory": self.peak_memory}

    def __str__(self) -> str:
        return f"{self.macs:,} MACs, {self.params:,} parameters, {self.bytes:,} bytes, {self.peak_memory:,} bytes peak"


def count(model: nn.Module, example_inputs: Any, *, kwargs: Mapping[str, Any] | None = None) -> Cost:
    """Count the cost of one run of `model` on inputs like `example_inputs`; the model is not changed."""
    return count_graph(capture(model, example_inputs, kwargs=kwargs))


def count_graph(graph: Graph, shapes: Mapping[int, tuple[int, ...]] | None = None) -> Cost:
    """Count the cost of a captured graph; `shapes` replaces the sizes of some values, as after a cut."""
    changed = shapes or {}

    def shape(value: int) -> tuple[int, ...]:
        return changed.get(value, graph.values[value].shape)

    modules: dict[str, int] = {}
    ops: dict[str, int] = {}
    for term in terms(graph):
        node = graph.nodes[term.node]
        macs = term.factor * prod(shape(value)[dim] for value, dim in term.axes)
        modules[node.module] = modules.get(node.module, 0) + macs
        name = node.op.split(".")[1]
        ops[name] = ops.get(name, 0) + macs
    stored = [(leaf, prod(shape(leaf.value))) for leaf in graph.leaves if leaf.kind != "constant"]
    stored += [(leaf, prod(leaf.shape)) for leaf in graph.unread]
    module_params: dict[str, int] = {}
    for leaf, number in stored:
        if leaf.kind == "parameter":
            owner = leaf.name.rpartition(".")[0]
            module_params[owner] = module_params.get(owner, 0) + number
    return Cost(
        macs=sum(modules.values()),
        params=sum(module_params.values()),
        bytes=sum(number * leaf.dtype.itemsize for leaf, number in stored),
        peak_memory=peak_memory(graph, shapes),
        modules=modules,
        ops=ops,
        module_params=module_params,
    )


def peak_memory(graph: Graph, shapes: Mapping[int, tuple[int, ...]] | None = None) -> int:
    """Bytes of activations alive at the worst moment; `shapes` replaces the sizes of some values."""
    leaves = {leaf.value for leaf in graph.leaves}
    held = {graph.values[value].storage for value in leaves}
    last: dict[int, int] = {}
    for node in graph.nodes:
        for value in (*node.inputs, *(out for out in node.outputs if out is not None)):
            last[graph.values[value].storage] = node.index
    for value in graph.outputs:
        last[graph.values[value].storage] = len(graph.nodes)
    size: dict[int, int] = {}
    for item in graph.values:
        shape = (shapes or {}).get(item.index, item.shape)
        if item.storage not in held:
            size[item.storage] = max(size.get(item.storage, 0), prod(shape) * item.dtype.itemsize)
    ending: dict[int, list[int]] = {}
    for storage, index in last.items():
        ending.setdefault(index, []).append(storage)
    live = {graph.values[entry.value].storage for entry in graph.inputs}
    total = sum(size.get(storage, 0) for storage in live)
    peak = total
    for node in graph.nodes:
        for out in node.outputs:
            made = graph.values[out].storage if out is not None else None
            if made is not None and made not in held and made not in live:
                live.add(made)
                total += size[made]
        peak = max(peak, total)
        for storage in ending.get(node.index, ()):
            if storage in live:
                live.remove(storage)
                total -= size.get(storage, 0)
    return peak
