"""Writes through a view of every second channel: which of them reach the memory behind it, once channels are gone.

The channels that stay of `x[:, ::2]` need not lie evenly, and then no view holds just them: reading takes a copy
(`index_select`), writing names them (`index_put_`). A write that does neither alone would get lost in the copy.
"""

from __future__ import annotations

from collections.abc import Set

from secateurs.capture.fold import writes
from secateurs.capture.graph import Graph, Node

WRITES = ("copy_", "fill_", "zero_")
"""Operators that fill a view and need not read it."""


def only_written(graph: Graph, value: int, owned: Set[int]) -> bool:
    """Is this view, or a slice of it along none of `owned`, filled as a whole with its own type, and never read?"""
    if value in graph.outputs:
        return False
    for node in (node for node in graph.nodes if value in node.inputs):
        out = node.outputs[0] if node.outputs else None
        if node.op.split(".")[1] in WRITES and value not in node.inputs[1:]:
            if out in graph.outputs or any(out in item.inputs for item in graph.nodes):
                return False
            if any(graph.values[item].dtype != graph.values[value].dtype for item in node.inputs[1:]):
                return False
            continue
        further = node.op == "aten.slice.Tensor" and _dim(graph, node) not in owned
        if not further or out is None or not only_written(graph, out, owned):
            return False
    return True


def lost_write(graph: Graph, view: Node) -> Node | None:
    """The first write that somebody would miss if what `view` gives were a copy, or None.

    Follows the memory and the copy side by side: which of them has been written to since they were last the same, and
    who reads the other one. Writing the copy back, as `x[:, ::2] += y` does, makes them the same again.
    """
    made = view.outputs[0]
    assert made is not None
    memory, copied = graph.values[made].storage, {made}
    ahead: tuple[bool, Node] | None = None  # was it the copy, and the write that put it ahead
    for node in graph.nodes[view.index + 1 :]:
        changed = [value for value in writes(node) if graph.values[value].storage == memory]
        fresh = [out for out in node.outputs if out is not None and graph.values[out].storage == memory]
        if changed or not fresh:
            fills = node.op.split(".")[1] in WRITES
            for value in node.inputs[1:] if changed and fills else node.inputs:
                mine = value in copied
                if ahead is not None and graph.values[value].storage == memory and mine != ahead[0]:
                    return ahead[1]
        if changed:
            through = changed[0] in copied
            back = not through and _fills_from(graph, node, copied) and _same_view(graph, changed[0], view)
            if ahead is not None and not back and ahead[0] != through:
                return ahead[1]
            ahead = None if back else (through, node)
        if any(value in copied for value in (changed or node.inputs)):
            copied.update(fresh)
    left = any(graph.values[value].storage == memory and value not in copied for value in graph.outputs)
    return ahead[1] if ahead is not None and ahead[0] and left else None


def _fills_from(graph: Graph, node: Node, copied: Set[int]) -> bool:
    return node.op.split(".")[1] == "copy_" and node.inputs[1] in copied


def _same_view(graph: Graph, value: int, view: Node) -> bool:
    producer = graph.values[value].producer
    made = None if producer is None else graph.nodes[producer]
    return made is not None and (made.op, made.args, made.kwargs) == (view.op, view.args, view.kwargs)


def _dim(graph: Graph, node: Node) -> int:
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(given) % len(graph.values[node.inputs[0]].shape)
