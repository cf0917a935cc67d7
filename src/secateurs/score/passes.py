"""One forward pass over the data for all groups at once: what every channel looks like to its consumers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.score.criterion import Context, Tap

Place = tuple[str, int]
"""A tap: group name and position among the group's taps."""


def tap_reads(
    context: Context, seen: Callable[[Place, Tap, Tensor], Tensor], *, every: bool = False
) -> Mapping[int, Any]:
    """`reads` for `Program.run`: `seen(place, tap, tensor)` gives what the tap's consumers read in place of it.

    It is called at the first consumer of each tap or, with `every`, at each one.
    """
    at: dict[int, list[tuple[Place, Tap]]] = {}
    for name, taps in context.taps.items():
        for number, tap in enumerate(taps):
            for node in tap.nodes if every else tap.nodes[:1]:
                at.setdefault(node, []).append(((name, number), tap))

    def reader(mine: list[tuple[Place, Tap]]) -> Callable[[int, Tensor], Tensor]:
        def read(value: int, tensor: Tensor) -> Tensor:
            for place, tap in mine:
                if tap.value == value:
                    tensor = seen(place, tap, tensor)
            return tensor

        return read

    return {node: reader(mine) for node, mine in at.items()}


def channel_means(context: Context, measure: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """`{group name: [taps, size]}`: the mean of `measure(activations)` over samples, positions and a unit's channels.

    `measure` maps a tensor element by element. Sums are taken in float64 over the whole data, so that the result does
    not depend on how it is split into batches. Raises `InputError` for activations that are not finite.
    """
    sums: dict[Place, Tensor] = {}
    counts: dict[Place, Tensor] = {}

    def see(place: Place, tap: Tap, tensor: Tensor) -> Tensor:
        check_finite(context, tap.nodes[0], tensor)
        channels = measure(tap.by_channel(tensor))
        size = context.groups[place[0]].size
        total = tap.per_unit(channels.sum(0, dtype=torch.float64), size)
        count = tap.per_unit(torch.full_like(channels[0], channels.shape[0], dtype=torch.float64), size)
        sums[place] = sums[place] + total if place in sums else total
        counts[place] = counts[place] + count if place in counts else count
        return tensor

    reads = tap_reads(context, see)
    for batch in context.batches():
        with torch.no_grad():
            batch.program.run(batch.begin(), reads=reads)
    return {
        name: torch.stack([sums[name, i].cpu() / counts[name, i].cpu() for i in range(len(taps))])
        for name, taps in context.taps.items()
        if taps
    }


def check_finite(context: Context, node: int, tensor: Tensor) -> None:
    """Raises `InputError` when what this node reads is not finite: counts and orders would hide it."""
    broken = int((~torch.isfinite(tensor)).sum())
    if broken:
        raise InputError(
            explain(
                "An activation is not finite",
                where=context.groups.graph.nodes[node].where,
                evidence=f"{broken} of {tensor.numel()} entries that it reads are nan or infinite",
                next_step="look for nan or infinity in the data and in the weights before that layer",
            )
        )
