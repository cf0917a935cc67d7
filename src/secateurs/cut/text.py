"""Graphs as JSON and back: what a graph-form module needs to run again, without pickle and without the class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import ArtifactError, explain
from secateurs.capture.batch import Scaled
from secateurs.capture.bind import Calling, Parameters, is_literal
from secateurs.capture.graph import Graph, Input, Leaf, Node, Ref, Value
from secateurs.capture.run import operator

FORMAT = 1
NAMESPACES = ("aten", "torchvision")
_TORCH_NAMES = {
    "dtype": torch.dtype,
    "memory_format": torch.memory_format,
    "layout": torch.layout,
}


def graph_to_json(graph: Graph) -> str:
    """The program as text; tensors stay outside, under their leaf names.

    The same program gives the same text: memory is numbered in the order of the values, not named by its address.
    """
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

    Raises `ArtifactError` for text that is not such a graph, names an operator outside PyTorch's own namespaces, or
    refers to values and tensors that are not there.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        values = tuple(
            Value(i, tuple(int(n) for n in shape), _named("dtype", dtype), producer, int(storage))
            for i, (shape, dtype, producer, storage) in enumerate(data["values"])
        )
        leaves = tuple(
            Leaf(name, tuple(names), kind, value, values[value].shape, values[value].dtype)
            for name, names, kind, value in data["leaves"]
        )
        nodes = tuple(
            Node(i, _known(op), tuple(_unpack(args)), _unpack(kwargs), tuple(outputs), bool(listed), module, "")
            for i, (op, args, kwargs, outputs, listed, module) in enumerate(data["nodes"])
        )
        graph = Graph(
            nodes=nodes,
            values=values,
            leaves=leaves,
            inputs=tuple(Input(name, value) for name, value in data["inputs"]),
            output=_unpack(data["output"]),
            unread=tuple(
                Leaf(name, tuple(names), kind, -1, tuple(shape), _named("dtype", dtype))
                for name, names, kind, shape, dtype in data["unread"]
            ),
            constants={leaf.name: tensors[leaf.name] for leaf in leaves if leaf.kind == "constant"},
            how=data["how"],
            notes=tuple(data["notes"]),
            calling=_unpacked_call(data.get("calling")),
        )
        _check(graph, tensors)
        return graph
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ArtifactError(
            explain("This is not a Secateurs graph", evidence=f"{type(error).__name__}: {error}")
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
    return Calling(Parameters(tuple(map(str, positional)), _unpack(defaults)), _unpack(leaves))


def _check_call(graph: Graph, calling: Calling) -> None:
    given = {leaf.value for leaf in calling.leaves.values() if isinstance(leaf, Ref)}
    if given != {item.value for item in graph.inputs}:
        raise ValueError("the call does not hold the inputs")
    rest = [leaf for leaf in calling.leaves.values() if not isinstance(leaf, Ref)]
    if not all(is_literal(item) for item in (*rest, *calling.parameters.defaults.values())):
        raise ValueError("the call holds something that is neither a tensor nor a literal")


def _check(graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    if graph.calling is not None:
        _check_call(graph, graph.calling)
    ready = {item.value for item in graph.inputs}
    for leaf in (*graph.leaves, *graph.unread):
        if tuple(tensors[leaf.name].shape) != leaf.shape:
            raise ValueError(f"`{leaf.name}` has shape {tuple(tensors[leaf.name].shape)}, the graph says {leaf.shape}")
        ready.add(leaf.value)
    ready.discard(-1)
    for node in graph.nodes:
        missing = set(node.inputs) - ready
        if missing:
            raise ValueError(f"node {node.index} reads value {min(missing)} before it exists")
        ready |= {out for out in node.outputs if out is not None}
    if not set(graph.outputs) <= ready:
        raise ValueError("an output is never computed")


def _known(op: str) -> str:
    if op.split(".")[0] not in NAMESPACES:
        raise ValueError(f"operator {op!r} is outside {' and '.join(NAMESPACES)}")
    schema = operator(op)._schema
    if any(argument.name == "filename" for argument in schema.arguments):
        raise ValueError(f"operator {op!r} touches files")
    return op


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
        return Ref(int(item))
    if key == "$size":
        return Scaled(int(item[0]), int(item[1]))
    if key == "$map":
        return {name: _unpack(part) for name, part in item}
    if key == "$tuple":
        return tuple(_unpack(part) for part in item)
    if key == "$float":
        return float(item)
    if key == "$complex":
        return complex(*item)
    if key == "$device":
        return torch.device(str(item))
    return _named(key[1:], item)


def _named(kind: str, text: str) -> Any:
    """`torch.float32` and the like, checked to be what they should be."""
    found = getattr(torch, text.removeprefix("torch."))
    if not isinstance(found, _TORCH_NAMES[kind]):
        raise ValueError(f"{text!r} is no {kind}")
    return found
