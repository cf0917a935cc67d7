"""One-dimensional k-means: numbers sorted once, clusters as intervals, sums over them from running totals.

Han et al., Deep Compression, 2016 (arXiv 1510.00149); the optimal clustering: Wang and Song, Ckmeans.1d.dp, 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secateurs.base.errors import InputError, explain
from secateurs.base.registry import Registry
from secateurs.base.seeds import check_seed
from secateurs.pack.coded import Shared

Doubles = NDArray[np.float64]
Start = Callable[["Points", int, int], Doubles]
"""`(points, k, seed) -> centroids [k]`, ascending."""

LIMIT = 10_000
"""Lloyd steps at most; each one lowers the error, and tens to hundreds are usual."""

SAMPLES = 4
"""Places per centroid at which the density is looked at."""

STARTS: Registry[Start] = Registry("start of k-means")


class Points:
    """Distinct numbers `values` `[n]`, ascending, with what each weighs, and running totals of both (float64)."""

    def __init__(self, numbers: Doubles, weights: Doubles | None) -> None:
        self.values, self.where = np.unique(numbers, return_inverse=True)
        self.mass = np.bincount(self.where, weights, len(self.values)).astype(np.float64)
        self.mass = np.maximum(self.mass, self.mass.max(initial=0.0) * 1e-12)  # so that every cluster has a mean
        self.middle = float(self.values.mean()) if len(self.values) else 0.0
        centred = self.values - self.middle  # sums of large numbers would hide the differences between small ones
        self.total, self.first, self.second = (
            np.concatenate([[0.0], np.cumsum(self.mass * power)]) for power in (1.0, centred, centred * centred)
        )

    def means(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> Doubles:
        """Mean of each run of values `begin..end-1`, none empty; never outside the run."""
        found = (self.first[end] - self.first[begin]) / (self.total[end] - self.total[begin]) + self.middle
        result: Doubles = np.clip(found, self.values[begin], self.values[end - 1])
        return result

    def spread(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> Doubles:
        """Weighted sum of squares around the mean of each run of values, none empty."""
        mass, first = self.total[end] - self.total[begin], self.first[end] - self.first[begin]
        result: Doubles = np.maximum(self.second[end] - self.second[begin] - first * first / mass, 0.0)
        return result


def cluster(
    values: ArrayLike, k: int, *, start: str = "linear", weights: ArrayLike | None = None, seed: int = 0
) -> Shared:
    """A codebook of `k` numbers for `values` `[n]`, ascending, and which one stands for each value: always the nearest.

    Lloyd's steps until assignments stop, from `start`: `"linear"`, evenly from the smallest to the largest value;
    `"density"`, quantiles; `"random"`, Forgy: k of the values, drawn by `seed`; `"cube_root"`, as dense as the cube
    root of the values' density, which for many codes ends far closer to `"optimal"`: the least error there is, by
    dynamic programming in O(k n log n) instead of O(n log n + k log n per step). `weights` `[n]` >= 0 say how much a
    squared error counts at each value. Ties go to the lower index; a cluster that is left empty keeps its number. With
    no more than `k` distinct values the codebook is those values, and exact.

    Raises `InputError` for values that are not finite, weights that do not fit and k outside 1..2^16.
    """
    numbers = np.asarray(values, dtype=np.float32).astype(np.float64)
    points = Points(numbers, _checked(numbers, k, weights))
    begin = STARTS[start]
    if len(points.values) <= k:
        return Shared(points.where.astype(np.int64), points.values.astype(np.float32))
    centroids = begin(points, k, check_seed(seed))
    for step in lloyd(points, centroids):
        centroids = step
    codebook = (centroids + 0.0).astype(np.float32)
    return Shared(nearest(points.values, codebook)[points.where], codebook)


def nearest(values: NDArray[np.floating], codebook: NDArray[np.floating]) -> NDArray[np.int64]:
    """The index of the number in `codebook`, ascending, that is nearest to each value; the lower one of two."""
    found, index = np.unique(codebook.astype(np.float64), return_index=True)
    borders = (found[1:] + found[:-1]) / 2
    chosen: NDArray[np.int64] = index[np.searchsorted(borders, values, side="left")].astype(np.int64)
    return chosen


def lloyd(points: Points, centroids: Doubles) -> Iterator[Doubles]:
    """The centroids after each step, until assignments stop. Of two equal ones the upper takes what lies above."""
    before: NDArray[np.int64] | None = None
    for _ in range(LIMIT):
        ends = np.searchsorted(points.values, (centroids[1:] + centroids[:-1]) / 2, side="right")
        edges = np.concatenate([[0], ends, [len(points.values)]])
        if before is not None and np.array_equal(edges, before):
            return
        before = edges
        filled = edges[1:] > edges[:-1]
        centroids = centroids.copy()
        centroids[filled] = points.means(edges[:-1][filled], edges[1:][filled])
        yield centroids


@STARTS.register("linear")
def linear(points: Points, k: int, seed: int) -> Doubles:
    """`min + (max - min) * i / (k - 1)`: large values, which are few, are represented too."""
    return np.linspace(points.values[0], points.values[-1], k)


@STARTS.register("density")
def density(points: Points, k: int, seed: int) -> Doubles:
    """The values at which the running total of the weights passes `(i + 1/2) / k`."""
    wanted = points.total[-1] * (np.arange(k) + 0.5) / k
    found: Doubles = points.values[np.searchsorted(points.total[1:-1], wanted)]
    return found


@STARTS.register("random")
def random(points: Points, k: int, seed: int) -> Doubles:
    """Forgy: k distinct values, each drawn with a probability in proportion to its weight."""
    shares = points.mass / points.mass.sum()
    drawn: Doubles = np.random.default_rng(seed).choice(points.values, k, replace=False, p=shares)
    return np.sort(drawn)


@STARTS.register("cube_root")
def cube_root(points: Points, k: int, seed: int) -> Doubles:
    """Centroids as dense as the cube root of the values' density, near the optimum for many (Panter and Dite, 1951)."""
    step = max(1, len(points.values) // (SAMPLES * k))
    knots = np.append(np.arange(0, len(points.values) - 1, step), len(points.values) - 1)
    mass, gap = np.diff(points.total[knots]), np.diff(points.values[knots])
    running = np.concatenate([[0.0], np.cumsum(np.cbrt(mass * gap * gap))])
    placed: Doubles = np.interp(running[-1] * (np.arange(k) + 0.5) / k, running, points.values[knots])
    return placed


@STARTS.register("optimal")
def optimal(points: Points, k: int, seed: int) -> Doubles:
    """The centroids of the least error: cuts between values, one more cluster at a time."""
    count = len(points.values)
    ends = np.arange(1, count + 1)
    error = points.spread(np.zeros(count, np.int64), ends)  # of the first n values as one cluster
    cuts = []
    for clusters in range(2, k + 1):
        error, cut = _one_more(points, error, clusters)
        cuts.append(cut)
    edges = [count]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1] - 1]))
    bounds = np.array([0, *reversed(edges)])
    return points.means(bounds[:-1], bounds[1:])


