"""Two networks of the same nodes, run side by side: what a layer reads in one, and what it should put out instead.

Behind everything that fits layers to what they put out in another network, first to last, so that each makes good what
those before it have spoiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import Batches, derive, device_of, rows, to_device
from secateurs.base.errors import InputError, UnknownNameError, explain
from secateurs.capture.graph import Graph, Node
from secateurs.capture.program import Program, Programs, State, check_call
from secateurs.capture.trace import capture
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.cut.shift import Place, place_of
from secateurs.train.least_squares import Normal, Windows

TARGETS = ("sum", "output")
Narrow = Callable[[int, Tensor, int], Tensor]
"""`(value number, tensor, dimension) -> tensor`: what of an original's value is left in the other network."""


@dataclass(frozen=True)
class Fit:
    """One layer to fit: node `node` reads the values `reads` (original, other network); its targets are the values
    `wanted` that node `until` makes; `norms` are the batch norms on the way there.
    """

    node: int
    reads: tuple[int, int]
    weight: str
    windows: Windows
    place: Place | None
    wanted: tuple[int, int]
    until: int
    norms: tuple[int, ...]

    @classmethod
    def of(cls, original: Graph, other: Graph, node: Node, name: str, target: str) -> Fit:
        """That of a layer of `other` whose weight is the parameter `name`; `node` is the original's."""
        mine = other.nodes[node.index]
        windows = Windows.of(mine, other.values[arguments(mine)["weight"].value].shape)
        found = place_of(other, mine)
        place = found if not isinstance(found, str) and found.kind != "new" and len(found.nodes) == 1 else None
        way = _to_sum(original, node.index) if target == "sum" else ()
        until = way[-1] if way else node.index
        wanted = original.nodes[until].outputs[0] or 0, other.nodes[until].outputs[0] or 0
        norms = tuple(index for index in way if base_name(original.nodes[index].op) == "aten.batch_norm")
        return cls(mine.index, (node.inputs[0], mine.inputs[0]), name, windows, place, wanted, until, norms)


@dataclass
class Pair:
    """One batch on its way through both networks."""

    before: Program
    state_before: State
    after: Program
    state_after: State
    images: int

    def read(self, fit: Fit, inputs: str = "own") -> tuple[Tensor, Tensor, Tensor]:
        """What the layer reads, and its target's value before and after; both runs then stand at it.

        With `inputs="original"` the layer is given what it reads in the original.
        """
        self.before.run(self.state_before, fit.node)
        self.after.run(self.state_after, fit.node)
        seen: dict[str, Tensor] = {}

        def read(value: int, tensor: Tensor) -> Tensor:
            if value == fit.reads[0]:
                seen["x"] = tensor
            return tensor

        def reread(value: int, tensor: Tensor) -> Tensor:
            if value != fit.reads[1]:
                return tensor
            if inputs == "own":
                seen["x"] = tensor
            return seen["x"]

        def note(which: str, wanted: int) -> Any:
            return lambda value, tensor: seen.__setitem__(which, tensor) if value == wanted else None

        last, (before, after) = fit.until + 1, fit.wanted
        self.before.run(
            self.before.branch(self.state_before), last, reads={fit.node: read}, made=note("before", before)
        )
        self.after.run(self.after.branch(self.state_after), last, reads={fit.node: reread}, made=note("after", after))
        return seen["x"], seen["before"], seen["after"]


def pairs_of(
    original: nn.Module, other: nn.Module, data: Iterable[Any], limit: int | None, seed: int
) -> Iterator[Pair]:
    """Every batch at the start of both networks, which read the tensors of `original` and `other` themselves."""
    loader = Batches(data, limit=limit, seed=seed)
    device = device_of(other)
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
                    Programs(other, capture(other, args, kwargs=keywords, how=graph.how)),
                )
            (before, given), (after, same) = both[0].program(inputs), both[1].program(inputs)
            yield Pair(before, before.begin(given), after, after.begin(same), rows(inputs))
    finally:
        loader.close()


def equations(
    fits: Sequence[Fit], pairs: Sequence[Pair], samples: int | None, seed: int, *,
    narrow: Narrow | None = None, inputs: str = "own",
) -> Normal:  # fmt: skip
    """The normal equations of the change that the weight needs, over all calls that share it and all batches."""
    normal = Normal(all(fit.place is not None for fit in fits))
    for fit in fits:
        gain = _gain(pairs[0].after, fit)
        for number, pair in enumerate(pairs):
            x, before, after = pair.read(fit, inputs)
            dim = before.dim() - 1 - len(fit.windows.kernel)
            kept = before if narrow is None else narrow(fit.wanted[0], before, dim)
            missing = fit.windows.channels_last(kept) - fit.windows.channels_last(after)
            chosen = _chosen(len(missing), pair.images, samples, derive(seed, "rows", fit.node, number))
            chosen = chosen.to(missing.device)
            wanted = missing[chosen].double()
            if gain is not None:
                usable = gain.abs() > 1e-6 * gain.abs().max()
                wanted = torch.where(usable, wanted / torch.where(usable, gain, 1.0), 0.0)
            normal.add(fit.windows.patches(x, chosen), wanted)
    return normal


def change(model: nn.Module, fit: Fit, weight: Tensor, shift: Tensor | None) -> None:
    """Add to the layer's weight, and `shift` to what it puts out: by its bias, or the mean behind it. In place."""
    own = model.get_parameter(fit.weight)
    own.add_(weight.reshape(own.shape).to(own.dtype))
    if shift is not None and fit.place is not None:
        owner, _, last = fit.place.leaf.rpartition(".")
        tensor: Tensor = getattr(model.get_submodule(owner), last)
        tensor.add_((shift if fit.place.kind == "bias" else -shift).to(tensor.dtype))


def check_fit(name: str, batches: Any, samples: Any, ridge: Any, target: str) -> None:
    """Raises `InputError` and `UnknownNameError` for arguments of the function `name` that cannot be used."""
    if target not in TARGETS:
        raise UnknownNameError(explain(f"There is no target named {target!r}", evidence=f"known: {', '.join(TARGETS)}"))
    whole = [("batches", batches), ("samples_per_image", samples)]
    for which, number in whole:
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise InputError(
                explain(f"{name}({which}={number!r}) cannot be used", next_step="give an integer above 0, or None")
            )
    if not isinstance(ridge, (int, float)) or not 0 <= ridge < float("inf"):
        raise InputError(explain(f"{name}(ridge={ridge!r}) cannot be used", next_step="give a number from 0 on"))


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


__all__ = ["Fit", "Pair", "change", "check_fit", "equations", "pairs_of"]
