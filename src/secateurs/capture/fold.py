"""Tidy a fresh graph: fold what no input and no weight reaches into constants, drop what nothing reads.

Folding turns `arange`, masks and slopes that the model builds from numbers into constant leaves, whose contents can be
compared, and sliced when channels go. Factories of one repeated number (`zeros`, `ones`, `full`) stay nodes: any index
of theirs may go without a trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateurs.capture.graph import Decision, Graph, Leaf, Node
from secateurs.capture.run import call, operator

UNIFORM = frozenset(
    f"aten.{name}"
    for name in (
        "zeros.default", "ones.default", "full.default", "empty.memory_format", "zeros_like.default",
        "ones_like.default", "full_like.default", "empty_like.default", "new_zeros.default", "new_ones.default",
        "new_full.default", "new_empty.default", "scalar_tensor.default",
    )
)  # fmt: skip
BLANK = frozenset(f"aten.{kind}_{name}.default" for kind in ("new",) for name in ("zeros", "ones", "full", "empty"))
BLANK |= {"aten.zeros_like.default", "aten.ones_like.default", "aten.full_like.default", "aten.empty_like.default"}
INDEXED = frozenset(
    ("aten.index.Tensor", "aten.index_select.default", "aten.gather.default", "aten.take.default",
     "aten.embedding.default", "aten.take_along_dim.default", "aten.index_copy.default",
     "aten.index_put.default", "aten.index_put_.default")
)  # fmt: skip


def writes(node: Node) -> tuple[int, ...]:
    """Numbers of the values that this node changes in place."""
    schema = operator(node.op)._schema
    if not schema.is_mutable:
        return ()
    changed: list[int] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given: Any = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            changed += [ref.value for ref in _flat(given) if hasattr(ref, "value")]
    return tuple(changed)


def _first(node: Node) -> int:
    return next(out for out in node.outputs if out is not None)


def _blank(graph: Graph, value: int, data: Mapping[int, Tensor]) -> Tensor:
    """The value's data; for arguments that only lend their shape and dtype, an empty tensor."""
    return data[value] if value in data else torch.empty(graph.values[value].shape, dtype=graph.values[value].dtype)


def _flat(item: Any) -> list[Any]:
    return list(item) if isinstance(item, (list, tuple)) else [item]


def fold_constants(graph: Graph, tensors: Mapping[int, Tensor]) -> Graph:
    """The graph with constant subgraphs folded, dead nodes gone and `known` filled; `tensors` is the leaves' data."""
    constant = _constant_values(graph)
    data: dict[int, Tensor] = {
        leaf.value: graph.constants[leaf.name] for leaf in graph.leaves if leaf.kind == "constant"
    }
    folded = [
        node for node in graph.nodes if node.outputs and all(out in constant for out in node.outputs if out is not None)
    ]
    with torch.no_grad():
        for node in folded:
            for out, result in zip(node.outputs, call(node, lambda v: _blank(graph, v, data)), strict=True):
                if out is not None:
                    data[out] = result
    gone = {node.index for node in folded}
    needed = {value for node in graph.nodes if node.index not in gone for value in node.inputs} | set(graph.outputs)
    written = {graph.values[value].storage for node in folded for value in writes(node)}
    kept = {
        node.index
        for node in folded
        if node.op in UNIFORM and set(node.outputs) & needed and graph.values[_first(node)].storage not in written
    }
    gone -= kept
    made = {out for node in folded if node.index in gone for out in node.outputs if out is not None}
    leaves = [leaf for leaf in graph.leaves if leaf.kind != "constant" or leaf.value in needed]
    constants = {leaf.name: graph.constants[leaf.name] for leaf in leaves if leaf.kind == "constant"}
    for value in sorted(made & needed):
        name = f"constant.folded.{len(constants)}"
        while name in constants:
            name += "_"
        constants[name] = data[value].clone()
        leaves.append(Leaf(name, (name,), "constant", value, tuple(data[value].shape), data[value].dtype))
    nodes = _alive(graph, [node for node in graph.nodes if node.index not in gone])
    read = {value for node in nodes for value in node.inputs} | set(graph.outputs)
    leaves = [leaf for leaf in leaves if leaf.value in read]
    constants = {leaf.name: constants[leaf.name] for leaf in leaves if leaf.kind == "constant"}
    tidy = _renumber(graph, nodes, leaves, constants)
    with torch.no_grad():
        return replace(tidy, known=_known(tidy, {**tensors, **data}))


