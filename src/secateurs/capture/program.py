"""`Program`: a captured graph run on real data, stopped anywhere, looked at, changed and continued.

The interpreter behind everything that needs to know what flows between the layers: activations, gradients with respect
to them, and networks in which a channel is silenced. A graph states its sizes as numbers, so one is captured for every
shape of inputs that comes along; all of them run the same nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import CaptureError, InputError, explain
from secateurs.capture.batch import doubled
from secateurs.capture.fold import writes
from secateurs.capture.graph import Graph
from secateurs.capture.run import call, fill, last_use
from secateurs.capture.trace import capture, check_inputs

T = TypeVar("T")
Read = Callable[[int, Tensor], Tensor]
"""`(value number, tensor) -> tensor`: what a node gets to read in place of a value."""


@dataclass
class State:
    """A run that has come as far as node `position`: what later nodes still need, by value number."""

    values: dict[int, Tensor]
    position: int = 0


@dataclass(frozen=True)
class Program:
    """`graph` on `tensors` (`{leaf name: tensor}`, constants of the graph included).

    Gradients flow to the leaves that require them. No leaf and no input is ever written to.
    """

    graph: Graph
    tensors: Mapping[str, Tensor]
    _done: dict[int, list[int]] = field(init=False, repr=False)
    _leaf: dict[int, str] = field(init=False, repr=False)
    _written: list[frozenset[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        graph = self.graph
        object.__setattr__(self, "_done", last_use(graph.nodes, graph.outputs))
        object.__setattr__(self, "_leaf", {leaf.value: leaf.name for leaf in graph.leaves})
        later: list[frozenset[int]] = [frozenset()]
        for node in reversed(graph.nodes):
            later.append(later[-1] | {graph.values[value].storage for value in writes(node)})
        object.__setattr__(self, "_written", later[::-1])

    def begin(self, inputs: Sequence[Tensor]) -> State:
        """The state before the first node; `inputs` are the tensors of the call, in order.

        Raises `InputError` when they are not those of the graph.
        """
        expected = [self.graph.values[item.value].shape for item in self.graph.inputs]
        found = [tuple(tensor.shape) for tensor in inputs]
        if found != expected:
            raise InputError(explain("The program takes other inputs", evidence=f"{found} given, {expected} expected"))
        values = {item.value: tensor for item, tensor in zip(self.graph.inputs, inputs, strict=True)}
        return State({value: self._safe(value, tensor, 0) for value, tensor in values.items()})

    def run(
        self,
        state: State,
        stop: int | None = None,
        *,
        reads: Mapping[int, Read] | None = None,
        made: Callable[[int, Tensor], None] | None = None,
    ) -> State:
        """Go on with `state`, which is changed, up to before node `stop` (default: the end).

        `reads[node]` changes what that node reads, and nobody else. `made` is told of every value as it is made, before
        anything writes into it.
        """
        reads = reads or {}
        nodes = self.graph.nodes
        stop = len(nodes) if stop is None else stop
        values = state.values
        for node in nodes[state.position : stop]:
            change = reads.get(node.index)
            if change is None:
                results = call(node, lambda value: self._read(value, values))
            else:
                results = call(node, lambda value, change=change: change(value, self._read(value, values)))  # type: ignore[misc]
            for out, result in zip(node.outputs, results, strict=True):
                if out is not None:
                    values[out] = result
                    if made is not None:
                        made(out, result)
            for value in self._done.get(node.index, ()):
                values.pop(value, None)
        state.position = max(stop, state.position)
        return state

    def branch(self, state: State) -> State:
        """An independent continuation: whatever the rest of the run writes in place is copied, aliases together."""
        written = self._written[state.position]
        copies: dict[int, torch.UntypedStorage] = {}
        values: dict[int, Tensor] = {}
        for value, tensor in state.values.items():
            storage = self.graph.values[value].storage
            if storage in written:
                if storage not in copies:
                    copies[storage] = tensor.detach().untyped_storage().clone()  # type: ignore[no-untyped-call]
                tensor = _in(copies[storage], tensor)
            values[value] = tensor
        return State(values, state.position)

    def written(self, position: int) -> frozenset[int]:
        """Numbers of the storages that node `position` or a later one writes in place."""
        return self._written[position]

    def output(self, state: State) -> Any:
        """What the model returns, once the run has come to the end."""
        return fill(self.graph.output, {value: self._read(value, state.values) for value in self.graph.outputs})

    def _read(self, value: int, values: dict[int, Tensor]) -> Tensor:
        found = values.get(value)
        if found is None:
            found = self._safe(value, self.tensors[self._leaf[value]], 0)
            if self.graph.values[value].storage in self._written[0]:
                values[value] = found
        return found

    def _safe(self, value: int, tensor: Tensor, position: int) -> Tensor:
        return tensor.clone() if self.graph.values[value].storage in self._written[position] else tensor


def _in(memory: torch.UntypedStorage, tensor: Tensor) -> Tensor:
    """What the tensor is, in a copy of its memory."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())


