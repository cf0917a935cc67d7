"""What consumers read of a removed channel: the constant that it would still put out, or its mean over data.

A neuron whose weights are zero is not silent: it puts out what its bias, its batch norm and its activation make of
nothing. Two runs of the original graph on different inputs, in which the producers of the removed channels read zeros,
show that constant wherever the channels are summed away, and show where it is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.seeds import seeded
from secateurs.capture.graph import Node
from secateurs.capture.program import follows_inputs
from secateurs.couple.group import Bools, Groups
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.couple.sites import consumption_sites
from secateurs.cut.prove import Run
from secateurs.score.samples import Samples

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
PRODUCTS = ("linear", "addmm", "mm", "matmul")
STEADY = {torch.float64: 1e-9}
"""Two numbers of a run are the same constant when they differ by less (other types: 1e-4), relative to their size or 1.
"""


@dataclass(frozen=True, eq=False)
class Held:
    """Node `node` reads `constants[i]` at index `i` along `dim` of its operand `value`; 0 at indices that stay.

    `unsteady` are the indices that put out no constant, for which 0 stands.
    """

    node: int
    value: int
    dim: int
    constants: Tensor
    unsteady: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Lost:
    """The removed indices of one axis that node `node` sums away. `units[i]` is a unit of all groups, -1: stays."""

    node: int
    value: int
    dim: int
    units: Tensor

    @property
    def indices(self) -> Tensor:
        return (self.units >= 0).nonzero().flatten()


def lost_sites(groups: Groups, alive: Bools) -> list[Lost]:
    """Every place where units that are not alive are summed away, in the order of the run, groups joined."""
    merged: dict[tuple[int, int, int], Tensor] = {}
    for name, sites in consumption_sites(groups).items():
        gone = torch.from_numpy(~alive[groups.offsets[name] : groups.offsets[name] + groups[name].size])
        for site in sites:
            units = torch.from_numpy(site.units)
            mine = (units >= 0) & gone[units.clamp(min=0)]
            key = (site.node, site.value, site.dim)
            before = merged.get(key, torch.full_like(units, -1))
            merged[key] = torch.where(mine, units + groups.offsets[name], before)
    return [Lost(*key, units) for key, units in sorted(merged.items()) if bool((units >= 0).any())]


def weighted_operand(node: Node, moving: frozenset[int]) -> int | None:
    """The value that the node multiplies by something that no input reaches; None if it is no such operator.

    Such an operator is linear in that value, apart from a bias.
    """
    name = base_name(node.op).split(".", 1)[1]
    if name not in (*CONVOLUTIONS, *TRANSPOSED, *PRODUCTS):
        return None
    given = arguments(node)
    factors = {"addmm": ("mat1", "mat2"), "mm": ("self", "mat2"), "matmul": ("self", "other")}
    refs = [given[key].value for key in factors.get(name, ("input", "weight"))]
    others = [value for value in node.inputs if value != refs[0]]
    return refs[0] if refs[0] in moving and refs[1] in others and not moving.intersection(others) else None


def steady_constants(
    groups: Groups, alive: Bools, leaves: Callable[[str], Tensor], inputs: Mapping[int, Tensor], *, wide: bool
) -> tuple[list[Held], list[str]]:
    """The constants, and in words where there is none and why, naming the operator that spoils it and its line."""
    graph, sites = groups.graph, lost_sites(groups, alive)
    moving = follows_inputs(graph)
    gone = _removed_axes(groups, alive)
    reading: dict[int, list[Lost]] = {}
    for site in sites:
        reading.setdefault(site.node, []).append(site)
    first, second = (Run(graph, leaves, given, wide) for given in (inputs, changed(inputs)))
    spoiled: dict[int, Node] = {}
    held: list[Held] = []
    unsteady: list[str] = []
    for node in graph.nodes:
        for site in reading.get(node.index, ()):
            found, steady = _compared(first.read(site.value), second.read(site.value), site.dim, site.indices)
            if not bool(steady.all()):
                units = site.units[site.indices[~steady]].tolist()
                unsteady.append(_why(node, spoiled.get(units[0]), len(units)))
            constants = torch.zeros(site.units.numel(), dtype=torch.float64)
            constants[site.indices] = torch.where(steady, found, torch.zeros_like(found))
            held.append(Held(site.node, site.value, site.dim, constants, site.indices[~steady]))
        one, other = _silent_producer(first, node, moving, gone), _silent_producer(second, node, moving, gone)
        first.store(node, one)
        second.store(node, other)
        for position, out in enumerate(node.outputs):
            for dim, (indices, numbers) in gone.get(-1 if out is None else out, {}).items():
                _, steady = _compared(one[position], other[position], dim, indices)
                for unit in numbers[~steady].tolist():
                    spoiled.setdefault(unit, node)
    return held, unsteady


def mean_constants(
    groups: Groups, alive: Bools, model: nn.Module, data: Iterable[Any], *, batches: int | None, seed: int
) -> list[Held]:
    """Means over samples and positions of what consumers of the original read at the removed indices."""
    real = [site for site in lost_sites(groups, alive) if not groups.graph.values[site.value].dtype.is_complex]
    sites = {(site.node, site.value): site for site in real}
    sums: dict[tuple[int, int], Tensor] = {}
    counts: dict[tuple[int, int], int] = {}

    def reader(node: int) -> Callable[[int, Tensor], Tensor]:
        def read(value: int, tensor: Tensor) -> Tensor:
            key = (node, value)
            if key in sites:
                rows = tensor.movedim(sites[key].dim, 0).reshape(tensor.shape[sites[key].dim], -1)
                sums[key] = sums.get(key, 0) + rows.sum(1, dtype=torch.float64).cpu()
                counts[key] = counts.get(key, 0) + rows.shape[1]
            return tensor

        return read

    with seeded(seed), torch.no_grad():
        for batch in Samples(model, groups.graph, data, limit=batches, seed=seed):
            batch.program.run(batch.begin(), reads={node: reader(node) for node, _ in sites})
    return [
        Held(site.node, site.value, site.dim, torch.where(site.units >= 0, sums[key] / counts[key], 0.0))
        for key, site in sites.items()
    ]


Axes = dict[int, dict[int, tuple[Tensor, Tensor]]]


def _removed_axes(groups: Groups, alive: Bools) -> Axes:
    """`{value: {dim: (removed indices, their units)}}`."""
    found: Axes = {}
    for (value, dim), owners in groups.axes.items():
        units = torch.from_numpy(owners)
        indices = ((units >= 0) & ~torch.from_numpy(alive)[units.clamp(min=0)]).nonzero().flatten()
        if indices.numel():
            found.setdefault(value, {})[dim] = (indices, units[indices])
    return found


def _silent_producer(run: Run, node: Node, moving: frozenset[int], gone: Axes) -> tuple[Any, ...]:
    """The node's results, with what reading zeros gives at removed channels: as if their weights were zero."""
    results = run.step(node)
    out = node.outputs[0] if node.outputs else None
    operand = weighted_operand(node, moving)
    if operand is None or out not in gone:
        return results
    blank = run.step(node, lambda value: torch.zeros_like(run.read(value)) if value == operand else run.read(value))
    result = results[0]
    for dim, (indices, _) in gone[out].items():
        result = result.index_copy(
            dim, indices.to(result.device), blank[0].index_select(dim, indices.to(result.device))
        )
    return (result, *results[1:])