def _constant_values(graph: Graph) -> set[int | None]:
    """Values that depend on nothing but numbers in the code, and that look the same whenever they are read.

    Memory that a node outside the constant part writes to is left alone, and so is memory that is written to after such
    a node has read it: `for step in range(3): y = f(y, t); t += 1`.
    """
    dirty: set[int] = set()
    while True:
        constant: set[int | None] = {leaf.value for leaf in graph.leaves if leaf.kind == "constant"}
        constant = {v for v in constant if v is not None and graph.values[v].storage not in dirty}
        found: set[int] = set()
        read: set[int] = set()
        for node in graph.nodes:
            random = torch.Tag.nondeterministic_seeded in operator(node.op).tags
            pure = not random and (node.op in BLANK or all(value in constant for value in node.inputs))
            clean = all(graph.values[out].storage not in dirty for out in node.outputs if out is not None)
            written = {graph.values[value].storage for value in writes(node)}
            if pure and clean:
                constant.update(out for out in node.outputs if out is not None)
                found |= written & read
            else:
                found |= written
                read |= {graph.values[value].storage for value in node.inputs}
        if found <= dirty:
            return constant
        dirty |= found


def _alive(graph: Graph, nodes: list[Node]) -> list[Node]:
    """The nodes that the outputs need, those that write in place, and those that read weights: the model runs them."""
    needed = set(graph.outputs)
    weights = {leaf.value for leaf in graph.leaves if leaf.kind == "parameter"}
    alive: list[Node] = []
    for node in reversed(nodes):
        wanted = any(out in needed for out in node.outputs) or any(value in weights for value in node.inputs)
        if wanted or operator(node.op)._schema.is_mutable:
            needed.update(node.inputs)
            alive.append(node)
    return alive[::-1]


def _renumber(graph: Graph, nodes: list[Node], leaves: list[Leaf], constants: dict[str, Tensor]) -> Graph:
    """Nodes numbered 0, 1, ...; values and decisions follow."""
    new = {node.index: position for position, node in enumerate(nodes)}
    values = tuple(
        replace(value, producer=None if value.producer is None else new.get(value.producer)) for value in graph.values
    )
    decisions = tuple(Decision(item.op, new.get(item.node, -1), item.outputs) for item in graph.decisions)
    return replace(
        graph,
        nodes=tuple(replace(node, index=new[node.index]) for node in nodes),
        values=values,
        leaves=tuple(leaves),
        constants=constants,
        decisions=decisions,
    )


def _known(graph: Graph, tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Contents of integer and boolean values that only leaves reach and that an indexing operator reads."""
    static: set[int] = {leaf.value for leaf in graph.leaves}
    for node in graph.nodes:
        if all(value in static for value in node.inputs) and not operator(node.op)._schema.is_mutable:
            static.update(out for out in node.outputs if out is not None)
    data: dict[int, Tensor] = dict(tensors)

    def value_of(index: int) -> Tensor:
        if index not in data:
            node = graph.nodes[graph.values[index].producer or 0]
            for out, result in zip(node.outputs, call(node, value_of), strict=True):
                if out is not None:
                    data[out] = result
        return data[index]

    wanted: dict[int, Tensor] = {}
    for node in graph.nodes:
        if node.op in INDEXED:
            for value in node.inputs:
                whole = not graph.values[value].dtype.is_floating_point
                if value in static and whole and graph.values[value].shape != ():
                    wanted[value] = value_of(value).clone()
    return wanted
