"""`cut`: apply a plan and prove what came out; nothing unproven is returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import CaptureError, InputError, PlanError, ProofError, explain
from secateurs.capture.batch import doubled, generalised
from secateurs.capture.graph import Graph
from secateurs.capture.modes import eval_mode
from secateurs.capture.refuse import refuse_meta
from secateurs.capture.trace import capture, check_inputs, plain_output, share_tensors
from secateurs.choose.plan import Plan
from secateurs.cost.count import count_graph
from secateurs.cost.predict import CostModel
from secateurs.couple.chance import draws_numbers
from secateurs.couple.couple import couple
from secateurs.couple.group import Bools, Groups
from secateurs.cut.compare import compare
from secateurs.cut.form import GraphModule
from secateurs.cut.native import repair_guessed, repair_known, repair_named, sliced_copy
from secateurs.cut.prove import Proof, difference, in_double, run_graph, run_silenced
from secateurs.cut.rewrite import Cutting, rewrite, slice_tensor

TOLERANCE = 1e-7
"""Largest relative difference between the two sides of the proof, which are computed in float64."""
NARROW = 1e-3
"""The same where an operator has no float64 version."""
LOOSE = {torch.float64: 1e-6, torch.float32: 5e-3}
"""The same between the module as it runs and the float64 result, by the precision of its outputs; others 0.1."""


@dataclass(frozen=True)
class CutResult:
    """A proven cut. `form` is `"native"` (the caller's class) or `"graph"`; `why_graph` says why not native."""

    model: nn.Module
    form: str
    plan: Plan
    proof: Proof
    why_graph: str = ""


def cut(model: nn.Module, plan: Plan, example_inputs: Any, kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    """A new, smaller model without what `plan` removes; `model` is not touched.

    The result is of the caller's own class with smaller tensors, or, where that class can not run with them, a
    `GraphModule`. Its modules are in training or eval mode as those of `model` are, by name; in a `GraphModule`, which
    has fewer of them, the mode of `model` itself decides for all but batch norms. Proofs are made in eval mode.

    Raises `PlanError` if the plan was made for another model and `ProofError`, naming the first node that differs, if
    the result does not compute what the original computes with those channels silenced.
    """
    return cut_detailed(model, plan, example_inputs, kwargs).model


def cut_detailed(
    model: nn.Module,
    plan: Plan,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    groups: Groups | None = None,
    form: str = "auto",
) -> CutResult:
    """Like `cut`, with the form, the proof, and the reason for a graph form.

    `groups` saves capturing and coupling again if they are at hand; they must be this model's. `form="graph"` asks for
    the graph form even where the native one would do.
    """
    if not isinstance(plan, Plan):
        raise InputError(
            explain(f"The plan is a {type(plan).__name__}", next_step="pass what sec.choose or sec.plan gives")
        )
    args, keywords = check_inputs(model, example_inputs, kwargs)
    refuse_meta(model, args, keywords)
    with torch.random.fork_rng(devices=[]):
        made = apply(model, plan, args, keywords, groups=groups, form=form)
        try:
            return prove(model, plan, args, keywords, made)
        except ProofError as error:
            if made.form == "graph" or draws_numbers(made.groups.graph):
                raise ProofError(f"{error}{_about_chance(made.groups.graph)}") from error
            again = apply(model, plan, args, keywords, groups=made.groups, form="graph", why=str(error))
            return prove(model, plan, args, keywords, again)


def _about_chance(graph: Graph) -> str:
    chance = "The model draws random numbers in eval mode, so its outputs can not be compared; make it deterministic."
    return f" {chance}" if draws_numbers(graph) else ""


@dataclass(frozen=True)
class Made:
    """A cut that has not been proven yet."""

    model: nn.Module
    form: str
    why_graph: str
    groups: Groups
    alive: Bools
    small: Graph
    found: Graph | None = None


def apply(
    model: nn.Module,
    plan: Plan,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    *,
    groups: Groups | None = None,
    form: str = "auto",
    why: str = "asked for",
) -> Made:
    """Make the smaller module, native if it can be, without proving it. `why` is the reason to ask for a graph."""
    groups = groups or couple(capture(model, args, kwargs=keywords), unit=plan.unit)
    graph = groups.graph
    if graph.hash != plan.graph_hash:
        raise PlanError(
            explain(
                "The plan was made for another model, or for other example inputs",
                evidence=f"graph {graph.hash[:12]}, plan for {plan.graph_hash[:12]}",
                next_step="capture, couple and choose again for this model",
            )
        )
    alive = alive_after(plan, groups)
    cutting = Cutting(groups, alive)
    small = rewrite(groups, alive)
    cutting.values = list(small.values)
    value_of = {name: leaf.value for leaf in graph.leaves for name in leaf.names}

    def slicer(name: str, tensor: Tensor) -> Tensor:
        return slice_tensor(tensor, cutting, value_of[name]) if name in value_of else tensor

    if form != "graph":
        native = _fresh(sliced_copy(model, slicer), model)
        why, found = _make_native(native, graph, small, args, keywords)
        if found is not None:
            return Made(native, "native", "", groups, alive, small, found)
    tensors = {name: slicer(name, tensor) for name, tensor in _tensors(model).items()}
    general = _any_batch(model, graph, small, args, keywords)
    module = _graph_form(general, tensors, why)
    modes = {name: part.training for name, part in model.named_modules()}
    for name, part in module.named_modules():
        part.training = modes.get(name, model.training)
    for name, parameter in model.named_parameters():
        module.get_parameter(name).requires_grad_(parameter.requires_grad)
    return Made(module, "graph", why, groups, alive, small)


def _fresh(native: nn.Module, model: nn.Module) -> nn.Module:
    """The copy without what its class has kept from earlier runs, in the modes of `model`.

    Classes that keep results of their parameters in eval mode drop them in `train()`, which `eval()` calls.
    """
    native.eval()
    for part, original in zip(native.modules(), model.modules(), strict=True):
        part.training = original.training
    return native


def _graph_form(graph: Graph, tensors: Mapping[str, Tensor], why: str) -> GraphModule:
    try:
        return GraphModule(graph, tensors)
    except InputError as error:
        if why == "asked for":
            raise
        raise InputError(explain(str(error), evidence=f"a graph is needed: {why}")) from error


def _make_native(
    native: nn.Module, graph: Graph, small: Graph, args: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[str, Graph | None]:
    """Repair the module until it runs as predicted; its graph if it does, else what still differs."""
    repair_known(native)
    repair_named(native, graph, small)
    why, found = _recaptured(native, graph, small, args, keywords)
    if found is None and repair_guessed(native, graph, small):
        why, found = _recaptured(native, graph, small, args, keywords)
    return why, found


def _recaptured(
    native: nn.Module, graph: Graph, small: Graph, args: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[str, Graph | None]:
    try:
        found = capture(native, args, kwargs=keywords, how=graph.how, replay=graph.decisions)
        compare(small, found)
    except CaptureError as error:
        reason = str(error).partition(" Next: ")[0].rpartition("Evidence: ")[2]
        return explain("The class does not run with the smaller tensors", evidence=reason), None
    except ProofError as error:
        return str(error), None
    return "", found


def alive_after(plan: Plan, groups: Groups) -> Bools:
    """Which units live after the plan. Raises `PlanError` if it tears coupled indices apart or names frozen ones."""
    alive = np.ones(groups.units, dtype=np.bool_)
    known = {name: leaf for leaf in groups.graph.leaves for name in leaf.names}
    for name, dims in plan.removed.items():
        if name not in known:
            raise PlanError(explain("The plan names a tensor that the model does not have", where=f"`{name}`"))
        leaf = known[name]
        for dim, indices in dims.items():
            units = groups.axes.get((leaf.value, dim))
            outside = [index for index in indices if units is not None and not 0 <= index < units.size]
            if units is None or outside or (units[list(indices)] < 0).any():
                raise PlanError(explain("The plan removes what can not be removed", where=f"`{name}`, dimension {dim}"))
            alive[units[list(indices)]] = False
    for leaf in groups.graph.leaves:
        for dim in range(len(leaf.shape)):
            kept = groups.kept(leaf.value, dim, alive)
            gone = set() if kept is None else set(range(leaf.shape[dim])) - set(kept.tolist())
            asked = set(plan.removed.get(leaf.name, {}).get(dim, ()))
            if gone != asked:
                raise PlanError(
                    explain(
                        "The plan removes a part of what lives and dies together",
                        where=f"`{leaf.name}`, dimension {dim}",
                        evidence=f"{len(asked)} indices named, {len(gone)} would have to go",
                    )
                )
            if kept is not None and not kept.size:
                raise PlanError(explain("The plan leaves nothing of an axis", where=f"`{leaf.name}`, dimension {dim}"))
    return alive


def prove(model: nn.Module, plan: Plan, args: tuple[Any, ...], keywords: dict[str, Any], made: Made) -> CutResult:
    """The three proofs. Raises `ProofError`."""
    graph, small = made.groups.graph, made.small
    inputs = {
        item.value: tensor
        for item, tensor in zip(
            graph.inputs, [t for t in pytree.tree_leaves((args, keywords)) if isinstance(t, Tensor)], strict=True
        )
    }
    found = made.found or capture(made.model, args, kwargs=keywords, how=graph.how, replay=graph.decisions)
    nodes = compare(small, found)
    before, after = {**_tensors(model), **graph.constants}, {**_tensors(made.model), **small.constants}
    names = [f"{i}" for i in range(len(graph.outputs))]
    with torch.no_grad():
        worst, wide, ours = _compare_numbers(made, before.__getitem__, after.__getitem__, inputs, names)
        if not any(tensor.numel() for tensor in ours):
            raise ProofError(
                explain("Nothing was compared: all outputs are empty", next_step="give inputs with entries")
            )
        if not any(bool(torch.isfinite(tensor).any()) for tensor in ours):
            next_step = "give example inputs, and a model with buffers, that make finite outputs"
            raise ProofError(explain("Nothing was compared: no output has a finite entry", next_step=next_step))
        if made.form == "graph":
            with in_double(wide):
                whole = run_graph(graph, before.__getitem__, inputs, wide=wide)
            _check_as_it_runs(model, args, keywords, whole, "The original against its captured graph")
        if not graph.decisions:
            _check_as_it_runs(made.model, args, keywords, ours, "The cut module against its proven graph")
    counted, predicted = count_graph(found), CostModel(made.groups)
    pairs = {
        "MACs": (counted.macs, predicted.macs(made.alive)),
        "parameters": (counted.params, predicted.params(made.alive)),
    }
    for what, (now, said) in pairs.items():
        if now != said:
            raise ProofError(explain(f"Proof (c): the {what} differ", evidence=f"{now:,} counted, {said:,} predicted"))
    exact = not any(group.inexact_because for group in made.groups.free if _loses(group.name, made))
    precision, tolerance = ("float64", TOLERANCE) if wide else ("as given", NARROW)
    proof = Proof(worst, tolerance, precision, nodes, counted.macs, exact, made.form)
    return CutResult(made.model, made.form, plan, proof, made.why_graph)


def _compare_numbers(
    made: Made,
    before: Callable[[str], Tensor],
    after: Callable[[str], Tensor],
    inputs: Mapping[int, Tensor],
    names: list[str],
) -> tuple[float, bool, list[Tensor]]:
    """Proof (a): worst difference, whether in float64, and the cut graph's outputs.

    A few operators have no float64 version; then both sides run in the model's own precision.
    """
    what = "Proof (a), silenced original against cut graph"
    try:
        with in_double(True):
            expected = run_silenced(made.groups, made.alive, made.small, before, inputs, wide=True)
            ours = run_graph(made.small, after, inputs, wide=True)
        return difference(ours, expected, names, what, TOLERANCE), True, ours
    except RuntimeError:
        pass
    try:
        expected = run_silenced(made.groups, made.alive, made.small, before, inputs, wide=False)
        ours = run_graph(made.small, after, inputs, wide=False)
        return difference(ours, expected, names, what, NARROW), False, ours
    except RuntimeError as error:
        raise ProofError(explain("The cut graph does not run", evidence=str(error))) from error


def _loses(name: str, made: Made) -> bool:
    start = made.groups.offsets[name]
    return not bool(made.alive[start : start + made.groups[name].size].all())


def _check_as_it_runs(
    model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], exact: list[Tensor], what: str
) -> None:
    """The module called as a caller calls it gives the graph's numbers, up to its own precision.

    Only mode flags are set: what a class keeps from earlier runs is kept, and shows if it no longer fits.
    """
    twin = share_tensors(model)
    buffers = {name: buffer.clone() for name, buffer in twin.named_buffers()}
    given_args, given_keywords = pytree.tree_map_only(Tensor, lambda t: t.clone(), (args, keywords))
    try:
        with eval_mode(twin), eval_mode(model):  # a patched `forward` of the twin may call the original's submodules
            result = plain_output(twin(*given_args, **given_keywords))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ProofError(explain(f"{what}: it does not run", evidence=f"{type(error).__name__}: {error}")) from error
    finally:
        for name, buffer in twin.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape and not torch.equal(buffer, buffers[name]):
                buffer.copy_(buffers[name])
    tensors = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
    pairs = [(a, b) for a, b in zip(tensors, exact, strict=True) if a.is_floating_point() or a.is_complex()]
    for position, (a, b) in enumerate(pairs):
        tolerance = LOOSE.get(a.dtype, 0.1)
        difference([a], [b], [str(position)], what, tolerance)


def _any_batch(model: nn.Module, graph: Graph, small: Graph, args: tuple[Any, ...], keywords: dict[str, Any]) -> Graph:
    """The graph with sizes that follow the batch, if the model runs on doubled inputs with the same operators."""
    if graph.how == "recorded":
        return small
    try:
        twin_args, twin_keywords = doubled((args, keywords))
        twice = capture(model, twin_args, kwargs=twin_keywords, how=graph.how)
    except CaptureError:
        return small
    return generalised(small, graph, twice) or small


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    return {name: tensor.detach() for name, tensor in named.items()}
