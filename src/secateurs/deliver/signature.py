"""The captured graph as lines of text: what an artifact stores so that a class that does not fit can be told why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from secateurs.capture.graph import Graph, Node, Ref, map_refs


def signature(graph: Graph) -> dict[str, list[str]]:
    """Inputs, leaves and operator calls, one line each; no weights, no file names."""
    leaves = sorted(graph.leaves, key=lambda leaf: leaf.name)
    return {
        "inputs": [f"{item.name}: {_shape(graph.values[item.value].shape)}" for item in graph.inputs],
        "leaves": [f"{leaf.kind} {leaf.name}: {_shape(leaf.shape)} {str(leaf.dtype)[6:]}" for leaf in leaves],
        "nodes": [_call(node) for node in graph.nodes],
    }


def first_difference(stored: Mapping[str, Sequence[str]], graph: Graph) -> str:
    """The first line that differs between a stored signature and a graph, in words; empty if none does."""
    found = signature(graph)
    for part, word in (("leaves", "tensor"), ("inputs", "input"), ("nodes", "operator call")):
        for index, (was, now) in enumerate(zip_longest(stored.get(part, ()), found[part], fillvalue="nothing")):
            if was != now:
                inside = f" in `{graph.nodes[index].module}`" if part == "nodes" and index < len(graph.nodes) else ""
                return f"{word} {index}{inside} was saved as {was} and is now {now}"
    return ""


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _call(node: Node) -> str:
    args = ", ".join([*map(_text, node.args), *(f"{key}={_text(item)}" for key, item in node.kwargs.items())])
    return f"{node.op}({args}) -> {', '.join('-' if out is None else f'%{out}' for out in node.outputs)}"


def _text(tree: Any) -> str:
    plain = map_refs(tree, lambda ref: f"%{ref.value}")
    if isinstance(plain, str) and isinstance(tree, Ref):
        return plain
    return json.dumps(plain, default=str)
