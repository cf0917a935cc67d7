"""`hand_over`: what removed channels still put out goes into the layers that read them.

A cut treats a removed channel as 0. Where it is a constant other than 0, as behind a bias or a batch norm, the
consumers' share of that constant belongs into their own bias.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import InputError, ProofError, UnknownNameError, explain, nearest
from secateurs.capture.graph import Graph, Node
from secateurs.capture.program import follows_inputs
from secateurs.capture.trace import capture, check_inputs
from secateurs.couple.couple import couple
from secateurs.couple.group import Bools, Groups
from secateurs.cut.cut import NARROW, TOLERANCE, CutResult, alive_after
from secateurs.cut.extend import extended
from secateurs.cut.form import GraphModule
from secateurs.cut.held import Held, mean_constants, steady_constants, weighted_operand
from secateurs.cut.native import sliced_copy
from secateurs.cut.prove import difference, in_double, run_graph, run_silenced
from secateurs.cut.rewrite import rewrite
from secateurs.cut.share import Shift, along, fixed_run, shift_of
from secateurs.cut.shift import Place, place_of

BIAS = ("drop", "propagate", "propagate_mean")
PADDING = ("interior", "mean", "map")


@dataclass(frozen=True)
class HandOver:
    """What came of handing constants over.

    `handed` counts pairs of a consumer and a removed channel whose constant is not 0 and was handed over; `dropped`
    says, in words, which were not and why. `exact` is False when zero padding made some consumer's share differ
    between positions and one number per channel stands for it; `worst` is then how far the outputs on the example
    inputs are from the original in which every removed channel is held at its constant (relative to the largest
    output), and at most `1e-7` otherwise.
    """

    model: nn.Module
    bias: str
    padding: str
    handed: int
    dropped: tuple[str, ...]
    exact: bool
    worst: float

    def to_dict(self) -> dict[str, Any]:
        """All but the model, as JSON data."""
        return {
            "bias": self.bias,
            "padding": self.padding,
            "handed": self.handed,
            "dropped": list(self.dropped),
            "exact": self.exact,
            "worst": self.worst,
        }


def hand_over(
    cutting: CutResult,
    model: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    groups: Groups | None = None,
    bias: str = "propagate",
    padding: str = "interior",
    data: Iterable[Any] | None = None,
    batches: int | None = None,
    seed: int = 0,
) -> HandOver:
    """A copy of the model of `cutting` in which the consumers of removed channels keep their constants.

    `cutting` is what `cut_detailed` made of `model` and these inputs, before any training; neither is changed.

    `bias`: what a removed channel k is taken to put out. `"propagate"`: the constant c_k that is left when the weights
    that produce it are zero, phi(b_k), or phi(beta_k + gamma_k (b_k - mu_k) / sqrt(var_k + eps)) with batch norm; where
    the way to a consumer makes something else of it (padded average pooling, an embedding added), that consumer gets
    nothing and a warning names operator and line. `"propagate_mean"`: the mean of what consumers read of channel k over
    the first `batches` batches of `data`, all positions: the best constant in the least-squares sense. `"drop"`: 0.

    `padding`: what a convolution with zero padding gets, whose share differs between border and interior.
    `"interior"`: c_k times the sum of the taps, exact away from the border; `"mean"`: the mean over positions, the
    least-squares constant (transposed convolutions always get this one); `"map"`: the exact map, as a buffer, for this
    input size only and for the graph form only (`cut_detailed(form="graph")`).

    The share goes into the consumer's bias; without one, into the running mean of the batch norm that follows (exact in
    eval mode); without that, into a new bias. What is exact is proven like a cut: against the original whose removed
    channels read as their constants, in float64. Costs three forward passes, and those over the data.

    Raises `UnknownNameError` and `InputError` for arguments that cannot be used, `ProofError` when the proof fails.
    """
    check_choice(bias, padding, data)
    args, keywords = check_inputs(model, example_inputs, kwargs)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        groups = groups or couple(capture(model, args, kwargs=keywords), unit=cutting.plan.unit)
        job = _Job(cutting, model, args, keywords, groups, alive_after(cutting.plan, groups), padding)
        held: list[Held] = []
        reasons: list[str] = []
        if bias == "propagate_mean" and data is not None:
            held = mean_constants(groups, job.alive, model, data, batches=batches, seed=seed)
        elif bias == "propagate":
            with in_double(job.wide):
                held, reasons = steady_constants(groups, job.alive, job.leaves, job.inputs(), wide=job.wide)
        with in_double(job.wide):
            shifts, more = job.shifts(held)
        reasons += more
        for reason in reasons:
            warnings.warn(explain("Not handed over", evidence=reason), stacklevel=2)
        small, exactly = job.shifted(shifts)
        worst = job.prove(small, exactly, shifts)
    handed = sum(int((shift.held.constants != 0).sum()) for shift in shifts)
    exact = padding == "map" or all(shift.exact for shift in shifts)
    return HandOver(small, bias, padding, handed, tuple(reasons), exact, worst)


def inexact_units(
    cutting: CutResult, model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], groups: Groups
) -> dict[int, str]:
    """Of the units that `cutting` removed: those whose constant cannot be handed over to rounding, and why."""
    job = _Job(cutting, model, args, keywords, groups, alive_after(cutting.plan, groups), "interior")
    with torch.random.fork_rng(devices=[]), torch.no_grad(), in_double(job.wide):
        held, _ = steady_constants(groups, job.alive, job.leaves, job.inputs(), wide=job.wide)
        exact = {shift.held for shift in job.shifts(held)[0] if shift.exact}
    found: dict[int, str] = {}
    for item in held:
        units, where = groups.axes[item.value, item.dim], groups.graph.nodes[item.node].where
        wrong = [] if item in exact else item.constants.nonzero().flatten().tolist()
        found |= {int(units[index]): f"{where} cannot take its constant over exactly" for index in wrong}
        if item.unsteady is not None:
            found |= {int(units[index]): f"what {where} reads of it is no constant" for index in item.unsteady.tolist()}
    return found


@dataclass(frozen=True)
class _Job:
    """One hand-over: what was cut, on which inputs."""

    cutting: CutResult
    model: nn.Module
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    groups: Groups
    alive: Bools
    padding: str

    @property
    def graph(self) -> Graph:
        return self.groups.graph

    @property
    def wide(self) -> bool:
        return self.cutting.proof.dtype == "float64"

    def leaves(self, name: str) -> Tensor:
        return {**_tensors(self.model), **self.graph.constants}[name]

    def inputs(self) -> dict[int, Tensor]:
        given = [leaf for leaf in pytree.tree_leaves((self.args, self.keywords)) if isinstance(leaf, Tensor)]
        return {item.value: tensor for item, tensor in zip(self.graph.inputs, given, strict=True)}

    def shifts(self, held: list[Held]) -> tuple[list[Shift], list[str]]:
        """What every consumer's output loses, and in words what can not be made up for."""
        moving = follows_inputs(self.graph)
        fixed = fixed_run(self.graph, self.leaves, moving, self.wide)
        found: list[Shift] = []
        reasons: list[str] = []
        for item in held:
            node = self.graph.nodes[item.node]
            if not bool((item.constants != 0).any()):
                continue
            if weighted_operand(node, moving) != item.value:
                reasons.append(f"{node.where} does not read removed channels by a weight of its own")
                continue
            place = place_of(self.graph, node)
            if not isinstance(place, str) and place.kind == "new" and self._layer(node, place) is None:
                place = f"{node.where} has no bias, and its module cannot be given one; the graph form can"
            if isinstance(place, str):
                reasons.append(place)
                continue
            found.append(shift_of(self.groups, self.alive, item, place, fixed, self.padding))
        kept = [shift for shift in found if _agreed(shift, found)]
        reasons += [
            f"{self.graph.nodes[shift.node].where} shares `{shift.place.leaf or 'its weight'}` with calls that lose "
            "something else"
            for shift in found
            if not _agreed(shift, found)
        ]
        return kept, reasons

    def _layer(self, node: Node, place: Place) -> nn.Module | None:
        """What can be given a bias for this call."""
        small = self.cutting.model
        if isinstance(small, GraphModule):
            return small
        module = small.get_submodule(place.leaf.rpartition(".")[0] if place.leaf else node.module)
        return module if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module.bias is None else None

    def shifted(self, shifts: list[Shift]) -> tuple[nn.Module, dict[str, Tensor]]:
        """The model with the shifts, and the changed tensors in double precision."""
        small = sliced_copy(self.cutting.model, lambda _, tensor: tensor)
        exactly: dict[str, Tensor] = {}
        mapped = [shift for shift in shifts if self.padding == "map" and not shift.exact]
        if mapped and not isinstance(small, GraphModule):
            raise InputError(
                explain(
                    "A map of constants can not be put into the user's own class, which has no place for it",
                    where=self.graph.nodes[mapped[0].node].where,
                    next_step='cut with form="graph", or pass padding="mean"',
                )
            )
        distinct = {shift.place: shift for shift in shifts if shift.exact or self.padding != "map"}
        fresh = [shift for place, shift in distinct.items() if place.kind == "new"]
        for shift in distinct.values():
            if shift.place.kind != "new":
                tensor = _named(small, shift.place.leaf)
                sign = 1.0 if shift.place.kind == "bias" else -1.0
                exactly[shift.place.leaf] = tensor.double() + sign * shift.values.to(tensor.device)
                tensor.copy_(exactly[shift.place.leaf])
        if isinstance(small, GraphModule) and (fresh or mapped):
            return extended(small, fresh, mapped, exactly), exactly
        for shift in fresh:
            _new_bias(small, self.graph.nodes[shift.node], shift, exactly)
        return small, exactly

    def prove(self, small: nn.Module, exactly: Mapping[str, Tensor], shifts: list[Shift]) -> float:
        """How far the outputs are from the original with constants in place of the removed channels.

        Raises `ProofError` if they should be equal and are not.
        """
        found = capture(small, self.args, kwargs=self.keywords, how=self.graph.how, replay=self.graph.decisions)
        after = {**_tensors(small), **found.constants, **(exactly if self.wide else {})}
        predicted = rewrite(self.groups, self.alive)
        constants = {(s.node, s.held.value): along(s.held, self.graph.values[s.held.value].shape) for s in shifts}
        inputs = {item.value: tensor for item, tensor in zip(found.inputs, self.inputs().values(), strict=True)}
        names = [str(position) for position in range(len(found.outputs))]
        tolerance = TOLERANCE if self.wide else NARROW
        exact = self.padding == "map" or all(shift.exact for shift in shifts)
        with in_double(self.wide):
            expected = run_silenced(
                self.groups, self.alive, predicted, self.leaves, self.inputs(), wide=self.wide, constants=constants
            )
            ours = run_graph(found, after.__getitem__, inputs, wide=self.wide)
        try:
            what = "The model with constants handed over, against the original that reads them"
            return difference(ours, expected, names, what, tolerance if exact else float("inf"))
        except ProofError as error:
            raise ProofError(f"{error} Hand over right after the cut, before training.") from error


