"""Proof (b): the graph captured again from the cut module is the graph the plan predicted, node by node."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch

from secateurs.base.errors import ProofError, explain
from secateurs.capture.graph import Graph, Node, Ref, refs
from secateurs.couple.rules.registry import arguments, base_name

SIZES = {
    "view": "size", "_unsafe_view": "size", "reshape": "shape", "expand": "size", "broadcast_to": "size",
    "unflatten": "sizes",
    "zeros": "size", "ones": "size", "full": "size", "empty": "size", "new_zeros": "size", "new_ones": "size",
    "new_full": "size", "new_empty": "size", "layer_norm": "normalized_shape", "rms_norm": "normalized_shape",
}  # fmt: skip
SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "hsplit")


class Difference(ProofError):
    """The first place where two graphs differ; `node` is the predicted graph's."""

    def __init__(self, message: str, node: Node | None) -> None:
        super().__init__(message)
        self.node = node


def compare(predicted: Graph, found: Graph) -> int:
    """The number of nodes compared. Raises `Difference`, naming the first node that differs."""
    same: dict[int, int] = {}
    leaves = {name: leaf for leaf in found.leaves for name in leaf.names}
    for leaf in predicted.leaves:
        if leaf.kind == "constant":
            continue
        twin = leaves.get(leaf.name)
        if twin is None or twin.shape != leaf.shape:
            shape = None if twin is None else twin.shape
            what = "A tensor of the cut module is not as predicted"
            evidence = f"shape {leaf.shape} predicted, {shape} found"
            raise Difference(explain(what, where=f"`{leaf.name}`", evidence=evidence), None)
        same[leaf.value] = twin.value
    if len(predicted.inputs) != len(found.inputs):
        raise Difference(explain("The cut module takes other inputs"), None)
    same.update({a.value: b.value for a, b in zip(predicted.inputs, found.inputs, strict=True)})
    constants = _Constants(predicted, found, same)
    for ours, theirs in zip(predicted.nodes, found.nodes, strict=False):
        _compare_node(predicted, found, ours, theirs, constants)
    if len(predicted.nodes) != len(found.nodes):
        shorter = min(len(predicted.nodes), len(found.nodes))
        extra = (predicted.nodes if len(predicted.nodes) > shorter else found.nodes)[shorter]
        evidence = f"{len(predicted.nodes)} predicted, {len(found.nodes)} found"
        what = "The cut module runs another number of operators"
        raise Difference(explain(what, where=extra.where, evidence=evidence), None)
    for a, b in zip(predicted.outputs, found.outputs, strict=True):
        if not constants.match(a, b):
            raise Difference(explain("The cut module returns other values"), None)
    return len(predicted.nodes)


class _Constants:
    """Which value of one graph is which of the other; constants match by content when first met."""

    def __init__(self, predicted: Graph, found: Graph, same: dict[int, int]) -> None:
        self.same = same
        self._ours = {
            leaf.value: predicted.constants[leaf.name] for leaf in predicted.leaves if leaf.kind == "constant"
        }
        self._theirs = {leaf.value: found.constants[leaf.name] for leaf in found.leaves if leaf.kind == "constant"}

    def match(self, a: int, b: int) -> bool:
        if a in self.same:
            return self.same[a] == b
        if a not in self._ours or b not in self._theirs:
            return False
        x, y = self._ours[a], self._theirs[b]
        equal = x.shape == y.shape and x.dtype == y.dtype and bool(torch.equal(x.cpu(), y.cpu()))
        if equal:
            self.same[a] = b
        return equal


def _compare_node(predicted: Graph, found: Graph, ours: Node, theirs: Node, constants: _Constants) -> None:
    if len(ours.outputs) != len(theirs.outputs):
        raise Difference(_message(ours, theirs, "another number of results"), ours)
    a, b = canonical(predicted, ours), canonical(found, theirs)
    if a[0] != b[0]:
        raise Difference(_message(ours, theirs, f"{a[0]} predicted, {b[0]} found"), ours)
    if not _equal(a[1], b[1], constants):
        raise Difference(_message(ours, theirs, f"arguments {_shown(a[1])} predicted, {_shown(b[1])} found"), ours)
    for x, y in zip(ours.outputs, theirs.outputs, strict=True):
        if x is None or y is None:
            continue
        if predicted.values[x].shape != found.values[y].shape:
            evidence = f"shape {predicted.values[x].shape} predicted, {found.values[y].shape} found"
            raise Difference(_message(ours, theirs, evidence), ours)
        constants.same[x] = y


def canonical(graph: Graph, node: Node) -> tuple[str, dict[str, Any]]:
    """Operator and arguments with everything that the shapes already say left out."""
    name = base_name(node.op).split(".", 1)[1]
    given = arguments(node)
    if name in SIZES:
        given.pop(SIZES[name], None)
    if name in SPLITS:
        first = next(iter(given.values()))
        dim = given.get("dim", 1)
        return "split", {"self": first, "dim": dim % len(graph.values[first.value].shape)}
    if name in ("slice", "narrow"):
        return "slice", _span(graph, node, given)
    if name == "scaled_dot_product_attention" and given.get("scale") is None:
        given["scale"] = 1 / sqrt(graph.values[node.inputs[0]].shape[-1])
    return name, given


def _span(graph: Graph, node: Node, given: dict[str, Any]) -> dict[str, Any]:
    x = given["self"]
    shape = graph.values[x.value].shape
    dim = given["dim"] % len(shape)
    if "length" in given:
        first, last, step = given["start"], given["start"] + given["length"], 1
    else:
        first, last, _ = slice(given["start"], given["end"]).indices(shape[dim])
        step = given["step"]
    return {"self": x, "dim": dim, "span": [*range(first, last, step)[:1], step]}


def _equal(a: Any, b: Any, constants: _Constants) -> bool:
    if isinstance(a, Ref) or isinstance(b, Ref):
        return isinstance(a, Ref) and isinstance(b, Ref) and constants.match(a.value, b.value)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key], constants) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y, constants) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or abs(a - b) <= 1e-12 * max(abs(a), abs(b)) or (a != a and b != b)
    return bool(a == b)


def _shown(given: dict[str, Any]) -> str:
    literal = {name: item for name, item in given.items() if not any(True for _ in refs(item)) and item is not None}
    return ", ".join(f"{name}={item}" for name, item in literal.items()) or "(tensors)"


def _message(ours: Node, theirs: Node, evidence: str) -> str:
    return explain(
        "The cut module does not run as predicted", where=f"node {ours.index}, {theirs.where}", evidence=evidence
    )