def _compared(a: Tensor, b: Tensor, dim: int, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers at these indices, and whether each is the same everywhere else along the tensor and in both."""
    if a.is_complex():
        return torch.zeros(len(indices), dtype=torch.float64), torch.zeros(len(indices), dtype=torch.bool)
    both = torch.cat([_rows(a, dim, indices), _rows(b, dim, indices)], dim=1)
    if not both.shape[1]:
        return both.new_zeros(len(both)), torch.zeros(len(both), dtype=torch.bool)
    low, high = both.amin(1), both.amax(1)
    steady = (high - low) <= STEADY.get(a.dtype, 1e-4) * high.abs().clamp(min=1)
    return torch.where(steady, (low + high) / 2, low), steady


def _rows(tensor: Tensor, dim: int, indices: Tensor) -> Tensor:
    picked = tensor.detach().index_select(dim, indices.to(tensor.device)).movedim(dim, 0).reshape(len(indices), -1)
    return picked.to("cpu", torch.float64)


def changed(inputs: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Other inputs of the same kind: other numbers if there are any, else the integers in another order."""
    floating = any(tensor.is_floating_point() for tensor in inputs.values())
    return {value: _other(tensor, floating) for value, tensor in inputs.items()}


def _other(tensor: Tensor, floating: bool) -> Tensor:
    if tensor.is_floating_point():
        waves = torch.arange(tensor.numel(), dtype=torch.float64).cos().reshape(tensor.shape)
        return (0.3 * waves.to(tensor.device, tensor.dtype) - 0.7 * tensor).detach()
    return tensor if floating or not tensor.dim() else tensor.flip(-1)


def _why(consumer: Node, spoiler: Node | None, units: int) -> str:
    by = f"{spoiler.where} makes something else of it" if spoiler is not None else "it changes with the input"
    return f"{units} removed channels that {consumer.where} reads put out no constant: {by}"


__all__ = ["Held", "Lost", "changed", "lost_sites", "mean_constants", "steady_constants", "weighted_operand"]