def _agreed(shift: Shift, every: list[Shift]) -> bool:
    """Do all calls that the change would reach lose the same?"""
    mine = {other.node: other for other in every if other.place == shift.place}
    same = all(
        other.whole.shape == shift.whole.shape and torch.allclose(other.whole, shift.whole, rtol=1e-9, atol=1e-12)
        for other in mine.values()
    )
    return same and mine.keys() == set(shift.place.nodes)


def _new_bias(small: nn.Module, node: Node, shift: Shift, exactly: dict[str, Tensor]) -> None:
    """Give the layer that made this call a bias parameter."""
    path = shift.place.leaf.rpartition(".")[0] if shift.place.leaf else node.module
    module = small.get_submodule(path)
    name = f"{path}.bias" if path else "bias"
    exactly[name] = shift.values
    weight = module.get_parameter("weight") if shift.place.leaf else next(module.parameters())
    module.bias = nn.Parameter(shift.values.to(weight.device, weight.dtype), requires_grad=weight.requires_grad)


def _named(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), last)
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    return {name: tensor.detach() for name, tensor in named.items()}


def check_choice(bias: str, padding: str, data: Any) -> None:
    """Raises `UnknownNameError` for an unknown choice and `InputError` for one that needs data when there is none."""
    for what, given, known in (("way to treat a bias", bias, BIAS), ("way to treat padding", padding, PADDING)):
        if given not in known:
            close = nearest(str(given), known)
            raise UnknownNameError(
                explain(
                    f"There is no {what} named {given!r}",
                    evidence=f"known: {', '.join(known)}",
                    next_step=f"did you mean {close[0]!r}?" if close else "",
                )
            )
    if bias == "propagate_mean" and data is None:
        raise InputError(
            explain('bias="propagate_mean" needs data', next_step="pass `data=`, batches of inputs or (inputs, target)")
        )


__all__ = ["HandOver", "check_choice", "hand_over"]