class Programs:
    """The programs of one model: one per shape of inputs, all running the nodes of `graph`.

    `tensors` replaces the model's own (default: detached parameters and buffers).
    """

    def __init__(self, model: nn.Module, graph: Graph, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.model = model
        self.graph = graph
        own = {
            **dict(model.named_buffers(remove_duplicate=False)),
            **dict(model.named_parameters(remove_duplicate=False)),
        }
        self._tensors = {name: tensor.detach() for name, tensor in own.items()} if tensors is None else dict(tensors)
        self._made: dict[Any, Program] = {}
        self._twice: dict[Any, Program] = {}
        self._kept: dict[Any, Any] = {}
        self._axes: dict[Any, dict[int, BatchAxis]] = {}

    def program(self, inputs: Any) -> tuple[Program, list[Tensor]]:
        """The program for these inputs (a tensor, a tuple of arguments or a dict of keywords), and their tensors.

        Raises `InputError` when the model does not run the nodes of the graph on them.
        """
        args, keywords = self._call(inputs)
        given = [leaf for leaf in pytree.tree_leaves((args, keywords)) if isinstance(leaf, Tensor)]
        if self.graph.how == "recorded":  # decisions from this batch's data are part of the program
            return self._make(args, keywords), given
        key = _key(args, keywords)
        if key not in self._made:
            self._made[key] = self._make(args, keywords)
        return self._made[key], given

    def batch_axes(self, inputs: Any) -> dict[int, BatchAxis]:
        """`{value: where its samples lie}` for every value that follows the batch, for inputs like these.

        Found by capturing with all inputs doubled, changing one sample and looking at what changes. Values whose
        samples cannot be told apart, or that mix samples, are left out. Raises `InputError` when the model does not
        take inputs twice as long.
        """
        args, keywords = self._call(inputs)
        key = _key(args, keywords)
        if key not in self._axes:
            program, given = self.program(inputs)
            self._axes[key] = _batch_axes(program.graph, self.twice(inputs), given)
        return self._axes[key]

    def twice(self, inputs: Any) -> Program:
        """The program for inputs twice as long. Raises `InputError` when the model does not take them."""
        args, keywords = self._call(inputs)
        key = _key(args, keywords)
        if key not in self._twice:
            self._twice[key] = self._make(*doubled((args, keywords)))
        return self._twice[key]

    def once(self, name: str, inputs: Any, make: Callable[[], T]) -> T:
        """`make()`, called at the first inputs like these."""
        key = name, _key(*self._call(inputs))
        if key not in self._kept:
            self._kept[key] = make()
        result: T = self._kept[key]
        return result

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Programs:
        """The same programs on other tensors (those that are not named stay), such as leaves that require gradients."""
        other = Programs(self.model, self.graph, {**self._tensors, **tensors})
        other._made = {key: Program(made.graph, {**made.tensors, **tensors}) for key, made in self._made.items()}
        other._twice = {key: Program(made.graph, {**made.tensors, **tensors}) for key, made in self._twice.items()}
        other._axes = self._axes
        return other

    def _call(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs as a call, keywords in the order of the graph: a dict may name them in any order."""
        args, keywords = check_call(self.model, inputs)
        names = [item.name for item in self.graph.inputs]
        first = {
            key: next((i for i, name in enumerate(names) if name == key or name.startswith(f"{key}[")), len(names))
            for key in keywords
        }
        return args, {key: keywords[key] for key in sorted(keywords, key=first.__getitem__)}

    def _make(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> Program:
        try:
            graph = capture(self.model, args, kwargs=keywords, how=self.graph.how)
        except CaptureError as error:
            raise InputError(
                explain("The model does not run on this batch", evidence=str(error), next_step="check the data")
            ) from error
        _check_same(self.graph, graph)
        return Program(graph, {**self._tensors, **graph.constants})


def check_call(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch's inputs as positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return check_inputs(model, (), dict(inputs))
    return check_inputs(model, tuple(inputs) if isinstance(inputs, (list, tuple)) else inputs, None)


def _key(args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Equal for calls that one program can serve: the same structure, shapes and types."""
    leaves, spec = pytree.tree_flatten((args, keywords))
    described = tuple((tuple(x.shape), x.dtype, str(x.device)) if isinstance(x, Tensor) else repr(x) for x in leaves)
    return str(spec), described


def _check_same(one: Graph, other: Graph) -> None:
    """Two captures run the same nodes on the same values; only sizes differ. Raises `InputError`."""
    for a, b in zip(one.nodes, other.nodes, strict=False):
        if (a.op, a.inputs, a.outputs) != (b.op, b.inputs, b.outputs):
            raise _differs(f"{a.where} there, {b.where} here")
    if len(one.nodes) != len(other.nodes):
        raise _differs(f"{len(one.nodes)} operators there, {len(other.nodes)} here")
    if [leaf.name for leaf in one.leaves] != [leaf.name for leaf in other.leaves]:
        raise _differs("it reads other tensors")
    for mine, other_one in zip(one.inputs, other.inputs, strict=False):
        expected, found = one.values[mine.value].dtype, other.values[other_one.value].dtype
        if expected != found and (expected.is_floating_point or found.is_floating_point):
            raise InputError(
                explain(
                    "The data has another dtype than the example inputs",
                    where=f"`{other_one.name}`",
                    evidence=f"it is {found} here and was {expected} there",
                    next_step="convert the data, or capture with example inputs like it",
                )
            )


def _differs(evidence: str) -> InputError:
    return InputError(
        explain(
            "On this batch the model does something else than on the example inputs",
            evidence=evidence,
            next_step="capture with example inputs like the batches: same arguments, several samples if it matters",
        )
    )


@dataclass(frozen=True)
class BatchAxis:
    """The samples of a value lie along `dim`, each with `entries`: one after the other, or (`minor`) interleaved."""

    dim: int
    entries: int
    minor: bool = False

    def by_sample(self, tensor: Tensor) -> Tensor:
        """The tensor as `[samples, entries, ...]`, the other dimensions in their order."""
        first = tensor.movedim(self.dim, 0)
        if self.minor:
            return first.reshape(self.entries, -1, *first.shape[1:]).transpose(0, 1)
        return first.reshape(-1, self.entries, *first.shape[1:])

    def places(self, samples: Tensor, count: int) -> Tensor:
        """Indices along `dim` of these samples of `count`, in the order in which a batch of just them would lie."""
        entry = torch.arange(self.entries, device=samples.device)
        if self.minor:
            return (entry[:, None] * count + samples).flatten()
        return (samples[:, None] * self.entries + entry).flatten()

    def per_entry(self, rows: Tensor) -> Tensor:
        """One line per sample `[samples, ...]` as one per index along `dim`."""
        if self.minor:
            return rows.repeat(self.entries, *([1] * (rows.dim() - 1)))
        return rows.repeat_interleave(self.entries, 0)


def _batch_axes(once: Graph, twice: Program, given: Sequence[Tensor]) -> dict[int, BatchAxis]:
    samples = {tensor.shape[0] for tensor in given if tensor.dim()}
    if len(samples) != 1:
        return {}
    count = samples.pop()
    found: dict[int, BatchAxis] = {}
    for a, b in zip(once.values, twice.graph.values, strict=False):
        grown = [dim for dim, (x, y) in enumerate(zip(a.shape, b.shape, strict=False)) if y != x]
        if len(grown) != 1 or len(a.shape) != len(b.shape):
            continue
        size = a.shape[grown[0]]
        if b.shape[grown[0]] == 2 * size and size % count == 0:
            found[a.index] = BatchAxis(grown[0], size // count)
    return _confirmed(twice, [torch.cat([tensor, tensor]) if tensor.dim() else tensor for tensor in given], found)


def _confirmed(program: Program, given: Sequence[Tensor], axes: Mapping[int, BatchAxis]) -> dict[int, BatchAxis]:
    """The axes along which nothing but the first sample's entries moves when that sample changes."""
    changed = [tensor.clone() for tensor in given]
    for tensor in changed:
        if tensor.dim() and tensor.is_floating_point():
            tensor[0] = tensor[-1] * 0.5 + 1
        elif tensor.dim():
            tensor[0] = tensor[-1]

    def rows_of(inputs: Sequence[Tensor]) -> dict[int, Tensor]:
        rows: dict[int, Tensor] = {}

        def note(value: int, tensor: Tensor) -> None:
            if value in axes:
                first = tensor.detach().movedim(axes[value].dim, 0)
                rows[value] = _fingerprints(first.reshape(len(first), -1))

        with torch.no_grad():
            state = program.begin(inputs)
            for value, tensor in state.values.items():
                note(value, tensor)
            program.run(state, made=note)
        return rows

    before, after = rows_of(given), rows_of(changed)
    moving = follows_inputs(program.graph)
    found: dict[int, BatchAxis] = {}
    for value, axis in axes.items():
        if value not in before:
            continue
        same = (before[value] == after[value]) | (before[value].isnan() & after[value].isnan())
        moved = (~same).nonzero().flatten()
        if not moved.numel() and axis.entries > 1 and value in moving:
            continue
        if bool((moved < axis.entries).all()):
            found[value] = axis
        elif bool((moved % (before[value].numel() // axis.entries) == 0).all()):
            found[value] = replace(axis, minor=True)
    return found


def follows_inputs(graph: Graph) -> frozenset[int]:
    """Numbers of the values that hold something computed from the inputs, written into their memory or an alias's."""
    found = {item.value for item in graph.inputs}
    memory = {graph.values[value].storage for value in found}
    for node in graph.nodes:
        if any(value in found or graph.values[value].storage in memory for value in node.inputs):
            found.update(out for out in node.outputs if out is not None)
            memory.update(graph.values[value].storage for value in writes(node))
    return frozenset(found | {value.index for value in graph.values if value.storage in memory})


def _fingerprints(rows: Tensor) -> Tensor:
    """One number per row `[rows, n]`, which tells apart rows of equal sums, such as those of a softmax."""
    rows = torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows
    weights = torch.arange(rows.shape[1], dtype=torch.float64, device=rows.device).add(1).cos()
    return rows.double() @ weights


__all__ = ["BatchAxis", "Program", "Programs", "Read", "State", "follows_inputs"]
