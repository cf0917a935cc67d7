"""`Graph`: one run of a model as plain data.

A graph is a list of ATen operator calls in the order in which the model made them, at the level where `conv2d`,
`linear`, `batch_norm` and `scaled_dot_product_attention` are still whole. Tensors are numbered *values*; a value comes
from an input, from a leaf (parameter, buffer or constant) or from a node. In-place operators stay in place: running
the nodes in order repeats what the model did, aliasing included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from secateurs.capture.bind import Calling


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor argument: the value with this number."""

    value: int


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the run. `storage` numbers its memory: values that share it alias each other."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    producer: int | None
    storage: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor that the run read but did not compute. Tied parameters are one leaf with several names."""

    name: str
    names: tuple[str, ...]
    kind: Literal["parameter", "buffer", "constant"]
    value: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Node:
    """One operator call. Tensor arguments appear as `Ref`; everything else is literal."""

    index: int
    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    listed: bool
    module: str
    source: str

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of the values read, in argument order."""
        return tuple(ref.value for ref in refs((self.args, tuple(self.kwargs.values()))))

    @property
    def where(self) -> str:
        """Operator, module path and the user's own line, for messages."""
        place = f" in `{self.module}`" if self.module else ""
        line = f" at {self.source}" if self.source else ""
        return f"`{self.op.split('.')[1] if '.' in self.op else self.op}`{place}{line}"


def refs(tree: Any) -> Iterator[Ref]:
    """Every `Ref` in a nested argument structure, in order."""
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from refs(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from refs(item)


def map_refs(tree: Any, change: Callable[[Ref], Any]) -> Any:
    """The same nested structure with every `Ref` replaced by `change(ref)`."""
    if isinstance(tree, Ref):
        return change(tree)
    if isinstance(tree, tuple):
        return tuple(map_refs(item, change) for item in tree)
    if isinstance(tree, list):
        return [map_refs(item, change) for item in tree]
    if isinstance(tree, Mapping):
        return {key: map_refs(item, change) for key, item in tree.items()}
    return tree


@dataclass(frozen=True, slots=True)
class Input:
    """One tensor that the caller passes; `name` is its path in the call, such as `args[0]` or `kwargs['mask']`."""

    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Decision:
    """One call of a recorded run that turned floating-point data into integers, booleans or Python numbers.

    `node` is the node's number, `outputs` what it gave. Runs that must follow the same course replay them in order.
    """

    op: str
    node: int
    outputs: tuple[Any, ...]


@dataclass(frozen=True)
class Graph:
    """The captured program.

    `unread` are parameters and buffers that the run did not read. `output` is the model's own output structure (tuples,
    lists, dicts) with `Ref` in place of tensors. `how` says how it was captured: `"traced"` (abstractly, no data looked
    at), `"exported"` (the same, by `torch.export`) or `"recorded"` (one real run, decisions that depend on data are
    baked in and listed in `notes`). `constants` holds the data of constant leaves, `known` the contents of small
    integer values that no input reaches (index tables), and `decisions`, of a recorded run only, the outputs of nodes
    that turned floating-point data into integers or booleans. `modules` maps module paths to the names of their
    classes. `calling` says what every argument of the captured call was, None if that is not known.
    """

    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    leaves: tuple[Leaf, ...]
    inputs: tuple[Input, ...]
    output: Any
    unread: tuple[Leaf, ...] = ()
    constants: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    known: Mapping[int, Tensor] = field(default_factory=dict, repr=False)
    decisions: tuple[Decision, ...] = field(default=(), repr=False)
    modules: Mapping[str, str] = field(default_factory=dict, repr=False)
    how: Literal["traced", "exported", "recorded"] = "traced"
    notes: tuple[str, ...] = ()
    calling: Calling | None = None

    def __str__(self) -> str:
        names = ", ".join(item.name for item in self.inputs)
        lines = [f"Graph of {len(self.nodes)} operators, {self.how}; inputs: {names}", *self.notes]
        lines += [f"  {node.index}: {node.op} in `{node.module}` -> {self._shapes(node)}" for node in self.nodes]
        return "\n".join(lines)

    def _shapes(self, node: Node) -> str:
        return ", ".join(str(self.values[out].shape) for out in node.outputs if out is not None)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Numbers of the values that the model returns."""
        return tuple(ref.value for ref in refs(self.output))

    def leaf(self, name: str) -> Leaf:
        """The leaf with this name (any of its names, if it is tied)."""
        return self._leaf_of[name]

    @cached_property
    def _leaf_of(self) -> dict[str, Leaf]:
        return {name: leaf for leaf in self.leaves for name in leaf.names}

    @cached_property
    def hash(self) -> str:
        """SHA-256 over operators, arguments, shapes and leaf names; not over weights, file paths or line numbers."""
        text = json.dumps(
            {
                "leaves": sorted((leaf.name, leaf.kind, list(leaf.shape), str(leaf.dtype)) for leaf in self.leaves),
                "inputs": [(item.name, list(self.values[item.value].shape)) for item in self.inputs],
                "nodes": [
                    [node.op, _plain(node.args), _plain(dict(node.kwargs)), list(node.outputs)] for node in self.nodes
                ],
                "output": _plain(self.output),
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(tree: Any) -> Any:
    """The structure as JSON data; `Ref(3)` becomes `{"ref": 3}`, torch objects their names."""
    if isinstance(tree, Ref):
        return {"ref": tree.value}
    if isinstance(tree, Mapping):
        return {str(key): _plain(item) for key, item in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [_plain(item) for item in tree]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    return "generator" if isinstance(tree, torch.Generator) else str(tree)
