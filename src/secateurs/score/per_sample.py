"""Squared gradients of single samples: what each sample's own loss says about every weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from secateurs.capture.fold import writes
from secateurs.capture.graph import Graph, Node, Ref
from secateurs.capture.program import BatchAxis, Program, State
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.score.gradients import gradients
from secateurs.score.samples import Batch

Totals = Callable[[Batch, State, Program], Iterable[Tensor]]
"""`(batch, a finished run, its program) -> scalars`, each a sum over the batch's samples of a number of their own."""
CONVOLUTIONS = frozenset(f"aten.{name}.default" for n in (1, 2, 3) for name in (f"conv{n}d",)) | {
    "aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input"
}  # fmt: skip


def squared_gradients(
    batch: Batch, leaves: Sequence[str], totals: Totals, *, one_by_one: bool = False
) -> dict[str, Tensor]:
    """For each leaf `sum over totals and samples of (d total_n / d leaf)^2`, float64, in the shape of the leaf.

    In one run of the whole batch if every leaf is the weight of convolutions and linear layers whose samples lie side
    by side: a sample's gradient follows from what the layer reads and the gradient of what it gives. Otherwise, or
    with `one_by_one`, sample by sample.
    """
    found = {name: torch.zeros_like(batch.program.tensors[name], dtype=torch.float64) for name in leaves}
    uses = None if one_by_one else _uses(batch, leaves)
    if uses is None:
        for single in batch.each():
            program, state, _ = _run(single, leaves, {})
            for total in totals(single, state, program):
                slopes = gradients(single, total, [program.tensors[name] for name in leaves], retain_graph=True)
                for name, slope in zip(leaves, slopes, strict=True):
                    if slope is not None:
                        found[name] += slope.double().square()
        return found
    program, state, seen = _run(batch, leaves, {use.node.index: use for mine in uses.values() for use in mine})
    order = sorted(seen)
    for total in totals(batch, state, program):
        slopes = gradients(batch, total, [seen[node].edge for node in order], retain_graph=True)
        behind = dict(zip(order, slopes, strict=True))
        for name, mine in uses.items():
            found[name] += _summed_squares([_Part.of(use, seen[use.node.index], behind[use.node.index]) for use in mine
                                            if behind[use.node.index] is not None], program.tensors[name])  # fmt: skip
    return found


@dataclass(frozen=True)
class _Use:
    """A layer that reads a leaf as its weight, and where the samples lie in what it reads and gives."""

    node: Node
    source: int
    before: BatchAxis
    after: BatchAxis


@dataclass
class _Seen:
    """What a layer read, and where the gradient of what it gave is found."""

    read: Tensor | None = None
    edge: GradientEdge | None = None


def _uses(batch: Batch, leaves: Sequence[str]) -> dict[str, list[_Use]] | None:
    """The layers that read each leaf; None if one of them is of another kind, or if samples are mixed."""
    graph, axes = batch.program.graph, batch.axes()
    if any(value not in axes for value in graph.outputs):
        return None
    named = {graph.leaf(name).value: name for name in leaves}
    found: dict[str, list[_Use]] = {name: [] for name in leaves}
    for node in graph.nodes:
        for value in set(node.inputs) & named.keys():
            use = _use(graph, node, value, axes)
            if use is None:
                return None
            found[named[value]].append(use)
    return found


def _use(graph: Graph, node: Node, weight: int, axes: dict[int, BatchAxis]) -> _Use | None:
    convolution = node.op in CONVOLUTIONS
    if not convolution and base_name(node.op) != "aten.linear":
        return None
    given, out = arguments(node), node.outputs[0]
    source, bias = given["input"], given["bias"]
    if out is None or given["weight"] != Ref(weight) or weight in (source.value, getattr(bias, "value", None)):
        return None
    before, after = axes.get(source.value), axes.get(out)
    if before is None or after is None:
        return None
    rank = len(graph.values[source.value].shape)
    if convolution and (before.dim or after.dim or rank != len(graph.values[weight].shape)):
        return None
    if not convolution and rank - 1 in (before.dim, after.dim):
        return None
    return _Use(node, source.value, before, after)


def _run(batch: Batch, leaves: Sequence[str], uses: dict[int, _Use]) -> tuple[Program, State, dict[int, _Seen]]:
    """A run on leaves that have gradients, watched at the layers that use them."""
    graph = batch.program.graph
    written = {graph.values[value].storage for node in graph.nodes for value in writes(node)}
    seen = {node: _Seen() for node in uses}
    makers = {use.node.outputs[0]: node for node, use in uses.items()}

    def read(node: int, value: int, tensor: Tensor) -> Tensor:
        if value == uses[node].source:
            volatile = graph.values[value].storage in written
            seen[node].read = tensor.detach().clone() if volatile else tensor.detach()
        return tensor

    def made(value: int, tensor: Tensor) -> None:
        if value in makers:
            seen[makers[value]].edge = get_gradient_edge(tensor)

    with torch.enable_grad():
        program = batch.on({name: batch.program.tensors[name].detach().requires_grad_() for name in leaves})
        reads = {node: (lambda value, tensor, node=node: read(node, value, tensor)) for node in uses}
        state = program.run(program.begin(batch.given), reads=reads, made=made)
    return program, state, seen


@dataclass(frozen=True)
class _Part:
    """One layer's part in the gradient of each sample: `before` [N, entries, ...] and `behind`, its output's slopes."""

    node: Node
    before: Tensor
    behind: Tensor

    @staticmethod
    def of(use: _Use, seen: _Seen, slope: Tensor | None) -> _Part:
        assert seen.read is not None
        assert slope is not None
        before, behind = use.before.by_sample(seen.read), use.after.by_sample(slope)
        if use.node.op not in CONVOLUTIONS:
            before, behind = before.flatten(1, -2), behind.flatten(1, -2)
        return _Part(use.node, before, behind)

    @property
    def single(self) -> bool:
        """A linear layer on one row per sample."""
        return self.node.op not in CONVOLUTIONS and self.before.shape[1] == 1

    def slope(self, sample: int, weight: Tensor) -> Tensor:
        """The gradient of one sample to the weight."""
        before, behind = self.before[sample], self.behind[sample]
        if self.node.op not in CONVOLUTIONS:
            return behind.T @ before
        found = torch.ops.aten.convolution_backward(
            behind, before, weight, None, *_geometry(self.node, weight.dim() - 2), [False, True, False]
        )
        result: Tensor = found[1]
        return result


def _geometry(node: Node, dims: int) -> Iterator[Any]:
    """Stride, padding, dilation, transposed or not, output padding, groups."""
    given = arguments(node)

    def each(number: Any) -> list[int]:
        numbers = list(number) if isinstance(number, (list, tuple)) else [number]
        return numbers * dims if len(numbers) == 1 else numbers

    yield from (each(given["stride"]), each(given["padding"]), each(given["dilation"]))
    yield from ("transpose" in node.op, each(given.get("output_padding", 0)), given["groups"])


def _summed_squares(parts: Sequence[_Part], weight: Tensor) -> Tensor:
    """`sum over samples of gradient^2`, the gradient being the sum over the layers that share the weight."""
    weight = weight.detach()
    if len(parts) == 1 and parts[0].single:
        return parts[0].behind[:, 0].double().square().T @ parts[0].before[:, 0].double().square()
    total = torch.zeros_like(weight)
    for sample in range(len(parts[0].before) if parts else 0):
        slope = sum(part.slope(sample, weight) for part in parts)
        total.addcmul_(slope, slope)  # type: ignore[arg-type]
    return total.double()


__all__ = ["Totals", "squared_gradients"]
