"""The proofs. (a) the cut graph computes what the original computes with the removed channels silenced.

The oracle runs the *original* graph, full-sized, in float64. Wherever an operator sums over an axis, what it reads at
removed indices is set to zero first, as if the consumers' weights there were zero; nothing else is touched, so whatever
a removed channel still holds would show if it leaked. Operators that take statistics over an owned axis are the
exception: there the oracle takes them over the kept indices and spreads the result out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import ProofError, explain
from secateurs.capture.fold import writes
from secateurs.capture.graph import Graph, Node, map_refs
from secateurs.capture.run import last_use, operator
from secateurs.capture.tape import replayed
from secateurs.couple.group import Bools, Groups
from secateurs.couple.rules.registry import base_name

SUMS = frozenset(
    f"aten.{name}"
    for name in (
        "linear", "matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d",
        "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "scaled_dot_product_attention",
        "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
        "sum", "nansum", "col2im", "bilinear", "tensordot", "cdist",
    )
)  # fmt: skip
WIDER = {
    torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """What was checked and how far apart the two sides were.

    `worst` is the largest absolute difference on any output, relative to the largest absolute value of that output,
    computed in `dtype`. `nodes` compared one by one with the re-captured graph; `macs` counted and predicted.
    `exact` is False when a norm or another statistic ran over a removed axis.
    """

    worst: float
    tolerance: float
    dtype: str
    nodes: int
    macs: int
    exact: bool
    form: str


def widened(tensor: Tensor, wide: bool) -> Tensor:
    """The tensor in double precision if it is floating-point and that is asked for."""
    return tensor.to(WIDER[tensor.dtype]) if wide and tensor.dtype in WIDER else tensor


class Run:
    """One graph being run node by node, on tensors that are widened as they are read."""

    def __init__(self, graph: Graph, leaves: Callable[[str], Tensor], inputs: Mapping[int, Tensor], wide: bool) -> None:
        self.graph = graph
        self.wide = wide
        self.values: dict[int, Tensor] = {
            value: widened(tensor.detach().clone(), wide) for value, tensor in inputs.items()
        }
        self._leaf = {leaf.value: leaf.name for leaf in graph.leaves}
        self._leaves = leaves
        self._done = last_use(graph.nodes, graph.outputs)
        self._written = {graph.values[value].storage for node in graph.nodes for value in writes(node)}
        self._decisions = {item.node: item for item in graph.decisions if item.node >= 0}

    def read(self, value: int) -> Tensor:
        if value not in self.values and value in self._leaf:
            tensor = widened(self._leaves(self._leaf[value]).detach(), self.wide)
            self.values[value] = tensor.clone() if self.graph.values[value].storage in self._written else tensor
        return self.values[value]

    def step(self, node: Node, read: Callable[[int], Tensor] | None = None) -> tuple[Any, ...]:
        """Run one node; recorded decisions are repeated, not taken anew."""
        fetch = read or self.read
        args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: fetch(ref.value))
        if self.wide:
            args, kwargs = _wide_dtypes(args), _wide_dtypes(kwargs)

        def run() -> Any:
            return operator(node.op)(*args, **kwargs)

        decision = self._decisions.get(node.index)
        result = replayed(decision, run) if decision is not None and decision.op == node.op else run()
        return tuple(result) if isinstance(result, (list, tuple)) else (result,)

    def store(self, node: Node, results: tuple[Any, ...]) -> None:
        for out, result in zip(node.outputs, results, strict=True):
            if out is not None:
                self.values[out] = result
        for value in self._done.get(node.index, ()):
            self.values.pop(value, None)


def _wide_dtypes(tree: Any) -> Any:
    if isinstance(tree, torch.dtype):
        return WIDER.get(tree, tree)
    if isinstance(tree, tuple):
        return tuple(_wide_dtypes(item) for item in tree)
    if isinstance(tree, list):
        return [_wide_dtypes(item) for item in tree]
    if isinstance(tree, dict):
        return {key: _wide_dtypes(item) for key, item in tree.items()}
    return tree


@contextmanager
def in_double(wide: bool) -> Iterator[None]:
    """Factories that name no type make float64, if asked for."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if wide else default)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def run_graph(
    graph: Graph, leaves: Callable[[str], Tensor], inputs: Mapping[int, Tensor], *, wide: bool
) -> list[Tensor]:
    """The outputs of a graph, in order."""
    run = Run(graph, leaves, inputs, wide)
    for node in graph.nodes:
        run.store(node, run.step(node))
    return [run.read(value) for value in graph.outputs]


