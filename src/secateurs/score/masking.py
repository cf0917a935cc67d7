"""Mask these units, evaluate: what networks with some units silenced give, many of them for little.

Every variant is the same network up to the first place where one of its masked units is summed away. So each batch runs
once, stops before the first such place of each variant, and only the rest runs again: with the samples of several
variants side by side, and without the samples in which the masked channels are zero anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.capture.program import BatchAxis, Read, State
from secateurs.capture.rows import Rows
from secateurs.couple.group import Bools
from secateurs.score.criterion import Context
from secateurs.score.products import product_at
from secateurs.score.samples import Batch

Units = Mapping[str, Sequence[int]]
"""Units to mask, by group name."""

Measure = Callable[[Batch, Any], Tensor]
"""`(batch, what the model returns) -> scalar`, the mean over the batch."""

MEMORY = 32 * 2**20
"""Bytes of activations that the rows of one pass may take, unless told otherwise."""


@dataclass(frozen=True)
class _Variant:
    """One set of masked units: which indices stay at each place, `(node, value, dim) -> kept`; none for no units."""

    number: int
    first: int
    keeps: Mapping[tuple[int, int, int], Bools]
    inside: bool


def masked_means(
    context: Context, variants: Sequence[Units], measure: Measure | None = None, *, memory: int = MEMORY
) -> tuple[float, Tensor]:
    """The mean of `measure` over the data: of the network as it is, and `[variants]` with the units of each masked.

    `measure` is the loss by default. `memory` limits the bytes of activations of one pass; results do not depend on it
    but for rounding. Raises `InputError` for an unknown unit, or when there is no data.
    """
    measure = measure or (lambda batch, output: batch.loss_of(output))
    planned = _planned(context, variants)
    total, plain = 0, 0.0
    sums = torch.zeros(len(variants), dtype=torch.float64)
    with torch.no_grad():
        for batch in context.batches():
            run = _Run(context, batch, memory)
            whole = float(measure(batch, run.whole))
            values = torch.full_like(sums, whole)
            for number, output in run.outputs(planned):
                values[number] = float(measure(batch, output))
            total += batch.size
            plain += whole * batch.size
            sums += values * batch.size
    return plain / total, sums / total


def _planned(context: Context, variants: Sequence[Units]) -> list[_Variant]:
    """The variants that mask something, those that branch off first in front."""
    found: list[_Variant] = []
    for number, masked in enumerate(variants):
        keeps: dict[tuple[int, int, int], Bools] = {}
        inside = False
        for name, units in masked.items():
            size = context.groups[name].size
            if units and not 0 <= min(units) <= max(units) < size:
                raise InputError(explain("There is no such unit", where=f"group `{name}`", evidence=f"{max(units)}"))
            for site in context.sites.get(name, ()) if len(units) else ():
                kept = ~np.isin(site.units, np.asarray(units))
                place = site.node, site.value, site.dim
                keeps[place] = keeps[place] & kept if place in keeps else kept
                inside = inside or site.inside
        if keeps:
            found.append(_Variant(number, min(node for node, _, _ in keeps), keeps, inside))
    return sorted(found, key=lambda variant: (variant.first, variant.number))


class _Run:
    """One batch: its untouched output, and the outputs of variants."""

    def __init__(self, context: Context, batch: Batch, memory: int) -> None:
        self.batch = batch
        self.program = batch.program
        self.rows = batch.rows()
        self.memory = memory
        self.zero: dict[tuple[int, int], Tensor] = {}
        self._behind: State | None = None
        self.state = self.program.run(batch.begin(), reads=self._watch(context))
        self.whole = self.program.output(self.state)

    def _watch(self, context: Context) -> dict[int, Read]:
        """Reads that note, for each value in which units are summed away, the samples whose channels are all zero."""
        dims: dict[int, set[tuple[int, int]]] = {}
        for site in (site for sites in context.sites.values() for site in sites):
            if self.rows is not None and not site.inside and self.rows.axes[site.value].dim != site.dim:
                dims.setdefault(site.node, set()).add((site.value, site.dim))

        def read(here: set[tuple[int, int]]) -> Read:
            def note(value: int, tensor: Tensor) -> Tensor:
                for place in here:
                    if place[0] == value:
                        zero = self._all_zero(*place, tensor)
                        self.zero[place] = self.zero[place] & zero if place in self.zero else zero
                return tensor

            return note

        return {node: read(here) for node, here in dims.items()}

    def _all_zero(self, value: int, dim: int, tensor: Tensor) -> Tensor:
        """`[samples, indices along dim]`: whether the sample's entries at this index are all zero."""
        assert self.rows is not None
        axis = self.rows.axes[value]
        moved = axis.by_sample(tensor != 0).movedim(2 + dim - (dim > axis.dim), 1)
        return ~moved.flatten(2).any(2)

    def outputs(self, variants: Sequence[_Variant]) -> Iterator[tuple[int, Any]]:
        """`(number, what the model returns)` for every variant whose output is not the untouched one."""
        trunk = self.batch.begin()
        start = 0
        while start < len(variants):
            first = variants[start].first
            end = next((i for i in range(start, len(variants)) if variants[i].first > first), len(variants))
            self.program.run(trunk, first)
            able = self.rows is not None and self.rows.able(first)
            together = [variant for variant in variants[start:end] if able and self._rowwise(variant)]
            if together:
                assert self.rows is not None
                yield from self._side_by_side(self.rows, trunk, together)
            for variant in variants[start:end]:
                if variant not in together:
                    yield variant.number, self._alone(trunk, variant)
            start = end

    def _rowwise(self, variant: _Variant) -> bool:
        assert self.rows is not None
        return not variant.inside and all((value, dim) in self.zero for _, value, dim in variant.keeps)

    def _alone(self, trunk: State, variant: _Variant) -> Any:
        """The output of one variant, on the whole batch."""
        reads: dict[int, Read] = {}
        for node in {node for node, _, _ in variant.keeps}:
            here = {(value, dim): keep for (at, value, dim), keep in variant.keeps.items() if at == node}
            reads[node] = lambda value, tensor, here=here: _masked(value, tensor, here)  # type: ignore[misc]
        return self.program.output(self.program.run(self.program.branch(trunk), reads=reads))

    def _side_by_side(self, rows: Rows, trunk: State, variants: Sequence[_Variant]) -> Iterator[tuple[int, Any]]:
        """The outputs of variants that branch off here, samples of several in one pass."""
        touched = [self._touched(variant, rows.count) for variant in variants]
        owner = torch.cat([torch.full_like(samples, i) for i, samples in enumerate(touched)])
        samples = torch.cat(touched)
        step = max(1, self.memory // max(1, rows.bytes_per_row(trunk.position)))
        outputs = {value: self.state.values[value] for value in self.program.graph.outputs if value in rows.axes}
        results = [dict(outputs) for _ in variants]
        left = [samples.numel() for samples in touched]
        for low in range(0, len(samples), step):
            mine, at = owner[low : low + step], samples[low : low + step]
            found = self._pass(rows, trunk, variants, mine, at)
            for i in sorted(set(mine.tolist())):
                here = (mine == i).nonzero().flatten()
                for value, tensor in found.items():
                    axis = rows.axes[value]
                    part = tensor.index_select(axis.dim, axis.places(here, len(mine)))
                    results[i][value] = results[i][value].index_copy(axis.dim, axis.places(at[here], rows.count), part)
                left[i] -= len(here)
                if not left[i]:
                    yield variants[i].number, self._output(results[i])
                    results[i] = {}

    def _touched(self, variant: _Variant, count: int) -> Tensor:
        """Numbers of the samples in which a masked channel is not all zero."""
        touched: Tensor | None = None
        for (_, value, dim), keep in variant.keeps.items():
            zero = self.zero[value, dim]
            seen = ~zero[:, torch.from_numpy(~keep).to(zero.device)].all(1)
            touched = seen if touched is None else touched | seen
        assert touched is not None and len(touched) == count
        return touched.nonzero().flatten()

    def _pass(
        self, rows: Rows, trunk: State, variants: Sequence[_Variant], owner: Tensor, samples: Tensor
    ) -> dict[int, Tensor]:
        """One run of the rest: row i is sample `samples[i]` of variant `owner[i]`. The outputs by value number."""
        low, high = int(owner[0]), int(owner[-1]) + 1
        program = rows.at(len(samples), samples.device)
        state = self._subtracted(rows, trunk, variants, owner, samples) or rows.take(trunk, samples)
        reads: dict[int, Read] = {}
        for node in {node for variant in variants[low:high] for node, _, _ in variant.keeps}:
            here: dict[tuple[int, int], Tensor] = {}
            for value, dim in {(v, d) for variant in variants[low:high] for n, v, d in variant.keeps if n == node}:
                full = np.ones(self.zero[value, dim].shape[1], np.bool_)
                table = [variant.keeps.get((node, value, dim), full) for variant in variants[low:high]]
                keep = torch.from_numpy(np.stack(table)).to(samples.device)[owner - low]
                here[value, dim] = rows.axes[value].per_entry(keep)
            reads[node] = lambda value, tensor, here=here: _masked_rows(rows, value, tensor, here)  # type: ignore[misc]
        program.run(state, reads=reads)
        return {value: state.values[value] for value in self.program.graph.outputs if value in rows.axes}

    def _subtracted(
        self, rows: Rows, trunk: State, variants: Sequence[_Variant], owner: Tensor, samples: Tensor
    ) -> State | None:
        """The rows behind the node where the variants branch off, if it is linear: its output, less what they mask.

        None where taking the masked channels' own contribution away is no shorter than running the node.
        """
        product = product_at(self.program, trunk.position)
        mine = variants[int(owner[0]) : int(owner[-1]) + 1]
        if product is None or rows.axes[product.value] != BatchAxis(0, 1) or not rows.able(trunk.position + 1):
            return None
        if not all(product.short(variant.keeps) for variant in mine):
            return None
        if self._behind is None or self._behind.position != trunk.position + 1:
            self._behind = self.program.run(self.program.branch(trunk), trunk.position + 1)
        if product.output not in self._behind.values:  # nothing reads it: already forgotten
            return None
        state = rows.take(self._behind, samples)
        result = state.values[product.output]
        x = trunk.values[product.value]
        for i in sorted(set(owner.tolist())):
            here = (owner == i).nonzero().flatten()
            part = slice(int(here[0]), int(here[-1]) + 1)
            (keep,) = (keep for (node, _, _), keep in variants[i].keeps.items() if node == trunk.position)
            result[part] -= product.part(x, samples[part], torch.from_numpy(np.flatnonzero(~keep)).to(x.device))
        return state

    def _output(self, values: Mapping[int, Tensor]) -> Any:
        return self.program.output(State({**self.state.values, **values}, self.state.position))


def _masked(value: int, tensor: Tensor, keeps: Mapping[tuple[int, int], Bools]) -> Tensor:
    for (masked, dim), keep in keeps.items():
        if masked == value:
            shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
            tensor = tensor * torch.from_numpy(keep).to(tensor).view(shape)
    return tensor


def _masked_rows(rows: Rows, value: int, tensor: Tensor, keeps: Mapping[tuple[int, int], Tensor]) -> Tensor:
    for (masked, dim), keep in keeps.items():
        if masked == value:
            axis = rows.axes[value]
            table = keep if axis.dim < dim else keep.T
            shape = [tensor.shape[d] if d in (axis.dim, dim) else 1 for d in range(tensor.dim())]
            tensor = tensor * table.reshape(shape).to(tensor.dtype)
    return tensor


__all__ = ["MEMORY", "Measure", "Units", "masked_means"]
