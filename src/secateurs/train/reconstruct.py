"""`reconstruct`: refit every layer that lost inputs, so that it puts out what it put out before. No labels, no steps.

He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, 2017 (arXiv 1707.06168), step (ii), with a
ridge towards the weights that are there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import derive
from secateurs.base.errors import InputError, UnknownNameError, explain
from secateurs.base.seeds import seeded
from secateurs.capture.graph import Graph
from secateurs.choose.plan import Plan
from secateurs.couple.couple import couple
from secateurs.couple.group import Bools, Groups
from secateurs.couple.rules.registry import arguments
from secateurs.cut.cut import alive_after
from secateurs.train.least_squares import is_layer
from secateurs.train.side_by_side import Fit, change, check_fit, equations, pairs_of

LAYERS = ("reading", "all")


def reconstruct(
    small: nn.Module,
    original: nn.Module,
    plan: Plan,
    data: Iterable[Any],
    *,
    batches: int | None = None,
    samples_per_image: int | None = 32,
    ridge: float = 1e-3,
    target: str = "output",
    layers: str = "reading",
    seed: int = 0,
) -> nn.Module:
    """A copy of `small`, cut from `original` by `plan`, whose layers are refitted by least squares, first to last.

    A linear layer or convolution gets the weights W' (and bias, or the mean of the batch norm behind it) that minimise
    `sum ||Y - W' X||^2 + ridge * mean(X^2) * n * ||W' - W||^2` over n positions, where X is what it reads in the cut
    network, refitted so far, W what it has, and Y what it should put out: with `target="output"` what it puts out in
    the original at the channels that stay; with `"sum"`, where its output goes through nothing but batch norms into a
    sum with another branch, what makes that sum the original's, so that errors do not pile up from block to block.

    `layers="reading"`: those that lost inputs; `"all"`: every one behind the first cut. Left alone: layers whose weight
    is shared between calls or computed, and transposed convolutions. Never worse, on the fitted positions, than not
    refitting, for each layer by itself.

    `data` are batches of inputs or `(inputs, target)`, of which the first `batches` are used, `samples_per_image`
    random positions of each image (None: all). Labels are not looked at. Eval mode; batch-norm statistics stay, so
    `recalibrate` may follow. Costs about three forward passes; the activations of all batches at one place of both
    networks are in memory at a time.

    Raises `InputError` for arguments that cannot be used or a `small` that is not cut by `plan`, `TrainError` when the
    data is empty, and `PlanError` when the plan is not one for `original`.
    """
    check_fit("reconstruct", batches, samples_per_image, ridge, target)
    if layers not in LAYERS:
        raise UnknownNameError(explain(f"There is no layers named {layers!r}", evidence=f"known: {', '.join(LAYERS)}"))
    fresh = copy.deepcopy(small)
    with torch.no_grad(), seeded(derive(seed, "reconstruct")):
        pairs = list(pairs_of(original, fresh, data, batches, seed))
        graph = pairs[0].before.graph
        groups = couple(graph, unit=plan.unit)
        alive = alive_after(plan, groups)
        _check_nodes(groups, alive, pairs[0].after.graph)

        def narrow(value: int, tensor: Tensor, dim: int) -> Tensor:
            kept = groups.kept(value, dim, alive)
            return tensor if kept is None else tensor.index_select(dim, torch.from_numpy(kept))

        for fit in _fits(groups, alive, pairs[0].after.graph, target, layers):
            change(fresh, fit, *equations([fit], pairs, samples_per_image, seed, narrow=narrow).solve(ridge))
    return fresh


def _fits(groups: Groups, alive: Bools, small: Graph, target: str, layers: str) -> Iterator[Fit]:
    """The layers to refit, in the order of the run."""
    graph = groups.graph
    names = {leaf.value: leaf.name for leaf in small.leaves if leaf.kind == "parameter"}
    touched = False
    for old, node in zip(graph.nodes, small.nodes, strict=True):
        touched = touched or any(graph.values[v].shape != groups.shape(v, alive) for v in old.inputs)
        if not is_layer(node) or not is_layer(old):
            continue
        weight = arguments(node)["weight"].value
        lost = groups.shape(old.inputs[0], alive) != graph.values[old.inputs[0]].shape
        alone = sum(weight in other.inputs for other in small.nodes) == 1
        one_each = arguments(node).get("groups", 1) == graph.values[old.inputs[0]].shape[1]
        narrower = lost and not one_each
        if weight in names and alone and (narrower if layers == "reading" else touched):
            yield Fit.of(graph, small, old, names[weight], target)


def _check_nodes(groups: Groups, alive: Bools, small: Graph) -> None:
    """Raises `InputError` unless the nodes of `small` are those of the original and its shapes those of the plan."""
    graph = groups.graph
    same = len(graph.nodes) == len(small.nodes)
    for old, new in zip(graph.nodes, small.nodes, strict=False):
        pairs = [(a, b) for a, b in zip(old.outputs, new.outputs, strict=False) if a is not None and b is not None]
        fits = all(groups.shape(a, alive) == small.values[b].shape for a, b in pairs)
        if not same or not fits or is_layer(old) != is_layer(new):
            raise InputError(
                explain(
                    "The small model is not the original after this plan",
                    where=new.where,
                    evidence=f"{old.where} in the original",
                    next_step="pass the model that `cut` made with this plan, and the model that it was made from",
                )
            )


__all__ = ["reconstruct"]