def run_silenced(
    groups: Groups,
    alive: Bools,
    small: Graph,
    leaves: Callable[[str], Tensor],
    inputs: Mapping[int, Tensor],
    *,
    wide: bool,
    constants: Mapping[tuple[int, int], Tensor] | None = None,
) -> list[Tensor]:
    """The oracle: outputs of the original graph with removed channels silenced wherever they would be summed.

    `constants[node, value]`, 0 at what stays, is what that node reads there instead of silence.
    """
    graph = groups.graph
    run = Run(graph, leaves, inputs, wide)
    masks = _Masks(groups, alive)
    for node, cut_node in zip(graph.nodes, small.nodes, strict=True):
        if node.index in groups.inexact_nodes and masks.touches(node):
            results = _over_kept(run, masks, node, cut_node, small)
        elif base_name(node.op) in SUMS and masks.touches(node):
            held = {value: tensor for (number, value), tensor in (constants or {}).items() if number == node.index}
            results = run.step(node, lambda value, held=held: masks.read(value, run.read(value), held))  # type: ignore[misc]
        else:
            results = run.step(node)
        run.store(node, results)
    return [run.read(value) for value in graph.outputs]


class _Masks:
    """Kept indices of every axis that lost something."""

    def __init__(self, groups: Groups, alive: Bools) -> None:
        self.groups = groups
        self.alive = alive
        self._cache: dict[int, dict[int, Tensor]] = {}

    def axes(self, value: int) -> dict[int, Tensor]:
        if value not in self._cache:
            shape = self.groups.graph.values[value].shape
            found: dict[int, Tensor] = {}
            for dim, size in enumerate(shape):
                kept = self.groups.kept(value, dim, self.alive)
                if kept is not None and kept.size < size:
                    found[dim] = torch.from_numpy(kept)
            self._cache[value] = found
        return self._cache[value]

    def touches(self, node: Node) -> bool:
        return any(self.axes(value) for value in node.inputs)

    def read(self, value: int, tensor: Tensor, held: Mapping[int, Tensor]) -> Tensor:
        """Silence at the removed indices of every operand or, in those of `held`, the constants (and weights whole)."""
        if held and value not in held:
            return tensor
        silent = self.silence(value, tensor)
        return silent + held[value].to(tensor.device, tensor.dtype) if held else silent

    def silence(self, value: int, tensor: Tensor) -> Tensor:
        for dim, kept in self.axes(value).items():
            mask = torch.zeros(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
            mask[kept.to(tensor.device)] = True
            shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
            tensor = torch.where(mask.reshape(shape), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
        return tensor

    def gather(self, value: int, tensor: Tensor) -> Tensor:
        for dim, kept in self.axes(value).items():
            tensor = tensor.index_select(dim, kept.to(tensor.device))
        return tensor

    def scatter(self, value: int, tensor: Tensor) -> Tensor:
        for dim, kept in self.axes(value).items():
            shape = list(tensor.shape)
            shape[dim] = self.groups.graph.values[value].shape[dim]
            tensor = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device).index_copy(
                dim, kept.to(tensor.device), tensor
            )
        return tensor


def _over_kept(run: Run, masks: _Masks, node: Node, cut_node: Node, small: Graph) -> tuple[Any, ...]:
    """Statistics over the kept indices: gather, run as after the cut, spread out again."""

    def read(value: int) -> Tensor:
        if value >= len(run.graph.values):
            return small.constants[next(leaf.name for leaf in small.leaves if leaf.value == value)]
        return masks.gather(value, run.read(value))

    results = run.step(cut_node, read)
    return tuple(
        masks.scatter(out, result) if out is not None else result
        for out, result in zip(node.outputs, results, strict=True)
    )


def difference(ours: list[Tensor], theirs: list[Tensor], names: list[str], what: str, tolerance: float) -> float:
    """The worst difference relative to each output's size. Raises `ProofError` above the tolerance."""
    worst = 0.0
    for name, a, b in zip(names, ours, theirs, strict=True):
        if a.shape != b.shape:
            raise ProofError(
                explain(
                    f"{what}: the shapes of output {name} differ", evidence=f"{tuple(a.shape)} and {tuple(b.shape)}"
                )
            )
        if not a.numel():
            continue
        if not (a.is_floating_point() or a.is_complex()):
            share = float((a != b).double().mean())
            if share > 0:
                raise ProofError(explain(f"{what}: output {name} differs", evidence=f"{share:.2%} of its entries"))
            continue
        kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        a, b = a.detach().to(kind), b.detach().to(kind)
        same = (a == b) | (a.isnan() & b.isnan())
        gap = torch.where(same, torch.zeros((), dtype=torch.float64, device=a.device), (a - b).abs())
        finite = b[torch.isfinite(b)]
        scale = max(float(finite.abs().max()) if finite.numel() else 1.0, 1e-30)
        apart = float(gap.max()) / scale
        if not apart <= tolerance:
            raise ProofError(
                explain(
                    f"{what}: output {name} differs",
                    evidence=f"largest difference {float(gap.max()):.3g} on values up to {scale:.3g}, "
                    f"tolerance {tolerance:.0e}",
                )
            )
        worst = max(worst, apart)
    return worst
