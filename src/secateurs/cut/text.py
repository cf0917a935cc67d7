"""Graphs as JSON and back: what a graph-form module needs to run again, without pickle and without the class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import ArtifactError, InputError, explain
from secateurs.capture.batch import Scaled
from secateurs.capture.bind import Calling, Parameters
from secateurs.capture.graph import Graph, Input, Leaf, Node, Ref, Value
from secateurs.cut.sound import LARGEST, check, known, whole, word

FORMAT = 1
WAYS = ("traced", "exported", "recorded")
_TORCH_NAMES = {
    "dtype": torch.dtype,
    "memory_format": torch.memory_format,
    "layout": torch.layout,
}
_NAMED = {
    kind: {name: item for name, item in sorted(vars(torch).items()) if isinstance(item, of)}
    for kind, of in _TORCH_NAMES.items()
}
"""What a text may name of `torch`, listed beforehand: looking up whatever it says would import submodules."""


def graph_to_json(graph: Graph) -> str:
    """The program as text; tensors stay outside, under their leaf names.

    The same program gives the same text: memory is numbered in the order of the values, not named by its address.
    Raises `InputError` for a graph that `graph_from_json` would not take, as its operators are not PyTorch's own.
    """
    _check_operators(graph)
    memory: dict[int, int] = {}
    return json.dumps(
        {
            "format": FORMAT,
            "values": [
                [list(value.shape), str(value.dtype), value.producer, memory.setdefault(value.storage, len(memory))]
                for value in graph.values
            ],
            "leaves": [[leaf.name, list(leaf.names), leaf.kind, leaf.value] for leaf in graph.leaves],
            "unread": [
                [leaf.name, list(leaf.names), leaf.kind, list(leaf.shape), str(leaf.dtype)] for leaf in graph.unread
            ],
            "inputs": [[item.name, item.value] for item in graph.inputs],
            "nodes": [
                [node.op, _pack(node.args), _pack(dict(node.kwargs)), list(node.outputs), node.listed, node.module]
                for node in graph.nodes
            ],
            "output": _pack(graph.output),
            "how": graph.how,
            "notes": list(graph.notes),
            "calling": _packed_call(graph.calling),
        },
        separators=(",", ":"),
    )


def graph_from_json(text: str, tensors: Mapping[str, Tensor]) -> Graph:
    """The graph back. `tensors` holds the constants, among others.

    A program without `calling` knows nothing of its call but the number of tensors (see `Matcher`).

    Raises `ArtifactError` for text that is not such a graph, calls an operator that a file may not call (see `sound`),
    or refers to values and tensors that are not there.
    """
    try:
        graph = _graph(json.loads(text), tensors)
        check(graph, tensors)
        return graph
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:  # RecursionError too
        evidence = f"{type(error).__name__}: {error}"[:500]
        raise ArtifactError(explain("This is not a Secateurs graph", evidence=evidence)) from error


def _graph(data: Any, tensors: Mapping[str, Tensor]) -> Graph:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']}")
    if data["how"] not in WAYS:
        raise ValueError(f"it was captured in no way that is known: {data['how']!r}")
    values = tuple(
        Value(i, _shape(shape), _named("dtype", dtype), None if producer is None else whole(producer), whole(storage))
        for i, (shape, dtype, producer, storage) in enumerate(data["values"])
    )
    leaves = tuple(
        Leaf(word(name), tuple(map(word, names)), kind, whole(value), values[value].shape, values[value].dtype)
        for name, names, kind, value in data["leaves"]
    )
    missing = {name for name, *_ in (*data["leaves"], *data["unread"])} - tensors.keys()
    if missing:
        raise ValueError(f"`{min(missing)}` is missing among the tensors")
    return Graph(
        nodes=tuple(_node(place, *item) for place, item in enumerate(data["nodes"])),
        values=values,
        leaves=leaves,
        inputs=tuple(Input(word(name), whole(value)) for name, value in data["inputs"]),
        output=_unpack(data["output"]),
        unread=tuple(
            Leaf(word(name), tuple(map(word, names)), kind, -1, _shape(shape), _named("dtype", dtype))
            for name, names, kind, shape, dtype in data["unread"]
        ),
        constants={leaf.name: tensors[leaf.name] for leaf in leaves if leaf.kind == "constant"},
        how=data["how"],
        notes=tuple(map(word, data["notes"])),
        calling=_unpacked_call(data.get("calling")),
    )


def _node(place: int, op: Any, args: Any, kwargs: Any, outputs: Any, listed: Any, module: Any) -> Node:
    keywords = {word(key): item for key, item in _unpack(kwargs).items()}
    given = tuple(None if out is None else whole(out) for out in outputs)
    return Node(place, known(op), tuple(_unpack(args)), keywords, given, bool(listed), word(module), "")


def _shape(sizes: Any) -> tuple[int, ...]:
    return tuple(whole(size) for size in sizes)


def _check_operators(graph: Graph) -> None:
    for node in graph.nodes:
        try:
            known(node.op)
        except ValueError as error:
            raise InputError(
                explain(
                    "This program cannot be stored",
                    where=node.where,
                    evidence=str(error),
                    next_step="store the tensors alone and load them into the class: pack without example inputs",
                )
            ) from error


def _packed_call(calling: Calling | None) -> Any:
    if calling is None:
        return None
    parameters = calling.parameters
    return [list(parameters.positional), _pack(dict(parameters.defaults)), _pack(dict(calling.leaves))]


def _unpacked_call(data: Any) -> Calling | None:
    if data is None:
        return None
    positional, defaults, leaves = data
    return Calling(Parameters(tuple(map(word, positional)), dict(_unpack(defaults))), dict(_unpack(leaves)))


def _pack(tree: Any) -> Any:
    """Arguments as JSON; what JSON lacks becomes a one-entry object whose key starts with `$`."""
    if isinstance(tree, Ref):
        return {"$value": tree.value}
    if isinstance(tree, Scaled):
        return {"$size": [tree.fixed, tree.per_sample]}
    if isinstance(tree, Mapping):
        return {"$map": [[key, _pack(item)] for key, item in tree.items()]}
    if isinstance(tree, tuple):
        return {"$tuple": [_pack(item) for item in tree]}
    if isinstance(tree, list):
        return [_pack(item) for item in tree]
    if isinstance(tree, float) and not (abs(tree) < float("inf")):
        return {"$float": repr(tree)}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, complex):
        return {"$complex": [tree.real, tree.imag]}
    if isinstance(tree, torch.device):
        return {"$device": tree.type}
    for name, kind in _TORCH_NAMES.items():
        if isinstance(tree, kind):
            return {f"${name}": str(tree)}
    raise TypeError(f"an argument of type {type(tree).__name__} can not be stored")


def _unpack(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_unpack(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((key, item),) = tree.items()
    if key == "$value":
        return Ref(whole(item))
    if key == "$size":
        return Scaled(*(whole(size, -LARGEST) for size in item))
    if key == "$map":
        return {word(name): _unpack(part) for name, part in item}
    if key == "$tuple":
        return tuple(_unpack(part) for part in item)
    if key == "$float":
        return float(word(item))
    if key == "$complex":
        return complex(*item)
    if key == "$device":
        return torch.device(word(item))
    return _named(key[1:], item)


def _named(kind: str, text: str) -> Any:
    """`torch.float32` and the like, if they are of this kind."""
    found = _NAMED[kind].get(word(text).removeprefix("torch."))
    if found is None:
        raise ValueError(f"{text[:50]!r} is no {kind}")
    return found
