"""Rank correlation with ties, and its bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from secateurs.score.study import correlation, spearman


def test_spearman_by_value():
    """Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15) = 0.8; with a tie 1.5 1.5 3 4 it is 4.5 / sqrt(5 * 4.5)."""
    assert float(spearman(np.array([1.0, 5, 6, 9]), np.array([0.0, 1, 8, 3]))) == pytest.approx(0.8)
    assert float(spearman(np.array([1.0, 2, 3, 4]), np.array([7.0, 7, 8, 9]))) == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    assert float(spearman(np.array([1.0, 2, 3]), np.array([9.0, 4, 1]))) == pytest.approx(-1)


@pytest.mark.parametrize("values", [3, 10, 1000])
def test_spearman_is_scipys(values):
    """Few values give many ties."""
    generator = np.random.default_rng(values)
    for size in (2, 5, 40):
        a = generator.integers(0, values, (20, size)).astype(float)
        b = generator.integers(0, values, (20, size)).astype(float)
        for x, y, rho in zip(a, b, spearman(a, b), strict=True):
            constant = len(set(x)) == 1 or len(set(y)) == 1
            assert np.isnan(rho) if constant else rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_interval_is_that_of_resampled_units():
    generator = np.random.default_rng(0)
    a = generator.normal(size=60)
    b = a + generator.normal(size=60)
    found = correlation(a, b, bootstrap=400, seed=3)
    drawn = np.random.default_rng(3).integers(0, 60, (400, 60))
    rhos = [spearmanr(a[rows], b[rows]).statistic for rows in drawn]
    assert found.rho == pytest.approx(spearmanr(a, b).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(rhos, [0.025, 0.975])))
    assert found == correlation(a, b, bootstrap=400, seed=3)


def test_a_constant_side_has_no_correlation():
    found = correlation(np.ones(5), np.arange(5.0))
    assert (found.rho, found.low, found.high, found.units) == (None, None, None, 5)
