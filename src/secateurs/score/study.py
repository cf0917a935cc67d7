"""Rank correlation of two sets of scores, with an interval that says how much the choice of units matters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho over `units` units, and its percentile bootstrap interval; None where one side is constant."""

    rho: float | None
    low: float | None
    high: float | None
    units: int


def spearman(a: Floats, b: Floats) -> Floats:
    """Spearman's rank correlation along the last axis, ties at their average rank; nan where one side is constant."""
    x, y = (np.asarray(rankdata(side, axis=-1), dtype=np.float64) for side in (a, b))
    x, y = (side - side.mean(-1, keepdims=True) for side in (x, y))
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale > 0, (x * y).sum(-1) / scale, np.nan), dtype=np.float64)


def correlation(a: Floats, b: Floats, *, bootstrap: int = 1000, level: float = 0.95, seed: int = 0) -> Correlation:
    """Spearman's rho of two scores per unit `[units]`, with the interval over `bootstrap` resamplings of the units.

    The same seed draws the same units. Resamplings in which one side is constant do not count.
    """
    rho = float(spearman(a, b)) if a.size > 1 else np.nan
    if np.isnan(rho):
        return Correlation(None, None, None, int(a.size))
    drawn = np.random.default_rng(seed).integers(0, a.size, (bootstrap, a.size))
    found = spearman(a[drawn], b[drawn])
    found = found[~np.isnan(found)]
    if not found.size:
        return Correlation(rho, None, None, int(a.size))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Correlation(rho, float(low), float(high), int(a.size))


__all__ = ["Correlation", "correlation", "spearman"]
