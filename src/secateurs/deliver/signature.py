"""The captured graph as lines of text: what an artifact stores so that a class that does not fit can be told why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import nn

from secateurs.capture.graph import Graph, Node, map_refs


def signature(graph: Graph) -> dict[str, Any]:
    """Tensors by name, inputs and operator calls in order, each as one line; no weights, no file names."""
    return {
        "tensors": {leaf.name: _kind(leaf.shape, leaf.dtype) for leaf in graph.leaves if leaf.kind != "constant"},
        "inputs": [f"{item.name}: {_kind(graph.values[item.value].shape, '')}" for item in graph.inputs],
        "nodes": [_call(node) for node in graph.nodes],
    }


def tensor_difference(stored: Mapping[str, Any], model: nn.Module) -> str:
    """The first stored tensor that `model` does not have, or has in another shape or type; empty if there is none."""
    found = {
        name: _kind(tensor.shape, tensor.dtype)
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
    }
    for name, was in stored.get("tensors", {}).items():
        if name not in found:
            return f"`{name}` was saved as {was} and the class has no such tensor"
        if found[name] != was:
            return f"`{name}` was saved as {was} and is now {found[name]}"
    return ""


def call_difference(stored: Mapping[str, Any], graph: Graph) -> str:
    """The first input or operator call that differs between a stored signature and a graph; empty if none does."""
    found = signature(graph)
    for part, word in (("inputs", "input"), ("nodes", "operator call")):
        for index, (was, now) in enumerate(zip_longest(stored.get(part, ()), found[part], fillvalue="nothing")):
            if was != now:
                inside = f" in `{graph.nodes[index].module}`" if part == "nodes" and index < len(graph.nodes) else ""
                return f"{word} {index}{inside} was saved as {was} and is now {now}"
    return ""


def _kind(shape: Sequence[int], dtype: object) -> str:
    return f"{'x'.join(map(str, shape)) or 'scalar'} {str(dtype).removeprefix('torch.')}".rstrip()


def _call(node: Node) -> str:
    args = ", ".join([*map(_text, node.args), *(f"{key}={_text(item)}" for key, item in node.kwargs.items())])
    return f"{node.op}({args}) -> {', '.join('-' if out is None else f'%{out}' for out in node.outputs)}"


def _text(tree: Any) -> str:
    plain = map_refs(tree, lambda ref: f"%{ref.value}")
    return plain if isinstance(plain, str) and plain.startswith("%") else json.dumps(plain, default=str)