def _one_more(points: Points, error: Doubles, clusters: int) -> tuple[Doubles, NDArray[np.int32]]:
    """Least error of the first n values in `clusters` clusters, n = 1.., and where the last cluster begins.

    The best beginning grows with n, so that the middle n of a range narrows the search on both sides of it; all ranges
    of one depth are searched at once.
    """
    count = len(error)
    best, cut = np.full(count, np.inf), np.zeros(count, np.int32)
    low, high = np.array([clusters - 1]), np.array([count])  # ranges of n - 1: low <= n - 1 < high
    first, last = np.array([clusters - 1]), np.array([count - 1])  # where the last cluster may begin, inclusive
    while len(low):
        middle = (low + high) // 2
        lengths = np.minimum(last, middle) - first + 1
        offsets = np.cumsum(lengths) - lengths
        owner = np.repeat(np.arange(len(middle)), lengths)
        begin = np.arange(int(lengths.sum())) - offsets[owner] + first[owner]
        total = error[begin - 1] + points.spread(begin, middle[owner] + 1)
        best[middle] = np.minimum.reduceat(total, offsets)
        hits = np.flatnonzero(total == best[middle][owner])
        chosen = begin[hits[np.unique(owner[hits], return_index=True)[1]]]
        cut[middle] = chosen
        low, high = np.concatenate([low, middle + 1]), np.concatenate([middle, high])
        first, last = np.concatenate([first, chosen]), np.concatenate([chosen, last])
        open_ = low < high
        low, high, first, last = low[open_], high[open_], first[open_], last[open_]
    return best, cut


def _checked(numbers: Doubles, k: int, weights: ArrayLike | None) -> Doubles | None:
    if isinstance(k, bool) or not 1 <= k <= 1 << 16:
        raise InputError(explain(f"A codebook of {k} numbers cannot be made", next_step="give from 1 to 65536"))
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise InputError(
            explain("Values to cluster must be a row of finite numbers", evidence=f"shape {numbers.shape}")
        )
    if weights is None:
        return None
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != numbers.shape or not np.isfinite(given).all() or (given < 0).any():
        raise InputError(
            explain("Weights must be finite, at least 0, one per value", evidence=f"{given.shape} for {numbers.shape}")
        )
    return given if given.any() else None


__all__ = ["STARTS", "cluster", "nearest"]
