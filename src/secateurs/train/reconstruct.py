"""`reconstruct`: refit every layer that lost inputs, so that it puts out what it put out before. No labels, no steps.

He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, 2017 (arXiv 1707.06168), step (ii), with a
ridge towards the weights that are there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import Batches, derive, device_of, rows, to_device
from secateurs.base.errors import InputError, UnknownNameError, explain
from secateurs.base.seeds import seeded
from secateurs.capture.graph import Graph, Node
from secateurs.capture.program import Program, Programs, State, check_call
from secateurs.capture.trace import capture
from secateurs.choose.plan import Plan
from secateurs.couple.couple import couple
from secateurs.couple.group import Bools, Groups
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.cut.cut import alive_after
from secateurs.cut.shift import Place, place_of
from secateurs.train.least_squares import Normal, Windows, is_layer

TARGETS = ("sum", "output")
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
    _check(batches, samples_per_image, ridge, target, layers)
    fresh = copy.deepcopy(small)
    with torch.no_grad(), seeded(derive(seed, "reconstruct")):
        pairs = list(_pairs(fresh, original, data, batches, seed))
        graph = pairs[0].before.graph
        groups = couple(graph, unit=plan.unit)
        alive = alive_after(plan, groups)
        _check_nodes(groups, alive, pairs[0].after.graph)
        for fit in _fits(groups, alive, pairs[0].after.graph, target, layers):
            _refit(fresh, fit, pairs, groups, alive, samples_per_image, ridge, seed)
    return fresh


@dataclass
class Pair:
    """One batch on its way through both networks."""

    before: Program
    state_before: State
    after: Program
    state_after: State
    images: int

    def read(self, fit: Fit) -> tuple[Tensor, Tensor, Tensor]:
        """What the layer reads in the cut network, and its target's value before and after; both runs stand at it."""
        self.before.run(self.state_before, fit.node)
        self.after.run(self.state_after, fit.node)
        seen: dict[str, Tensor] = {}

        def x(value: int, tensor: Tensor) -> Tensor:
            if value == fit.reads:
                seen["x"] = tensor
            return tensor

        def note(which: str, wanted: int) -> Any:
            return lambda value, tensor: seen.__setitem__(which, tensor) if value == wanted else None

        last, (before, after) = fit.until + 1, fit.wanted
        self.before.run(self.before.branch(self.state_before), last, made=note("before", before))
        self.after.run(self.after.branch(self.state_after), last, reads={fit.node: x}, made=note("after", after))
        return seen["x"], seen["before"], seen["after"]


@dataclass(frozen=True)
class Fit:
    """One layer to refit: node `node` reads value `reads`; its target are the values `wanted` (original, cut network)
    that node `until` makes; `norms` are the batch norms on the way there.
    """

    node: int
    reads: int
    weight: str
    windows: Windows
    place: Place | None
    wanted: tuple[int, int]
    until: int
    norms: tuple[int, ...]


def _fits(groups: Groups, alive: Bools, small: Graph, target: str, layers: str) -> Iterator[Fit]:
    """The layers to refit, in the order of the run."""
    graph = groups.graph
    names = {leaf.value: leaf.name for leaf in small.leaves if leaf.kind == "parameter"}
    touched = False
    for old, node in zip(graph.nodes, small.nodes, strict=True):
        touched = touched or any(graph.values[v].shape != groups.shape(v, alive) for v in old.inputs)
        if not is_layer(node) or not is_layer(old):
            continue
        x, weight = node.inputs[0], arguments(node)["weight"].value
        lost = groups.shape(old.inputs[0], alive) != graph.values[old.inputs[0]].shape
        alone = sum(weight in other.inputs for other in small.nodes) == 1
        windows = Windows.of(node, small.values[weight].shape)
        narrower = lost and windows.groups != graph.values[old.inputs[0]].shape[1]
        if weight not in names or not alone or not (narrower if layers == "reading" else touched):
            continue
        found = place_of(small, node)
        place = found if not isinstance(found, str) and found.kind != "new" and len(found.nodes) == 1 else None
        way = _to_sum(graph, old.index) if target == "sum" else ()
        until = way[-1] if way else old.index
        wanted = graph.nodes[until].outputs[0] or 0, small.nodes[until].outputs[0] or 0
        norms = tuple(index for index in way if base_name(graph.nodes[index].op) == "aten.batch_norm")
        yield Fit(node.index, x, names[weight], windows, place, wanted, until, norms)


def _to_sum(graph: Graph, start: int) -> tuple[int, ...]:
    """The nodes from a layer, by way of batch norms only, to the last of the sums that follow; empty without."""
    way: list[int] = []
    summed = 0
    out = graph.nodes[start].outputs[0]
    while out is not None and out not in graph.outputs:
        readers = [node for node in graph.nodes if out in node.inputs]
        if len(readers) != 1 or not _passes(graph, readers[0], out, bool(summed)):
            break
        way.append(readers[0].index)
        summed = summed if base_name(readers[0].op) == "aten.batch_norm" else len(way)
        out = readers[0].outputs[0]
    return tuple(way[:summed])


