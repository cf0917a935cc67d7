"""One forward pass over the data for all groups at once: what every channel looks like to its consumers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.capture.graph import Node
from secateurs.couple.rules.registry import base_name
from secateurs.score.criterion import Context, Tap

Place = tuple[str, int]
"""A tap: group name and position among the group's taps."""
AVERAGES = ("aten.mean", *(f"aten.{kind}avg_pool{rank}d" for kind in ("", "adaptive_") for rank in (1, 2, 3)))
MOVES = ("aten.flatten", "aten.view", "aten.reshape", "aten.squeeze", "aten.unsqueeze", "aten.permute",
         "aten.transpose", "aten.dropout", "aten.contiguous", "aten.clone")  # fmt: skip
"""What averages over positions, and what may stand behind that without changing a value."""


def tap_reads(
    context: Context,
    seen: Callable[[Place, Tap, Tensor], Tensor],
    *,
    every: bool = False,
    taps: Mapping[str, Sequence[Tap]] | None = None,
) -> Mapping[int, Any]:
    """`reads` for `Program.run`: `seen(place, tap, tensor)` gives what the tap's consumers read in place of it.

    It is called at the first consumer of each tap or, with `every`, at each one. `taps`: default, those of `context`.
    """
    at: dict[int, list[tuple[Place, Tap]]] = {}
    for name, mine in (context.taps if taps is None else taps).items():
        for number, tap in enumerate(mine):
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


def channel_means(
    context: Context, measure: Callable[[Tensor], Tensor], taps: Mapping[str, Sequence[Tap]] | None = None
) -> dict[str, Tensor]:
    """`{group name: [taps, size]}`: the mean of `measure(activations)` over samples, positions and a unit's channels.

    `measure` maps a tensor element by element. Sums are taken in float64 over the whole data, so that the result does
    not depend on how it is split into batches. A group that nothing reads has one row of zeros. Raises `InputError` for
    activations that are not finite.
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

    taps = context.taps if taps is None else taps
    reads = tap_reads(context, see, taps=taps)
    for batch in context.batches():
        with torch.no_grad():
            batch.program.run(batch.begin(), reads=reads)
    return {
        name: torch.stack([sums[name, i].cpu() / counts[name, i].cpu() for i in range(len(mine))])
        if mine
        else torch.zeros(1, context.groups[name].size, dtype=torch.float64)
        for name, mine in taps.items()
    }


def before_averages(context: Context) -> dict[str, tuple[Tap, ...]]:
    """The taps of every group; where its consumers read averages over positions, what those averages are taken of."""
    made = {out: node for node in context.groups.graph.nodes for out in node.outputs if out is not None}
    return {
        name: tuple({(tap.value, tap.dim): tap for tap in (_before(context, name, tap, made) for tap in taps)}.values())
        for name, taps in context.taps.items()
    }


def _before(context: Context, name: str, tap: Tap, made: Mapping[int, Node]) -> Tap:
    """The tap in front of the first of the averages between it and what computed it; itself if there are none."""
    start, size = context.groups.offsets[name], context.groups[name].size
    wanted, found, value = torch.unique(tap.units[tap.units >= 0]), tap, tap.value
    while (node := made.get(value)) is not None and base_name(node.op) in (*AVERAGES, *MOVES):
        value = node.inputs[0]
        places = []
        for dim in range(len(context.groups.graph.values[value].shape)):
            units = torch.from_numpy(context.groups.axes.get((value, dim), np.zeros(0, dtype=np.int64)) - start)
            units = units.masked_fill((units < 0) | (units >= size), -1)
            if bool((units >= 0).any()):
                places.append((dim, units))
        if len(places) != 1 or not torch.equal(torch.unique(places[0][1][places[0][1] >= 0]), wanted):
            return found
        if base_name(node.op) in AVERAGES:
            found = Tap(value, *places[0], (node.index,))
    return found


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
