"""Which weights join which units, and what zeros among them cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.capture.fold import writes
from secateurs.capture.graph import Node
from secateurs.capture.program import follows_inputs
from secateurs.couple.group import Bools, Groups, Ints
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.couple.sites import consumption_sites
from secateurs.cut.held import CONVOLUTIONS, TRANSPOSED, weighted_operand
from secateurs.cut.share import fixed_run


def spare_one(groups: Groups, dead: Bools) -> Bools:
    """The same, but that one unit of every group stays, and all where the rest would be told by a statistic."""
    dead = dead.copy()
    for group in groups.free:
        start = groups.offsets[group.name]
        mine = dead[start : start + group.size]
        if group.inexact_because is not None:
            mine[:] = False
        elif mine.all():
            mine[0] = False
    return dead


@dataclass(frozen=True)
class Wiring:
    """Node `node` multiplies `value` by a fixed weight: `connected[o, i]`, who owns outputs and inputs (-1: none)."""

    node: int
    value: int
    weight: int
    axes: tuple[int, int]
    connected: Tensor
    outs: Ints
    ins: Ints


class Wires:
    """Which weights of a network join which units."""

    def __init__(self, groups: Groups, model: nn.Module) -> None:
        self.groups, self.graph = groups, groups.graph
        self.moving = follows_inputs(self.graph)
        leaves = {**tensors_of(model), **self.graph.constants}
        with torch.no_grad():
            fixed = fixed_run(self.graph, leaves.__getitem__, self.moving, wide=False)
            self.layers = [found for node in self.graph.nodes if (found := self._wiring(node, fixed.read))]

    def unread(self) -> Bools:
        """Units that only zeros read, those included that only such units read."""
        groups = self.groups
        read_by = {(layer.node, layer.value): layer for layer in self.layers}
        places: list[tuple[Ints, Wiring | None]] = []
        has_reader = np.zeros(groups.units, dtype=np.bool_)
        for name, sites in consumption_sites(groups).items():
            for site in sites:
                units = np.where(site.units >= 0, site.units + groups.offsets[name], -1)
                places.append((units, None if site.inside else read_by.get((site.node, site.value))))
                has_reader[units[units >= 0]] = True
        dead = np.zeros(groups.units, dtype=np.bool_)
        while True:
            wanted = ~has_reader
            for units, layer in places:
                if layer is None:
                    wanted[units[units >= 0]] = True
                    continue
                rows = torch.from_numpy((layer.outs < 0) | ~dead[layer.outs])
                mine = (layer.ins >= 0) & np.isin(layer.ins, units)
                wanted[layer.ins[mine & layer.connected[rows].any(0).numpy()]] = True
                wanted[np.setdiff1d(units[units >= 0], layer.ins[mine])] = True
            now = spare_one(groups, ~wanted)
            if (now == dead).all():
                return dead
            dead = now

    def silent(self) -> Bools:
        """Units that reach every reader through zero weights only: what is read of them depends on no input."""
        groups = self.groups
        free = ~self._from_elsewhere()
        carried = self._depending()
        read = np.zeros(groups.units, dtype=np.bool_)
        for name, sites in consumption_sites(groups).items():
            for site in sites:
                units = site.units[site.units >= 0] + groups.offsets[name]
                read[units] = True
                free[units] &= ~carried[site.value][units] if site.value in carried else False
        return free & read

    def _depending(self) -> dict[int, Bools]:
        """By value that depends on the inputs: the units on its axes that do."""
        layers = {layer.node: layer for layer in self.layers}
        found: dict[int, Bools] = {}
        for node in self.graph.nodes:
            given = [found[value] for value in node.inputs if value in found]
            carriers = [self._units(value) for value in node.inputs if value in found]
            for out in node.outputs:
                if out is None or out not in self.moving:
                    continue
                mine = self._units(out)
                depends = np.logical_or.reduce(given) & mine if given else np.zeros_like(mine)
                depends |= mine & ~np.logical_or.reduce(carriers) if carriers else mine
                if node.index in layers:
                    outs, connected = layers[node.index].outs, layers[node.index].connected.any(1).numpy()
                    depends[outs[outs >= 0]] = False
                    depends[outs[(outs >= 0) & connected]] = True
                found[out] = depends
            for value in writes(node) if given else ():
                memory = self.graph.values[value].storage
                for alias in [item for item in found if self.graph.values[item].storage == memory]:
                    found[alias] = found[alias] | (np.logical_or.reduce(given) & self._units(alias))
        return found

    def _units(self, value: int) -> Bools:
        """Which units have an index on some axis of the value."""
        mine = np.zeros(self.groups.units, dtype=np.bool_)
        for dim in range(len(self.graph.values[value].shape)):
            units = self.groups.axes.get((value, dim))
            if units is not None:
                mine[units[units >= 0]] = True
        return mine

    def _from_elsewhere(self) -> Bools:
        """Units that are owned by a matrix or table which is not the weight of a layer, as of an LSTM."""
        axes = {(layer.node, layer.weight): layer.axes for layer in self.layers}
        found = np.zeros(self.groups.units, dtype=np.bool_)
        for leaf in self.graph.leaves:
            if torch.Size(leaf.shape).numel() == max(leaf.shape, default=1):
                continue  # a vector: biases and scales
            readers = [node.index for node in self.graph.nodes if leaf.value in node.inputs]
            for dim in range(len(leaf.shape)):
                units = self.groups.axes.get((leaf.value, dim))
                if units is not None and not all(dim in axes.get((reader, leaf.value), ()) for reader in readers):
                    found[units[units >= 0]] = True
        return found

    def _wiring(self, node: Node, read: Callable[[int], Tensor]) -> Wiring | None:
        operand = weighted_operand(node, self.moving)
        if operand is None or node.outputs[0] is None:
            return None
        given = arguments(node)
        value = next(int(given[name].value) for name in ("weight", "mat2", "other") if name in given)
        axes = _weight_axes(node, len(self.graph.values[value].shape))
        if axes is None:
            return None
        weight = read(value).detach().cpu()
        out, into = axes
        others = [dim for dim in range(weight.dim()) if dim not in axes]
        connected = (weight != 0).permute(out, into, *others).reshape(weight.shape[out], weight.shape[into], -1).any(2)
        owners = [
            self.groups.axes.get((value, dim), np.full(weight.shape[dim], -1, dtype=np.int64)) for dim in (out, into)
        ]
        return Wiring(node.index, operand, value, axes, connected, *owners)


def _weight_axes(node: Node, rank: int) -> tuple[int, int] | None:
    """Which dimensions of the weight are outputs and inputs."""
    name = base_name(node.op).split(".", 1)[1]
    if name == "linear" or name in CONVOLUTIONS:
        return (1, 0) if arguments(node).get("transposed") else (0, 1) if rank > 1 else None
    if name in TRANSPOSED:
        return (1, 0)
    return (rank - 1, rank - 2) if rank > 1 else None


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by every name that they have."""
    return {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }


__all__ = ["Wires", "spare_one", "tensors_of"]
