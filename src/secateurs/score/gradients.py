"""Forward and backward passes over the data for all groups at once: what the loss says about channels and weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateurs.base.errors import InputError, explain
from secateurs.capture.fold import writes
from secateurs.capture.program import Program
from secateurs.score.criterion import Batch, Context, Tap
from secateurs.score.passes import Place, tap_reads

Key = TypeVar("Key", bound=Hashable)
Reduce = Callable[[Batch, Tap, Tensor], Tensor]
"""`(batch, tap, tensor shaped like the tap's value) -> [..., indices along the tap's dim]`."""


@dataclass(frozen=True)
class _Read:
    """A tensor that a consumer got to read, where its gradient is found, and the taps that it serves."""

    tensor: Tensor
    edge: GradientEdge
    serves: list[tuple[Place, Tap]]


def gate_gradients(context: Context, reduce: Reduce) -> Iterator[tuple[Batch, dict[Place, Tensor]]]:
    """For every batch `{tap: [..., size]}`: the gradient of the batch's mean loss to gates of ones, unit by unit.

    A gate multiplies what the consumers of a tap read; to one gate per entry z the gradient is `z * dLoss/dz`. `reduce`
    sums these over entries, down to the indices along the tap's dimension; a unit gets the sum over its indices.
    """
    for batch in context.batches():
        reads = _Reads(batch.program)
        with torch.enable_grad():
            state = batch.program.run(batch.begin(), reads=tap_reads(context, reads.see, every=True))
            loss = batch.loss(state)
        slopes = gradients(batch, loss, [read.edge for read in reads.made])
        found: dict[Place, Tensor] = {}
        for read, slope in zip(reads.made, slopes, strict=True):
            product = read.tensor * (torch.zeros_like(read.tensor) if slope is None else slope)
            reduced: dict[int, Tensor] = {}
            for place, tap in read.serves:
                if tap.dim not in reduced:
                    reduced[tap.dim] = reduce(batch, tap, product)
                mine = tap.per_unit(reduced[tap.dim], context.groups[place[0]].size)
                found[place] = found[place] + mine if place in found else mine
        yield batch, found


class _Reads:
    """Stands between values and their consumers, so that what they read has a gradient of its own."""

    def __init__(self, program: Program) -> None:
        graph = program.graph
        written = {graph.values[value].storage for node in graph.nodes for value in writes(node)}
        self._volatile = {value.index for value in graph.values if value.storage in written}
        self.made: list[_Read] = []
        self._last: Tensor | None = None

    def see(self, place: Place, tap: Tap, tensor: Tensor) -> Tensor:
        if tensor is not self._last:
            seen = tensor.clone() if tap.value in self._volatile else tensor.view_as(tensor)
            self._last = seen if seen.requires_grad else seen.detach().requires_grad_()
            self.made.append(_Read(self._last.detach(), get_gradient_edge(self._last), []))
        self.made[-1].serves.append((place, tap))
        return self._last


def over_positions(batch: Batch, tap: Tap, tensor: Tensor) -> Tensor:
    """`Reduce` to `[indices]`: the sum over samples and positions."""
    others = [dim for dim in range(tensor.dim()) if dim != tap.dim]
    return (tensor.sum(others) if others else tensor).double()


def gradients(batch: Batch, loss: Tensor, sources: Sequence[Any], **options: Any) -> tuple[Tensor | None, ...]:
    """`d loss / d source` for each, None where the loss does not depend on it.

    Raises `InputError` for a flat loss, and for a model that overwrites what its gradient needs.
    """
    if not loss.requires_grad:
        raise InputError(
            explain(
                "The loss does not depend on what is scored, or has no gradient",
                where=batch.where,
                next_step="pass a `loss=` that can be differentiated, or take a criterion that needs no loss",
            )
        )
    try:
        found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, sources, allow_unused=True, **options)
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise InputError(
            explain(
                "The model writes over activations that its gradient needs",
                where=batch.where,
                evidence=str(error).partition("; expected")[0],
                next_step="let the model make new tensors there, or take a criterion that needs no loss",
            )
        ) from error
    return found


@dataclass(frozen=True)
class Slope:
    """What a mini-batch says about one leaf: the weight, its gradient, and the Hessian times all weights if asked."""

    weight: Tensor
    gradient: Tensor
    curvature: Tensor | None = None


def leaf_gradients(
    context: Context, leaves: Sequence[str], *, order: int = 1, each: bool = False
) -> Iterator[tuple[int, dict[str, Slope]]]:
    """For every batch, or with `each` for every sample, how many samples it has and the gradient of its mean loss.

    `{leaf: its slope}` for each of these leaves. `order=2` adds `H w`, the Hessian of that loss times all parameters of
    the network, by differentiating twice.
    """
    graph = context.groups.graph
    parameters = [leaf.name for leaf in graph.leaves if leaf.kind == "parameter" and leaf.dtype.is_floating_point]
    names = list(dict.fromkeys([*leaves, *parameters])) if order > 1 else list(leaves)
    for batch in (single for whole in context.batches() for single in (whole.each() if each else (whole,))):
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # other kernels of attention differentiate only once
            tensors = {name: batch.program.tensors[name].detach().requires_grad_() for name in names}
            program = batch.on(tensors)
            loss = batch.loss(program.run(program.begin(batch.given)), program)
            found = gradients(batch, loss, list(tensors.values()), create_graph=order > 1)
            slopes = dict(zip(names, found, strict=True))
            curved = _curvatures(tensors, slopes, leaves) if order > 1 else {}
        yield (
            batch.size,
            {
                name: Slope(tensors[name].detach(), _or_zeros(slopes[name], tensors[name]), curved.get(name))
                for name in leaves
            },
        )


def mean_gradients(context: Context, leaves: Sequence[str]) -> dict[str, Tensor]:
    """The gradient of the mean loss over all samples, float64, in the shape of each leaf."""
    total = {name: torch.zeros_like(context.tensors[name], dtype=torch.float64) for name in leaves}
    samples = 0
    for size, slopes in leaf_gradients(context, leaves):
        samples += size
        for name, slope in slopes.items():
            total[name] += slope.gradient.double() * size
    return {name: item / samples for name, item in total.items()}


def _curvatures(
    tensors: Mapping[str, Tensor], slopes: Mapping[str, Tensor | None], leaves: Sequence[str]
) -> dict[str, Tensor]:
    along = [(slope * tensors[name].detach()).sum() for name, slope in slopes.items() if slope is not None]
    total = torch.stack([part.to(along[0].dtype) for part in along]).sum()
    sources = [tensors[name] for name in leaves]
    found = torch.autograd.grad(total, sources, allow_unused=True) if total.requires_grad else [None] * len(sources)
    return {name: _or_zeros(item, tensors[name]) for name, item in zip(leaves, found, strict=True)}


def _or_zeros(found: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if found is None else found.detach()


def over_batches(contributions: Iterable[Mapping[Key, Tensor]], momentum: float | None) -> dict[Key, Tensor]:
    """The mean over mini-batches, or with `momentum` the running average `m * old + (1 - m) * new` from the first on.

    Raises `InputError` for a momentum outside [0, 1).
    """
    if momentum is not None and not 0 <= momentum < 1:
        raise InputError(
            explain(
                "The momentum is a fraction", evidence=f"{momentum} given", next_step="give at least 0, less than 1"
            )
        )
    total: dict[Key, Tensor] = {}
    for count, batch in enumerate(contributions, 1):
        fresh = (1 / count if momentum is None else 1 - momentum) if total else 1.0
        for key, new in batch.items():
            total[key] = total[key] + fresh * (new - total[key]) if key in total else new
    return total


def stacked(context: Context, found: Mapping[Place, Tensor]) -> dict[str, Tensor]:
    """`{group name: [taps, size]}` from one row per tap. Groups that no consumer reads get a row of zeros."""
    rows = {name: [found[name, i].cpu() for i in range(len(taps))] for name, taps in context.taps.items()}
    return {
        name: torch.stack(mine or [torch.zeros(context.groups[name].size, dtype=torch.float64)])
        for name, mine in rows.items()
    }


__all__ = ["Reduce", "Slope", "gate_gradients", "gradients", "leaf_gradients", "mean_gradients", "over_batches",
           "over_positions", "stacked"]  # fmt: skip
