"""One-dimensional k-means by hand, against brute force, and against a k-means that looks at every pair."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from secateurs.base.errors import InputError, UnknownNameError
from secateurs.pack.kmeans import STARTS, Points, cluster, linear, lloyd

NUMBERS = st.floats(-8, 8, width=16).map(lambda x: x + 0.0)
ROWS = st.integers(1, 14).flatmap(lambda n: st.tuples(arrays(np.float32, n, elements=NUMBERS),
                                                      arrays(np.float64, n, elements=st.floats(0.25, 4))))  # fmt: skip


def error(values: np.ndarray, codebook: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The least weighted squared error with these numbers, by looking at all of them for every value."""
    gaps = np.abs(values.astype(np.float64)[:, None] - codebook.astype(np.float64)).min(axis=1) ** 2
    return float((gaps if weights is None else gaps * weights).sum())


def least(values: np.ndarray, k: int, weights: np.ndarray) -> float:
    """The least error of any cut of the sorted values into at most k runs."""
    order = np.argsort(values)
    x, w = values[order].astype(np.float64), weights[order]
    found = np.inf
    for cuts in combinations(range(1, len(x)), min(k, len(x)) - 1):
        parts = list(zip(np.split(x, cuts), np.split(w, cuts), strict=True))
        found = min(found, sum(float((b * (a - np.average(a, weights=b)) ** 2).sum()) for a, b in parts))
    return found


