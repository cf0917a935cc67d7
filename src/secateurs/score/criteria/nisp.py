"""NISP: the importance of the last responses, carried back to every channel through absolute weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.capture.fold import writes
from secateurs.capture.graph import Node
from secateurs.capture.program import BatchAxis, Read, follows_inputs
from secateurs.capture.run import last_use
from secateurs.couple.group import ChannelGroup
from secateurs.couple.rules.registry import base_name
from secateurs.score.criterion import Context, Tap, criterion
from secateurs.score.inf_fs import inf_fs
from secateurs.score.passes import check_finite
from secateurs.score.patches import CONVOLUTIONS, reader
from secateurs.score.surrogate import run_node

Ranker = Callable[[Tensor], Tensor]


@criterion("nisp", needs="data")
def nisp(
    group: ChannelGroup,
    context: Context,
    *,
    ranker: str | Ranker = "inf_fs",
    pruned: Mapping[str, Sequence[int]] | None = None,
) -> Tensor:
    """`s_l = |W_{l+1}|^T s_{l+1}`, from the last layer that is read back to this one. Higher = keep.

    The responses that the last layer reads, averaged over positions, `[samples, features]`, get scores from `ranker`:
    `"inf_fs"`, infinite feature selection, or a function from them to `[features]`, not negative. From there scores go
    back: through convolutions with absolute kernels as maps (transposed convolution), a channel's score being the sum
    over positions; through batch norms times `|gamma| / sqrt(var + eps)`, other normalisations times `|gamma|`;
    unchanged through activations; through max pooling as through average pooling; a sum or product copies them to all
    that meets in it; attention gives them to its values, evenly. `pruned` names units that are gone already (`{group:
    units}`): they score 0 and pass nothing on. Rows: one per value that consumers read.

    Needs inputs, no labels; costs one forward pass for the responses, one backward pass for a single batch of the size
    that was captured, and time cubic in the number of last responses. Independent of how the data is split into
    batches. A bad choice where signs matter: it counts as if nothing ever cancelled. Scores grow or shrink from layer
    to layer, so they need a normaliser to compare groups.

    Yu et al., NISP: Pruning Networks using Neuron Importance Score Propagation, 2018.
    """
    rows = context.once("nisp", lambda: propagated(context, _ranker(ranker), dict(pruned or {})))[group.name]
    return rows if len(rows) else torch.zeros(group.size)


def _ranker(given: str | Ranker) -> Ranker:
    if given != "inf_fs" and not callable(given):
        raise InputError(
            explain(f"ranker={given!r} is no choice", next_step="take 'inf_fs', or give a function of the responses")
        )
    return given if callable(given) else inf_fs


def propagated(context: Context, ranker: Ranker, pruned: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """`{group name: [values that consumers read, size]}`."""
    finals = final_reads(context)
    scores = {number: _scored(ranker, seen) for number, seen in _responses(context, finals).items()}
    back = _backward(context, finals, scores, pruned)
    result: dict[str, Tensor] = {}
    for name, taps in context.taps.items():
        size = context.groups[name].size
        rows = [tap.per_unit(tap.by_channel(back[tap.value]).sum(0), size) for tap in taps if tap.value in back]
        found = torch.stack(rows) if rows else torch.zeros(0, size, dtype=torch.float64)
        found[:, list(pruned.get(name, ()))] = 0
        result[name] = found
    return result


def final_reads(context: Context) -> list[Tap]:
    """What the last layers read: layers that lead to an output of the model through no other layer."""
    graph = context.groups.graph
    layers = _layers(context)
    open_ends, blocked = set(graph.outputs), set[int]()
    finals: list[Tap] = []
    for node in reversed(graph.nodes):
        outs = {out for out in node.outputs if out is not None}
        leads = bool(outs & open_ends)
        behind = bool(outs & blocked)
        mine = layers.get(node.index)
        if mine is not None and leads and not behind:
            finals += mine
        if leads or behind:
            (blocked if mine is not None or behind else open_ends).update(node.inputs)
    return finals[::-1]


def _layers(context: Context) -> dict[int, list[Tap]]:
    """Linear layers, convolutions and whatever else sums channels away, with what they read."""
    graph = context.groups.graph
    shapes = [value.shape for value in graph.values]
    found: dict[int, list[Tap]] = {}
    for sites in context.sites.values():
        for site in sites:
            if not site.inside:
                units = torch.arange(shapes[site.value][site.dim])
                found.setdefault(site.node, []).append(Tap(site.value, site.dim, units, (site.node,)))
    for node in graph.nodes:
        if node.index in found or base_name(node.op) not in (*CONVOLUTIONS, "aten.linear"):
            continue
        read = node.inputs[0]
        for dim in {len(shapes[read]) - 1, *([len(shapes[read]) - len(shapes[node.inputs[1]]) + 1])}:
            if 0 <= dim and reader(node, read, dim, shapes).weight_value is not None:
                found[node.index] = [Tap(read, dim, torch.arange(shapes[read][dim]), (node.index,))]
    return {node: list({(tap.value, tap.dim): tap for tap in taps}.values()) for node, taps in found.items()}


def _at(finals: Sequence[Tap]) -> dict[int, list[int]]:
    """`{node: the final reads, by position, that it makes}`."""
    found: dict[int, list[int]] = {}
    for number, tap in enumerate(finals):
        found.setdefault(tap.nodes[0], []).append(number)
    return found


def _responses(context: Context, finals: Sequence[Tap]) -> dict[int, Tensor]:
    """`{position among finals: [samples, features]}`: what the last layers read, averaged over positions."""
    found: dict[int, list[Tensor]] = {number: [] for number in range(len(finals))}
    at = _at(finals)
    for batch in context.batches():
        axes = batch.axes()

        def see(node: int, axes: Mapping[int, BatchAxis] = axes) -> Read:
            left = set(at[node])

            def read(value: int, tensor: Tensor) -> Tensor:
                for number in [number for number in left if finals[number].value == value]:
                    left.discard(number)
                    tap, axis = finals[number], axes.get(value)
                    check_finite(context, node, tensor)
                    seen = tap.by_channel(tensor).unsqueeze(1) if axis is None else tap.by_sample(tensor, axis)
                    found[number].append(seen.double().mean(1).cpu())
                return tensor

            return read

        with torch.no_grad():
            batch.program.run(batch.begin(), reads={node: see(node) for node in at})
    return {number: torch.cat(parts) for number, parts in found.items() if parts}


def _scored(ranker: Ranker, responses: Tensor) -> Tensor:
    scores = ranker(responses)
    good = isinstance(scores, Tensor) and tuple(scores.shape) == responses.shape[1:]
    if not good or not bool((torch.isfinite(scores) & (scores >= 0)).all()):
        raise InputError(
            explain(
                "The ranker gives no usable scores",
                evidence=f"{tuple(getattr(scores, 'shape', ()))} for {responses.shape[1]} features"
                if not good
                else "some are negative or not finite",
                next_step="give one number for each feature, 0 or more",
            )
        )
    return scores.detach().to("cpu", torch.float64)


def _backward(
    context: Context, finals: Sequence[Tap], scores: Mapping[int, Tensor], pruned: Mapping[str, Sequence[int]]
) -> dict[int, Tensor]:
    """`{value: its score, entry by entry}` of every value that consumers read."""
    graph, masks, at = context.groups.graph, _masks(context, pruned), _at(finals)
    run = _Run(context)
    total = torch.zeros((), dtype=torch.float64)
    done = last_use(graph.nodes, graph.outputs)
    with torch.enable_grad():
        for item in graph.inputs:
            given = graph.values[item.value]
            run.put(item.value, torch.ones(given.shape, dtype=_wide(given.dtype)))
        for node in graph.nodes:

            def read(value: int, node: Node = node) -> Tensor:
                tensor = run.read(value)
                return tensor * masks[node.index, value] if (node.index, value) in masks else tensor

            for number in at.get(node.index, ()):
                total = total + (read(finals[number].value).movedim(finals[number].dim, -1) * scores[number]).sum()
            for out, result in zip(node.outputs, run_node(node, read, run.moving), strict=True):
                if out is not None:
                    run.put(out, result)
            run.overwritten(node)
            for value in done.get(node.index, ()):
                run.values.pop(value, None)
        if total.requires_grad:
            torch.autograd.backward(total)  # into the hooks; nothing of the model takes part
    return run.found


class _Run:
    """The values of a run of the stand-ins, and in `found` the gradients of those that consumers read."""

    def __init__(self, context: Context) -> None:
        graph = self.graph = context.groups.graph
        self.hooks: dict[int, Any] = {}
        self.moving = follows_inputs(graph)
        self.wanted = {tap.value for taps in context.taps.values() for tap in taps} & self.moving
        self.leaves = {leaf.value: _absolute(context.tensors[leaf.name]) for leaf in graph.leaves}
        self.values: dict[int, Tensor] = {}
        self.found: dict[int, Tensor] = {}

    def read(self, value: int) -> Tensor:
        return self.values[value] if value in self.values else self.leaves[value]

    def put(self, value: int, tensor: Tensor) -> None:
        tensor = tensor.double() if tensor.is_floating_point() else tensor  # operators that make tensors say their type
        if value in self.moving and tensor.is_floating_point() and not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_().clone()  # a leaf could not be written into
        if value in self.wanted and tensor.requires_grad:
            tensor = tensor.view_as(tensor)
            self.found[value] = torch.zeros_like(tensor)
            self._watch(value, tensor)
        self.values[value] = tensor

    def overwritten(self, node: Node) -> None:
        """What the node has written into is now something else: the gradients of that are wanted."""
        storages = {self.graph.values[value].storage for value in writes(node)}
        for value in self.hooks.keys() & self.values.keys():
            if self.graph.values[value].storage in storages:
                self._watch(value, self.values[value])

    def _watch(self, value: int, tensor: Tensor) -> None:
        if value in self.hooks:
            self.hooks[value].remove()
        assert tensor.grad_fn is not None  # asking also tells a view what has been written: hooks go to what is known
        self.hooks[value] = tensor.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: self.found.__setitem__(value, gradient.detach())
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _absolute(tensor: Tensor) -> Tensor:
    return (
        tensor.detach().to("cpu", torch.float64).abs() if tensor.is_floating_point() else tensor.detach().cpu().clone()
    )


def _masks(context: Context, pruned: Mapping[str, Sequence[int]]) -> dict[tuple[int, int], Tensor]:
    """`{(node, value): what it reads times this}`: 0 for units that are gone."""
    masks: dict[tuple[int, int], Tensor] = {}
    for name, units in pruned.items():
        context.groups[name]  # raises for a name that does not exist
        for site in context.sites.get(name, ()):
            shape = context.groups.graph.values[site.value].shape
            stays = torch.from_numpy(~np.isin(site.units, list(units))).double()
            stays = stays.reshape([-1 if dim == site.dim else 1 for dim in range(len(shape))])
            masks[site.node, site.value] = masks.get((site.node, site.value), torch.ones(())) * stays
    return masks
