"""The searches: how a budget is spread over the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from secateurs.base.registry import Registry
from secateurs.choose.widths import Widths
from secateurs.couple.group import Groups

Scores = Mapping[str, NDArray[np.float64]]
Fits = Callable[[dict[str, int]], bool]
Search = Callable[[Groups, Scores, Widths, Fits], dict[str, int]]
SEARCHES: Registry[Search] = Registry("search")


def largest(count: int, fits: Callable[[int], bool]) -> int:
    """The largest i in 0..count-1 that fits, given that 0 does and that fitting is monotone."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


@SEARCHES.register("uniform")
def uniform(groups: Groups, scores: Scores, widths: Widths, fits: Fits) -> dict[str, int]:
    """The same fraction of every group: the largest fraction that fits.

    A group of n keeps k units for fractions up to `(k + 0.5) / n`, so these are all the fractions worth a try.
    """
    edges = {(k + 0.5) / group.size for group in groups.free for k in range(group.size)}
    fractions = sorted({0.0, 1.0, *edges})

    def at(index: int) -> dict[str, int]:
        return {group.name: kept_at(group.size, fractions[index], group, widths) for group in groups.free}

    return at(largest(len(fractions), lambda index: fits(at(index))))


def kept_at(size: int, fraction: float, group: object, widths: Widths) -> int:
    """Units that stay when `fraction` may remain: exactly `floor((1 - fraction) * size + 0.5)` go, then rounding."""
    gone = int((1 - fraction) * size + 0.5 + 1e-9)
    return widths.nearest(group, size - gone)  # type: ignore[arg-type]


@SEARCHES.register("global")
def ranked(groups: Groups, scores: Scores, widths: Widths, fits: Fits) -> dict[str, int]:
    """One ranking over all units: the lowest threshold whose survivors fit, then what still fits is put back."""
    thresholds = np.unique(np.concatenate([scores[group.name] for group in groups.free]))[::-1]
    ordered = {group.name: np.sort(scores[group.name]) for group in groups.free}

    def at(index: int) -> dict[str, int]:
        if index == 0:
            return {group.name: widths.least(group) for group in groups.free}
        threshold = thresholds[index - 1]
        counts = {name: row.size - int(np.searchsorted(row, threshold)) for name, row in ordered.items()}
        return {group.name: widths.nearest(group, counts[group.name]) for group in groups.free}

    keep = at(largest(thresholds.size + 1, lambda index: fits(at(index))))
    return put_back(groups, scores, widths, fits, keep)


def put_back(groups: Groups, scores: Scores, widths: Widths, fits: Fits, keep: dict[str, int]) -> dict[str, int]:
    """Add steps of units back, best score first, as long as one fits."""
    descending = {group.name: np.sort(scores[group.name])[::-1] for group in groups.free}
    blocked: set[str] = set()
    while True:
        open_groups = [g for g in groups.free if g.name not in blocked and keep[g.name] < g.size]
        if not open_groups:
            return keep
        best = max(open_groups, key=lambda g: float(descending[g.name][keep[g.name]]))
        more = min(best.size, keep[best.name] + widths.step(best))
        trial = {**keep, best.name: more}
        if fits(trial):
            keep = trial
        else:
            blocked.add(best.name)
