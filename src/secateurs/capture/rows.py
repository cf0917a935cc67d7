"""`Rows`: the rest of a program on rows, which are samples of a batch in any number and order, each as often as wanted.

Many variants of a network differ from it only behind some node. What lies before is run once for the batch; behind it,
the samples of several variants run side by side, as one larger batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import InputError
from secateurs.capture.batch import generalised, scale_sizes
from secateurs.capture.fold import writes
from secateurs.capture.graph import Graph
from secateurs.capture.program import BatchAxis, Program, Programs, State, follows_inputs

COPYING = {"aten.view.default": "aten.reshape.default", "aten._unsafe_view.default": "aten.reshape.default"}
"""Operators that want a certain layout, and what gives the same numbers for any."""

LAYOUT = frozenset(("aten.as_strided.default", "aten.view.dtype", "aten.view_as_complex.default"))
"""Operators whose result depends on how tensors lie in memory."""


@dataclass(frozen=True)
class Rows:
    """A program for a batch of `count` samples, whose values have them along `axes`, and its form for any number."""

    program: Program
    axes: dict[int, BatchAxis]
    count: int
    _any: Graph
    _free: bool
    _made: dict[int, Program] = field(default_factory=dict, repr=False)

    def able(self, position: int) -> bool:
        """Whether rows can be taken before node `position`: not where aliases of live memory are yet to be written."""
        graph = self.program.graph
        written = self.program.written(position)
        live = [graph.values[value].storage for value in self._live(position)]
        return not any(storage in written and live.count(storage) > 1 for storage in live)

    def _live(self, position: int) -> set[int]:
        graph = self.program.graph
        made = {item.value for item in graph.inputs} | {
            out for node in graph.nodes[:position] for out in node.outputs if out is not None
        }
        read = {value for node in graph.nodes[position:] for value in node.inputs} | set(graph.outputs)
        return made & read

    def take(self, state: State, samples: Tensor) -> State:
        """The state of a run on these samples `[rows]`, numbers within the batch; for `at(rows)`. `state` stays.

        Its tensors are copies. Images lie with their channels last where that is safe: convolutions run faster so.
        """
        last = self._free and samples.device.type == "cpu"
        state = self.program.branch(state)
        for value, tensor in state.values.items():
            axis = self.axes.get(value)
            if axis is not None:
                tensor = tensor.index_select(axis.dim, axis.places(samples, self.count))
                image = last and tensor.dim() == 4 and axis.dim == 0
                state.values[value] = tensor.contiguous(memory_format=torch.channels_last) if image else tensor
        return state

    def at(self, rows: int, device: torch.device) -> Program:
        """The program for this many rows."""
        if rows not in self._made:
            nodes = tuple(
                replace(
                    node,
                    args=scale_sizes(node.args, rows, device),
                    kwargs=scale_sizes(dict(node.kwargs), rows, device),
                )
                for node in self._any.nodes
            )
            self._made[rows] = Program(replace(self._any, nodes=nodes), self.program.tensors)
        return self._made[rows]

    def bytes_per_row(self, position: int) -> int:
        """Bytes that a row needs behind `position`: the most that one node reads and writes, and what waits for it."""
        graph = self.program.graph

        def size(values: set[int]) -> int:
            found = 0
            for value in values & self.axes.keys():
                entries = 1
                for length in graph.values[value].shape:
                    entries *= length
                found += entries * graph.values[value].dtype.itemsize
            return found // self.count

        waiting = size(self._live(position))
        nodes = graph.nodes[position:]
        return waiting + max(
            (size({*node.inputs, *(out for out in node.outputs if out is not None)}) for node in nodes), default=0
        )


def rows_of(programs: Programs, inputs: Any) -> Rows | None:
    """The rows of inputs like these; None when the samples cannot be run apart from each other.

    That is so where the model mixes samples, takes decisions from data, or is not made for other batch sizes.
    """
    if programs.graph.how == "recorded":
        return None
    try:
        axes = programs.batch_axes(inputs)
        program, given = programs.program(inputs)
        twice = programs.twice(inputs).graph
    except InputError:
        return None
    anywhere = generalised(program.graph, program.graph, twice)
    moving = follows_inputs(program.graph)
    made = {out for node in program.graph.nodes for out in node.outputs if out is not None}
    if anywhere is None or not axes or not (made & moving) <= axes.keys():
        return None
    written = any(writes(node) for node in anywhere.nodes)
    free = not written and not any(node.op in LAYOUT for node in anywhere.nodes)
    if free:
        nodes = tuple(replace(node, op=COPYING.get(node.op, node.op)) for node in anywhere.nodes)
        anywhere = replace(anywhere, nodes=nodes)
    return Rows(program, axes, given[0].shape[0], anywhere, free)


__all__ = ["Rows", "rows_of"]
