"""`remove_dead`: neurons and filters that zeros have cut off are really removed, and nothing changes.

Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, 2015 (1506.02626).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import UnknownNameError, explain, nearest
from secateurs.base.listed import listed
from secateurs.capture.graph import Graph
from secateurs.capture.trace import capture, check_inputs
from secateurs.choose import Plan, compose, plan
from secateurs.couple.couple import couple
from secateurs.couple.group import Bools, Groups
from secateurs.cut.cut import TOLERANCE, CutResult, cut_detailed
from secateurs.cut.handover import hand_over, inexact_units
from secateurs.cut.held import changed
from secateurs.cut.prove import Proof, difference, run_graph
from secateurs.cut.wires import Wires, spare_one, tensors_of

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
        names = set(tensors_of(model))
        made: CutResult | None = None
        whole: Plan | None = None
        while True:
            groups = self.groups(model)
            wires = Wires(groups, model)
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


def _named(groups: Groups, unit: int) -> tuple[str, int]:
    """Group and number of a unit of all groups."""
    name = max((start, name) for name, start in groups.offsets.items() if start <= unit)[1]
    return name, unit - groups.offsets[name]


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
        return run_graph(of, {**tensors_of(net), **of.constants}.__getitem__, here, wide=wide)

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
