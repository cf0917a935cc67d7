"""`remove_dead`: neurons and filters that zeros have cut off are really removed, and nothing changes.

Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, 2015 (1506.02626).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import UnknownNameError, explain, nearest
from secateurs.base.listed import listed
from secateurs.capture.fold import writes
from secateurs.capture.graph import Graph, Node
from secateurs.capture.program import follows_inputs
from secateurs.capture.trace import capture, check_inputs
from secateurs.choose import Plan, compose, plan
from secateurs.couple.couple import couple
from secateurs.couple.group import Bools, Groups, Ints
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.couple.sites import consumption_sites
from secateurs.cut.cut import TOLERANCE, CutResult, cut_detailed
from secateurs.cut.handover import hand_over, inexact_units
from secateurs.cut.held import CONVOLUTIONS, TRANSPOSED, changed, weighted_operand
from secateurs.cut.prove import Proof, difference, run_graph
from secateurs.cut.share import fixed_run

BIAS = ("propagate", "drop")


@dataclass(frozen=True)
class DeadRemoval:
    """The smaller `model` and the `plan` that leads to it from the original; `proof` is that of the last cut.

    `removed` says how many units of each group went, `left` in words which dead ones stay and why. `worst` is the
    largest difference on any output between model and original, relative to the largest value of that output.
    """

    model: nn.Module
    form: str
    plan: Plan
    proof: Proof
    why_graph: str
    removed: Mapping[str, int]
    left: tuple[str, ...]
    worst: float

    def __str__(self) -> str:
        total = sum(self.removed.values())
        lines = [f"{total} dead units removed, outputs differ by {self.worst:.1e}"]
        lines += [f"  {name}: {count}" for name, count in self.removed.items()]
        return "\n".join([*lines, *(f"  stays: {reason}" for reason in self.left)])


def remove_dead(
    model: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    bias: str = "propagate",
    exclude: Iterable[str | type] = (),
    unit: str = "heads",
) -> DeadRemoval:
    """A copy of `model` without the units that its zero weights have cut off; it answers as before, to rounding.

    A unit (neuron, filter, head, or all channels that are coupled, as in a residual stage) is dead when it reaches its
    readers through zero weights only, or all weights that read it are zero. Removing one may kill neighbours, so this
    goes on until none is left. A unit without inputs still puts out a constant, phi(b), which its consumers take over
    into their biases; where they cannot do so exactly (a constant other than 0 in front of zero padding), it stays and
    `left` says so, as it does of units that only a cut has made. With `bias="drop"` the constant counts as 0 and is
    lost. One unit of every group stays.

    Units of groups over which a norm takes statistics stay too. `exclude` and `unit` are those of `couple`. Made for
    eval mode: the proof compares outputs of `model` and the result in float64, on the example inputs and on others.

    Raises `UnknownNameError` and `InputError` for arguments that cannot be used, `ProofError` if the outputs differ.
    """
    if bias not in BIAS:
        close = nearest(str(bias), BIAS)
        raise UnknownNameError(
            explain(
                f"There is no way to treat a bias named {bias!r}",
                evidence=f"known: {', '.join(BIAS)}",
                next_step=f"did you mean {close[0]!r}?" if close else "",
            )
        )
    args, keywords = check_inputs(model, example_inputs, kwargs)
    job = _Removal(args, keywords, listed("exclude", exclude), unit, bias)
    made = job.run(model)
    worst = _differ(model, made.model, args, keywords, exact=bias != "drop")
    return DeadRemoval(
        made.model, made.form, made.plan, made.proof, made.why_graph, job.removed, tuple(dict.fromkeys(job.left)), worst
    )


class _Removal:
    """One removal, round by round; `removed` and `left` fill up on the way."""

    def __init__(
        self, args: tuple[Any, ...], keywords: dict[str, Any], exclude: tuple[str | type, ...], unit: str, bias: str
    ) -> None:
        self.args, self.keywords, self.exclude, self.unit, self.bias = args, keywords, exclude, unit, bias
        self.removed: dict[str, int] = {}
        self.left: list[str] = []
        self.units: dict[str, int] | None = None  # of groups that the original can lose units of: how many it has now

    def run(self, model: nn.Module) -> CutResult:
        """Unread units first: nothing of them is missed, whatever they put out. Then those that put out a constant."""
        names = set(_tensors(model))
        made: CutResult | None = None
        whole: Plan | None = None
        while True:
            groups = self.groups(model)
            wires = _Wires(groups, model)
            self.left = []
            unread = self.known(groups, wires.unread())
            if unread.any():
                step = self.cut(model, groups, unread)
                found: tuple[CutResult, nn.Module] | None = (step, step.model)
            else:
                found = self.cut_silent(model, groups, self.known(groups, spare_one(groups, wires.silent())))
            if found is None:
                break
            whole = found[0].plan if whole is None else _joined(whole, found[0].plan, names)
            made, model = found
            self.units = {item.name: len(item.kept) for item in whole.groups if not item.frozen}
            for item in made.plan.groups:
                if len(item.kept) < item.size:
                    self.removed[item.name] = self.removed.get(item.name, 0) + item.size - len(item.kept)
        if made is None or whole is None:
            return self.cut(model, groups, np.zeros(groups.units, dtype=np.bool_))
        return CutResult(model, made.form, whole, made.proof, made.why_graph)

    def known(self, groups: Groups, dead: Bools) -> Bools:
        """Those that are units of the original too. A cut can make new ones: of one head that is left, the columns."""
        dead = dead.copy()
        for group in groups.free:
            start = groups.offsets[group.name]
            mine = dead[start : start + group.size]
            if mine.any() and self.units is not None and self.units.get(group.name) != group.size:
                self.left.append(
                    f"{int(mine.sum())} of {group.name}: no units of the original, so no plan for it removes them; "
                    "remove_dead of the result may"
                )
                mine[:] = False
        return dead

    def groups(self, model: nn.Module) -> Groups:
        graph = capture(model, self.args, kwargs=self.keywords)
        return couple(graph, exclude=self.exclude, unit=self.unit)

    def cut(self, model: nn.Module, groups: Groups, dead: Bools) -> CutResult:
        keep = {}
        for group in groups.free:
            start = groups.offsets[group.name]
            mine = dead[start : start + group.size]
            if mine.any():
                keep[group.name] = np.flatnonzero(~mine).tolist()
        decision = plan(groups.graph, groups, keep, criterion="dead")
        return cut_detailed(model, decision, self.args, self.keywords, groups=groups)

    def cut_silent(self, model: nn.Module, groups: Groups, dead: Bools) -> tuple[CutResult, nn.Module] | None:
        """The cut without those of the silent units whose constants can be handed over, and the model that has them."""
        dead = dead.copy()
        while dead.any():
            made = self.cut(model, groups, dead)
            if self.bias == "drop":
                return made, made.model
            stay = inexact_units(made, model, self.args, self.keywords, groups)
            if not stay:
                handed = hand_over(made, model, self.args, self.keywords, groups=groups)
                return made, handed.model
            for unit, reason in stay.items():
                name, number = _named(groups, unit)
                self.left.append(f"unit {number} of {name}: {reason}")
            dead[list(stay)] = False
        return None


def _joined(first: Plan, later: Plan, names: set[str]) -> Plan:
    """One plan for the original, whose tensors have these names. Raises `PlanError`.

    Between the steps, layers without a bias may have been given one, so a step need not begin with the very counts that
    the one before predicted.
    """
    removed = {name: dims for name, dims in later.removed.items() if name in names}
    return compose(first, replace(later, removed=removed, before=first.after))


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
class _Wiring:
    """Node `node` multiplies `value` by a fixed weight: `connected[o, i]`, who owns outputs and inputs (-1: none)."""

    node: int
    value: int
    weight: int
    axes: tuple[int, int]
    connected: Tensor
    outs: Ints
    ins: Ints


class _Wires:
    """Which weights of a network join which units."""

    def __init__(self, groups: Groups, model: nn.Module) -> None:
        self.groups, self.graph = groups, groups.graph
        self.moving = follows_inputs(self.graph)
        leaves = {**_tensors(model), **self.graph.constants}
        with torch.no_grad():
            fixed = fixed_run(self.graph, leaves.__getitem__, self.moving, wide=False)
            self.layers = [found for node in self.graph.nodes if (found := self._wiring(node, fixed.read))]

    def unread(self) -> Bools:
        """Units that only zeros read, those included that only such units read."""
        groups = self.groups
        read_by = {(layer.node, layer.value): layer for layer in self.layers}
        places: list[tuple[Ints, _Wiring | None]] = []
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

    def _wiring(self, node: Node, read: Callable[[int], Tensor]) -> _Wiring | None:
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
        return _Wiring(node.index, operand, value, axes, connected, *owners)


def _weight_axes(node: Node, rank: int) -> tuple[int, int] | None:
    """Which dimensions of the weight are outputs and inputs."""
    name = base_name(node.op).split(".", 1)[1]
    if name == "linear" or name in CONVOLUTIONS:
        return (1, 0) if arguments(node).get("transposed") else (0, 1) if rank > 1 else None
    if name in TRANSPOSED:
        return (1, 0)
    return (rank - 1, rank - 2) if rank > 1 else None


def _named(groups: Groups, unit: int) -> tuple[str, int]:
    """Group and number of a unit of all groups."""
    name = max((start, name) for name, start in groups.offsets.items() if start <= unit)[1]
    return name, unit - groups.offsets[name]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }


def _differ(
    model: nn.Module, small: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], *, exact: bool
) -> float:
    """The worst relative difference of any output. Raises `ProofError` above rounding if there is to be none."""
    graph = capture(model, args, kwargs=keywords)
    found = capture(small, args, kwargs=keywords, how=graph.how, replay=graph.decisions)
    given = [leaf for leaf in pytree.tree_leaves((args, keywords)) if isinstance(leaf, Tensor)]
    numbers = [item.value for item in graph.inputs]
    tried = [dict(zip(numbers, given, strict=True))]
    if not graph.decisions:
        tried.append(changed(tried[0]))
    return max(_difference(model, small, graph, found, inputs, exact) for inputs in tried)


def _difference(
    model: nn.Module, small: nn.Module, graph: Graph, found: Graph, inputs: Mapping[int, Tensor], exact: bool
) -> float:
    def outputs(net: nn.Module, of: Graph, wide: bool) -> list[Tensor]:
        here = dict(zip((item.value for item in of.inputs), inputs.values(), strict=True))
        return run_graph(of, {**_tensors(net), **of.constants}.__getitem__, here, wide=wide)

    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            torch.set_default_dtype(torch.float64)
            ours, theirs = outputs(small, found, True), outputs(model, graph, True)
        except RuntimeError:  # an operator has no float64 version
            torch.set_default_dtype(default)
            ours, theirs = outputs(small, found, False), outputs(model, graph, False)
        finally:
            torch.set_default_dtype(default)
    kinds = [item.dtype for item in model.parameters() if item.is_floating_point()]
    rounding = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
    allowed = min(0.1, max(TOLERANCE, 256 * rounding))
    names = [str(position) for position in range(len(ours))]
    what = "The model without its dead units, against the original"
    return difference(ours, theirs, names, what, allowed if exact else float("inf"))


__all__ = ["DeadRemoval", "remove_dead"]