def _passes(graph: Graph, node: Node, value: int, summed: bool) -> bool:
    """Is this a batch norm in eval mode of the value, or a sum of it and another of the same shape?"""
    given = arguments(node)
    if base_name(node.op) == "aten.batch_norm":
        return not summed and not given["training"] and node.inputs[0] == value and given["running_mean"] is not None
    shape = graph.values[value].shape
    two = len(node.inputs) == 2 and node.inputs[0] != node.inputs[1]
    return (
        base_name(node.op) == "aten.add"
        and two
        and given["alpha"] == 1
        and all(graph.values[item].shape == shape for item in node.inputs)
    )


def _refit(
    model: nn.Module, fit: Fit, pairs: list[Pair], groups: Groups, alive: Bools, samples: int | None, ridge: float,
    seed: int,
) -> None:  # fmt: skip
    """Change the layer's weight, and its bias or the mean behind it, in place."""
    gain = _gain(pairs[0].after, fit)
    normal = Normal(fit.place is not None)
    for number, pair in enumerate(pairs):
        x, before, after = pair.read(fit)
        dim = before.dim() - 1 - len(fit.windows.kernel)
        kept = groups.kept(fit.wanted[0], dim, alive)
        missing = fit.windows.channels_last(
            before if kept is None else before.index_select(dim, torch.from_numpy(kept))
        )
        missing = missing - fit.windows.channels_last(after)
        chosen = _chosen(len(missing), pair.images, samples, derive(seed, "rows", fit.node, number)).to(missing.device)
        wanted = missing[chosen].double()
        if gain is not None:
            usable = gain.abs() > 1e-6 * gain.abs().max()
            wanted = torch.where(usable, wanted / torch.where(usable, gain, 1.0), 0.0)
        normal.add(fit.windows.patches(x, chosen), wanted)
    change, shift = normal.solve(ridge)
    weight = model.get_parameter(fit.weight)
    weight.add_(change.reshape(weight.shape).to(weight.dtype))
    if shift is not None and fit.place is not None:
        owner, _, last = fit.place.leaf.rpartition(".")
        tensor: Tensor = getattr(model.get_submodule(owner), last)
        tensor.add_((shift if fit.place.kind == "bias" else -shift).to(tensor.dtype))


def _gain(program: Program, fit: Fit) -> Tensor | None:
    """What the batch norms on the way multiply each channel by; None without any."""
    names = {leaf.value: leaf.name for leaf in program.graph.leaves}
    gain: Tensor | None = None
    for index in fit.norms:
        given = arguments(program.graph.nodes[index])
        part = (program.tensors[names[given["running_var"].value]].double() + given["eps"]).rsqrt()
        if given["weight"] is not None:
            part = part * program.tensors[names[given["weight"].value]].double()
        gain = part if gain is None else gain * part
    return gain


def _chosen(count: int, images: int, samples: int | None, seed: int) -> Tensor:
    """Random rows, `samples` for every image; all of them if there are no more."""
    wanted = count if samples is None else samples * images
    if wanted >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]


def _pairs(fresh: nn.Module, original: nn.Module, data: Iterable[Any], limit: int | None, seed: int) -> Iterator[Pair]:
    """Every batch at the start of both networks, which read the tensors of `fresh` and `original` themselves."""
    loader = Batches(data, limit=limit, seed=seed)
    device = device_of(fresh)
    both: tuple[Programs, Programs] | None = None
    try:
        for raw in loader.epoch(0):
            batch = to_device(raw, device)
            inputs = batch[0] if isinstance(batch, (list, tuple)) and len(batch) == 2 else batch
            if both is None:
                args, keywords = check_call(original, inputs)
                graph = capture(original, args, kwargs=keywords)
                both = (
                    Programs(original, graph),
                    Programs(fresh, capture(fresh, args, kwargs=keywords, how=graph.how)),
                )
            (before, given), (after, same) = both[0].program(inputs), both[1].program(inputs)
            yield Pair(before, before.begin(given), after, after.begin(same), rows(inputs))
    finally:
        loader.close()


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


def _check(batches: Any, samples: Any, ridge: Any, target: str, layers: str) -> None:
    for name, given, known in (("target", target, TARGETS), ("layers", layers, LAYERS)):
        if given not in known:
            raise UnknownNameError(
                explain(f"There is no {name} named {given!r}", evidence=f"known: {', '.join(known)}")
            )
    whole = [("batches", batches), ("samples_per_image", samples)]
    for name, number in whole:
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise InputError(
                explain(f"reconstruct({name}={number!r}) cannot be used", next_step="give an integer above 0, or None")
            )
    if not isinstance(ridge, (int, float)) or not 0 <= ridge < float("inf"):
        raise InputError(explain(f"reconstruct(ridge={ridge!r}) cannot be used", next_step="give a number from 0 on"))


__all__ = ["reconstruct"]
