"""Run a `Graph` again on other tensors: the interpreter that proofs, folding and graph-form modules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import ArtifactError, explain
from secateurs.capture.graph import Node, Ref, map_refs


@cache
def operator(name: str) -> Any:
    """The ATen overload with this name, such as `aten.conv2d.default`. Raises `ArtifactError` on unknown operators."""
    parts = name.split(".")
    try:
        if len(parts) != 3:
            raise AttributeError(name)
        namespace, op, overload = parts
        found = getattr(getattr(getattr(torch.ops, namespace), op), overload)
        if not isinstance(found, torch._ops.OpOverload):
            raise AttributeError(name)
        return found
    except AttributeError as error:
        raise ArtifactError(
            explain(f"There is no operator {name!r} in this PyTorch", evidence=torch.__version__)
        ) from error


def call(node: Node, read: Callable[[int], Tensor]) -> tuple[Any, ...]:
    """Run one node on the tensors that `read` gives; the results as a flat tuple."""
    args = map_refs(node.args, lambda ref: read(ref.value))
    kwargs = map_refs(dict(node.kwargs), lambda ref: read(ref.value))
    result = operator(node.op)(*args, **kwargs)
    return tuple(result) if isinstance(result, (list, tuple)) else (result,)


def fill(tree: Any, values: Mapping[int, Tensor]) -> Any:
    """An output structure with every `Ref` replaced by its tensor."""
    return map_refs(tree, lambda ref: values[ref.value])


def last_use(nodes: tuple[Node, ...], outputs: tuple[int, ...]) -> dict[int, list[int]]:
    """For each node, the values that nothing reads after it."""
    last: dict[int, int] = {}
    kept = set(outputs)
    for node in nodes:
        for value in (*node.inputs, *(out for out in node.outputs if out is not None)):
            last[value] = node.index
    done: dict[int, list[int]] = {}
    for value, index in last.items():
        if value not in kept:
            done.setdefault(index, []).append(value)
    return done


__all__ = ["Ref", "call", "fill", "last_use", "operator"]
