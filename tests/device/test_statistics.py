"""Intervals and ratios by value, on made-up samples whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateurs.device.statistics import PLACEMENT, Interval, Ratio, median_interval, paired_ratio, unpaired_ratio

SEEDS = 400


def timings(generator: np.random.Generator, middle: float, rounds: int = 30, noise: float = 0.02) -> np.ndarray:
    """Times as they come: log-normal noise, and one round in ten slowed down by something else on the machine."""
    bumps = (generator.random(rounds) < 0.1) * generator.exponential(0.3, rounds)
    return middle * np.exp(generator.normal(0, noise, rounds)) * (1 + bumps)


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (9, 2), (12, 3), (20, 6), (30, 10), (50, 18), (100, 40)])
def test_median_interval_is_the_textbook_pair_of_order_statistics(count: int, rank: int) -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert median_interval(samples) == Interval(rank, count + 1 - rank)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_fewer_than_six_samples_have_no_interval(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} samples"):
        median_interval([1.0] * count)


@pytest.mark.parametrize("count", [6, 15, 30])
def test_median_interval_covers_the_true_median_of_a_skewed_distribution(count: int) -> None:
    truth = math.log(2)
    hits = sum(truth in median_interval(np.random.default_rng(seed).exponential(1, count)) for seed in range(1000))
    assert 940 <= hits <= 1000


@given(st.lists(st.floats(0.1, 10), min_size=6, max_size=40), st.floats(0.01, 100))
def test_median_interval_scales_with_the_unit(samples: list[float], unit: float) -> None:
    plain, scaled = median_interval(samples), median_interval([sample * unit for sample in samples])
    assert (scaled.low, scaled.high) == (plain.low * unit, plain.high * unit)
    assert plain.low <= float(np.median(samples)) <= plain.high


@pytest.mark.parametrize("compare", [paired_ratio, unpaired_ratio])
def test_same_distribution_is_no_difference_in_95_percent_of_seeds(compare) -> None:
    ratios = []
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        ratios.append(compare(timings(generator, 2.0), timings(generator, 2.0)))
    covered = sum(1.0 in ratio.interval for ratio in ratios)
    assert 0.925 * SEEDS <= covered < SEEDS
    assert sum(ratio.differs for ratio in ratios) <= 0.05 * SEEDS


@pytest.mark.parametrize("compare", [paired_ratio, unpaired_ratio])
def test_a_shift_of_20_percent_in_2_percent_noise_is_always_found(compare) -> None:
    for seed in range(100):
        generator = np.random.default_rng(seed)
        ratio = compare(timings(generator, 1.2), timings(generator, 1.0))
        assert ratio.differs
        assert ratio.value == pytest.approx(1.2, rel=0.03)


@pytest.mark.parametrize("compare", [paired_ratio, unpaired_ratio])
def test_interval_covers_the_true_ratio(compare) -> None:
    covered = 0
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        covered += 1.5 in compare(timings(generator, 3.0), timings(generator, 2.0)).interval
    assert covered >= 0.925 * SEEDS


def test_pairing_cancels_drift_that_would_hide_the_difference() -> None:
    generator = np.random.default_rng(0)
    drift = np.linspace(1, 3, 30)
    slow, fast = drift * timings(generator, 1.05, noise=0.002), drift * timings(generator, 1.0, noise=0.002)
    assert paired_ratio(slow, fast).differs
    assert not unpaired_ratio(slow, fast).differs


@given(st.integers(0, 1000), st.floats(0.5, 2))
def test_swapping_the_two_gives_the_inverse(seed: int, factor: float) -> None:
    generator = np.random.default_rng(seed)
    one, other = timings(generator, 1.0), timings(generator, factor)
    there, back = paired_ratio(one, other), paired_ratio(other, one)
    assert there.value * back.value == pytest.approx(1)
    assert there.interval.low * back.interval.high == pytest.approx(1)
    assert there.differs == back.differs


def test_bootstrap_is_repeatable_and_follows_its_seed() -> None:
    generator = np.random.default_rng(0)
    one, other = timings(generator, 1.0), timings(generator, 1.1)
    assert unpaired_ratio(one, other, seed=3) == unpaired_ratio(one, other, seed=3)
    assert unpaired_ratio(one, other, seed=3).interval != unpaired_ratio(one, other, seed=4).interval


@pytest.mark.parametrize(
    ("low", "high", "differs"),
    [
        (0.97, 1.05, False),
        (1.002, 1.009, False),
        (1.002, 1.2, False),
        (1 + PLACEMENT + 1e-9, 1.2, True),
        (0.8, 0.995, False),
        (0.8, 1 / (1 + PLACEMENT) - 1e-9, True),
    ],
)
def test_a_difference_must_exceed_that_of_two_copies_of_one_model(low: float, high: float, differs: bool) -> None:
    assert Ratio((low * high) ** 0.5, Interval(low, high), paired=True).differs is differs