def plain_lloyd(values: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k-means as it is written: nearest by all distances, argmin takes the lower index, an empty cluster stays."""
    before = None
    while True:
        codes = np.abs(values[:, None] - centroids).argmin(axis=1)
        if before is not None and (codes == before).all():
            return codes, centroids
        before = codes
        centroids = np.array([values[codes == i].mean() if (codes == i).any() else c for i, c in enumerate(centroids)])


def test_by_hand() -> None:
    found = cluster([0.0, 1.0, 2.0, 9.0, 10.0, 12.0], 3)
    # 0, 6, 12 -> {0 1 2} {9} {10 12} (9 is a tie: the lower) -> 1, 9, 11 -> {9 10} -> 1, 9.5, 12
    assert found.codebook.tolist() == [1.0, 9.5, 12.0]
    assert found.codes.tolist() == [0, 0, 0, 1, 1, 2]


def test_an_empty_cluster_keeps_its_number() -> None:
    found = cluster([0.0, 0.5, 1.0, 9.0, 9.5, 10.0], 3)
    assert found.codebook.tolist() == [0.5, 5.0, 9.5]


def test_a_tie_goes_to_the_lower_index() -> None:
    assert cluster([0.0, 0.25, 0.5, 1.0, 2.0], 2).codes.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("start", list(STARTS))
def test_few_values_are_exact(start: str) -> None:
    values = np.array([3.0, -1.0, 3.0, 0.1], np.float32)
    found = cluster(values, 3, start=start)
    assert (found.codebook[found.codes] == values).all() and len(found.codebook) == 3


def test_no_values() -> None:
    found = cluster([], 4)
    assert found.codes.shape == found.codebook.shape == (0,)


@given(ROWS, st.integers(1, 5))
def test_as_k_means_that_looks_at_all_pairs(row: tuple[np.ndarray, np.ndarray], k: int) -> None:
    values = np.unique(row[0]).astype(np.float64)
    if len(values) > k:
        _, centroids = plain_lloyd(values, np.linspace(values.min(), values.max(), k))
        found = cluster(values, k)
        np.testing.assert_allclose(found.codebook, centroids, rtol=1e-6, atol=1e-6)
        assert error(values, found.codebook) == pytest.approx(error(values, centroids), abs=1e-4)


@given(ROWS, st.integers(1, 5), st.sampled_from(list(STARTS)), st.integers(0, 3))
def test_the_error_never_grows(row: tuple[np.ndarray, np.ndarray], k: int, start: str, seed: int) -> None:
    values, weights = row
    points = Points(values.astype(np.float64), weights)
    if len(points.values) > k:
        centroids = STARTS[start](points, k, seed)
        errors = [error(values, centroids, weights)] + [error(values, c, weights) for c in lloyd(points, centroids)]
        assert all(after <= before + 1e-9 for before, after in pairwise(errors))


@given(ROWS, st.integers(1, 5), st.sampled_from(list(STARTS)))
def test_the_code_is_the_nearest_number(row: tuple[np.ndarray, np.ndarray], k: int, start: str) -> None:
    found = cluster(row[0], k, start=start, weights=row[1])
    gaps = np.abs(row[0].astype(np.float64) - found.codebook[found.codes])
    assert float((gaps**2).sum()) == error(row[0], found.codebook)
    assert (np.diff(found.codebook) >= 0).all() and len(found.codebook) <= k


@given(ROWS, st.integers(1, 5))
def test_the_optimum_is_that_of_brute_force(row: tuple[np.ndarray, np.ndarray], k: int) -> None:
    values, weights = row
    found = cluster(values, k, start="optimal", weights=weights)
    best = least(values, k, weights)
    assert error(values, found.codebook, weights) == pytest.approx(best, abs=1e-4, rel=1e-5)


def test_weights_count_like_copies() -> None:
    values, copies = np.array([0.0, 1.0, 5.0, 6.0, 6.5], np.float32), np.array([1, 3, 2, 1, 4])
    for start in ("linear", "optimal"):
        repeated = cluster(np.repeat(values, copies), 2, start=start)
        assert cluster(values, 2, start=start, weights=copies).codebook.tolist() == repeated.codebook.tolist()


def test_weights_of_nothing_are_no_weights() -> None:
    values = np.arange(9.0)
    assert cluster(values, 2, weights=np.zeros(9)).codebook.tolist() == cluster(values, 2).codebook.tolist()


def test_starts_by_value() -> None:
    points = Points(np.array([0.0, 1, 2, 3, 4, 5, 6, 28]), None)
    assert linear(points, 3, 0).tolist() == [0, 14, 28]
    assert STARTS["density"](points, 4, 0).tolist() == [0, 2, 4, 6]
    drawn = STARTS["random"](points, 3, 1)
    assert set(drawn) <= set(points.values) and drawn.tolist() == STARTS["random"](points, 3, 1).tolist()
    assert any(drawn.tolist() != STARTS["random"](points, 3, seed).tolist() for seed in range(2, 9))


def test_the_cube_root_start_ends_near_the_optimum() -> None:
    values = np.random.default_rng(0).normal(size=4_000).astype(np.float32)
    errors = {start: error(values, cluster(values, 64, start=start).codebook) for start in STARTS}
    assert errors["optimal"] <= min(errors.values()) * (1 + 1e-6)
    assert errors["cube_root"] < 1.2 * errors["optimal"] < errors["linear"]


def test_many_values_with_an_offset() -> None:
    """Running totals lose nothing that matters where all values lie close together and far from zero."""
    values = (1000 + np.random.default_rng(0).normal(size=20_000)).astype(np.float32)
    found = cluster(values, 16, start="optimal")
    assert error(values, found.codebook) <= error(values, cluster(values, 16).codebook) * (1 + 1e-6)
    means = [values[found.codes == code].astype(np.float64).mean() for code in range(16)]
    np.testing.assert_allclose(found.codebook, means, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "k", "weights"),
    [([1.0, np.nan], 1, None), ([[1.0]], 1, None), ([1.0], 0, None), ([1.0], 70_000, None), ([1.0], True, None),
     ([1.0, 2.0], 1, [1.0]), ([1.0, 2.0], 1, [1.0, -1.0]), ([1.0, 2.0], 1, [1.0, np.inf])],
)  # fmt: skip
def test_refusals(values: list[float], k: int, weights: list[float] | None) -> None:
    with pytest.raises(InputError):
        cluster(values, k, weights=weights)


def test_an_unknown_start() -> None:
    with pytest.raises(UnknownNameError, match="density"):
        cluster([1.0], 1, start="dense")
