"""What every unit adds to the outputs of the layers that read it, at sampled entries of these outputs.

A layer that reads channels sums over them, so each entry of its output (bias apart) is a sum of contributions, one per
unit. Methods that remove what the next layer does not miss need nothing else, and mostly only the products of
contributions with one another, summed over entries: a matrix `[size, size]`, however much data there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.capture.program import BatchAxis
from secateurs.couple.sites import Site
from secateurs.score.criterion import Context
from secateurs.score.passes import check_finite
from secateurs.score.patches import Rows, Windows, reader
from secateurs.score.samples import Batch

WIDEST = 6000
"""Rows of the largest matrix of products of patches; wider layers go by their outputs, some at a time."""
AT_ONCE = 1 << 24
"""Contributions held at a time, going by outputs."""


@dataclass(frozen=True)
class Consumer:
    """The `number`-th place where the `size` units of a group are summed away."""

    group: str
    size: int
    number: int
    site: Site


@dataclass(frozen=True)
class Sampled:
    """One consumer's sampled entries of one batch.

    `patches` `[entries, units, taps]` is what it reads of each unit, `weight` `[outputs, units, taps]` what it takes
    that times; both float64. `outputs` `[entries]` is one output of the consumer, drawn for each patch.
    """

    consumer: Consumer
    patches: Tensor
    weight: Tensor
    outputs: Tensor

    def contributions(self) -> Tensor:
        """`[entries, units]`: what each unit adds to the drawn output of each patch."""
        return (self.patches * self.weight[self.outputs]).sum(2)

    def products(self) -> Tensor:
        """`[units, units]`: products of contributions, summed over *all* outputs of every patch."""
        entries, units, taps = self.patches.shape
        outputs, wide = len(self.weight), units * taps
        if wide <= WIDEST and wide * wide * (entries + outputs) <= entries * outputs * units * (taps + units):
            seen, used = self.patches.flatten(1), self.weight.flatten(1)
            both = (seen.T @ seen) * (used.T @ used)
            return both.reshape(units, taps, units, taps).sum((1, 3))
        total = self.patches.new_zeros(units, units)
        for some in torch.split(self.weight, max(1, AT_ONCE // (units * entries))):
            each = (self.patches.transpose(0, 1) @ some.permute(1, 2, 0)).flatten(1)
            total += each @ each.T
        return total

    def sizes(self) -> Tensor:
        """`[units]`: the sum of squares of the weights that read each unit."""
        return self.weight.square().sum((0, 2))


def consumers(context: Context) -> dict[str, tuple[Consumer, ...]]:
    """The consumers of every free group, by group name, in the order of the run.

    Recurrent weights, which read what their own node has computed, are left out.
    """
    return {
        name: tuple(
            Consumer(name, context.groups[name].size, number, site)
            for number, site in enumerate(site for site in sites if not site.inside)
        )
        for name, sites in context.sites.items()
    }


def summed(context: Context, positions: int, measure: Callable[[Sampled], Tensor]) -> dict[str, list[Tensor]]:
    """`{group name: [measure(sampled), summed over batches, for each consumer]}`, on the CPU."""
    found: dict[str, list[Any]] = {name: [None] * len(mine) for name, mine in consumers(context).items()}

    def add(seen: Sampled) -> None:
        row, number = found[seen.consumer.group], seen.consumer.number
        part = measure(seen).cpu()
        row[number] = part if row[number] is None else row[number] + part

    sample(context, positions, add)
    return found


def sample(context: Context, positions: int, visit: Callable[[Sampled], None]) -> None:
    """Run once over the data and `visit` every consumer with `positions` patches of every sample, for each batch.

    Places and outputs are drawn with repetition, from the context's seed, sample by sample: the split into batches does
    not matter. A layer that reads every sample at one place only is given that place once for each draw. Raises
    `InputError` when `positions` is not a positive integer.
    """
    if not isinstance(positions, int) or positions < 1:
        raise InputError(
            explain(f"positions={positions!r} is no number of samples", next_step="give a positive integer")
        )
    drawing: dict[int, list[tuple[Consumer, np.random.Generator]]] = {}
    for number, consumer in enumerate(each for mine in consumers(context).values() for each in mine):
        draw = np.random.default_rng([context.seed, number])
        drawing.setdefault(consumer.site.node, []).append((consumer, draw))
    for batch in context.batches():
        axes = batch.axes()
        reads = {
            node: _Read(context, batch, node, mine, partial(_sampled, axes, positions), visit)
            for node, mine in drawing.items()
        }
        with torch.no_grad():
            batch.program.run(batch.begin(), reads=reads)


class _Read:
    """Looks at what one node reads, and visits its consumers as soon as value and weight have both been read."""

    def __init__(
        self,
        context: Context,
        batch: Batch,
        node: int,
        waiting: list[tuple[Consumer, np.random.Generator]],
        draw: Callable[..., Sampled],
        visit: Callable[[Sampled], None],
    ) -> None:
        graph = batch.program.graph
        shapes = [value.shape for value in graph.values]
        self.check = partial(check_finite, context, node)
        self.read = {consumer.site.value for consumer, _ in waiting}
        self.draw, self.visit = draw, visit
        self.seen: dict[int, Tensor] = {}
        self.waiting = [
            (consumer, generator, reader(graph.nodes[node], consumer.site.value, consumer.site.dim, shapes))
            for consumer, generator in waiting
        ]

    def __call__(self, value: int, tensor: Tensor) -> Tensor:
        if value in self.read:  # not a mask, which may well be infinite
            self.check(tensor)
        self.seen[value] = tensor
        later = []
        for consumer, generator, how in self.waiting:
            weight = how.weight_value
            if consumer.site.value in self.seen and (weight is None or weight in self.seen):
                given = None if weight is None else self.seen[weight]
                self.visit(self.draw(consumer, generator, how, self.seen[consumer.site.value], given))
            else:
                later.append((consumer, generator, how))
        self.waiting = later
        return tensor


def _sampled(
    axes: dict[int, BatchAxis],
    positions: int,
    consumer: Consumer,
    generator: np.random.Generator,
    how: Rows | Windows,
    tensor: Tensor,
    weight: Tensor | None,
) -> Sampled:
    axis = axes.get(consumer.site.value)
    samples, places = how.places(tensor, axis)
    used = how.weight(weight, tensor.shape[consumer.site.dim]).to(tensor.device)
    drawn = torch.from_numpy(generator.random((samples * positions, 2))).to(tensor.device)
    place, outputs = (drawn[:, 0] * places).long(), (drawn[:, 1] * len(used)).long()
    sample_of = torch.arange(samples, device=tensor.device).repeat_interleave(positions)
    patches = how.patches(tensor, axis, sample_of, place)
    return Sampled(consumer, _by_unit(consumer, patches), _by_unit(consumer, used), outputs)


def _by_unit(consumer: Consumer, tensor: Tensor) -> Tensor:
    """`[rows, channels, kernel positions]` as `[rows, units, channels of a unit * kernel positions]`."""
    units = torch.from_numpy(consumer.site.units)
    order = units.argsort(stable=True)[int((units < 0).sum()) :].to(tensor.device)
    return tensor[:, order].reshape(len(tensor), consumer.size, -1)


def order_scores(order: Tensor, energy: Tensor) -> Tensor:
    """Scores `[size]` of units from the order in which they go: the n-th of C scores `n / C`, those of no energy 0."""
    scores = torch.zeros(len(order), dtype=torch.float64)
    scores[order] = torch.arange(1, len(order) + 1, dtype=torch.float64) / len(order)
    return scores.masked_fill(energy == 0, 0)


__all__ = ["Consumer", "Sampled", "consumers", "order_scores", "sample", "summed"]
