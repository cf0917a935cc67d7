"""The graph form with more leaves: new biases, and maps added behind operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateurs.capture.graph import Leaf, Node, Ref, Value, map_refs
from secateurs.cut.form import GraphModule
from secateurs.cut.rewrite import with_arguments
from secateurs.cut.share import Shift


def extended(
    small: GraphModule, fresh: Sequence[Shift], mapped: Sequence[Shift], exactly: dict[str, Tensor]
) -> GraphModule:
    """`small` with a new bias for every operator in `fresh` and a map added behind every one in `mapped`.

    What the new leaves hold goes, in double precision, into `exactly` as well.
    """
    graph = small.graph
    values, leaves = list(graph.values), list(graph.leaves)
    nodes: list[Node] = []
    tensors = {**dict(small.named_buffers()), **dict(small.named_parameters()), **small.tensors()}
    added: dict[int, Leaf] = {}
    moved: dict[int, int] = {}

    def leaf(name: str, kind: Any, data: Tensor, dtype: torch.dtype) -> Leaf:
        while name in tensors:
            name += "_"
        values.append(Value(len(values), tuple(data.shape), dtype, None, -1 - len(values)))
        made = Leaf(name, (name,), kind, len(values) - 1, tuple(data.shape), dtype)
        leaves.append(made)
        tensors[name], exactly[name] = data.to(dtype), data
        return made

    biased = {number: shift for shift in fresh for number in shift.place.nodes}
    mapped_at = {shift.node: shift for shift in mapped}
    for node in graph.nodes:
        out = node.outputs[0] if node.outputs else None
        number = node.index
        node = replace(
            node, index=len(nodes), args=_renamed(node.args, moved), kwargs=_renamed(dict(node.kwargs), moved)
        )
        if number in biased:
            shift = biased[number]
            place = shift.place.leaf or f"handed_over.{shift.node}"
            if shift.node not in added:
                name = f"{place.rpartition('.')[0]}.bias".lstrip(".")
                added[shift.node] = leaf(name, "parameter", shift.values, values[out or 0].dtype)
            node = with_arguments(node, bias=Ref(added[shift.node].value))
        nodes.append(node)
        if number in mapped_at and out is not None:
            shift = mapped_at[number]
            extra = leaf(f"handed_over.{number}", "buffer", shift.whole, values[out].dtype)
            values.append(replace(values[out], index=len(values), producer=len(nodes), storage=-1 - len(values)))
            moved[out] = len(values) - 1
            nodes.append(
                Node(
                    len(nodes),
                    "aten.add.Tensor",
                    (Ref(out), Ref(extra.value)),
                    {},
                    (moved[out],),
                    False,
                    node.module,
                    node.source,
                )
            )
    output = _renamed(graph.output, moved)
    whole = replace(graph, nodes=tuple(nodes), values=tuple(values), leaves=tuple(leaves), output=output)
    return GraphModule(whole, tensors)


def _renamed(tree: Any, moved: Mapping[int, int]) -> Any:
    return map_refs(tree, lambda ref: Ref(moved.get(ref.value, ref.value)))
