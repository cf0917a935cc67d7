"""What a handful of noisy timings allows one to say.

Timings are skewed and have outliers, so everything here rests on medians and ranks; nothing assumes a normal
distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
FEWEST_ROUNDS = 6
RESAMPLES = 4000
PLACEMENT = 0.01
"""Two copies of one model differ by up to this fraction for as long as they live, because of where their weights lie
in memory; more rounds do not help (Mytkowicz et al. 2009, *Producing wrong data without doing anything
obviously wrong*).
"""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval, ends included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Ratio:
    """How many times larger the baseline is than the candidate: above 1, the candidate is faster."""

    value: float
    interval: Interval
    paired: bool

    @property
    def differs(self) -> bool:
        """True when the whole interval lies further from 1 than two copies of one model do."""
        return self.interval.low > 1 + PLACEMENT or self.interval.high < 1 / (1 + PLACEMENT)


def median_interval(samples: Sequence[float] | Floats) -> Interval:
    """The interval between two order statistics that holds the true median with at least 95 % confidence.

    The number of samples below the median is binomial(n, 1/2) whatever their distribution (Conover, *Practical
    Nonparametric Statistics*, 3.2), so the interval is exact and needs no resampling. Needs 6 samples or more.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    count = len(ordered)
    if count < FEWEST_ROUNDS:
        raise ValueError(f"{count} samples cannot give a 95 % interval of the median; {FEWEST_ROUNDS} can")
    rank, tail = 0, 1 / 2**count
    while tail <= (1 - CONFIDENCE) / 2:
        rank += 1
        tail += comb(count, rank) / 2**count
    return Interval(float(ordered[rank - 1]), float(ordered[count - rank]))


def paired_ratio(baseline: Sequence[float], candidate: Sequence[float]) -> Ratio:
    """Median of the ratios baseline / candidate of rounds run side by side, so that drift cancels."""
    logs = np.log(np.asarray(baseline, dtype=np.float64)) - np.log(np.asarray(candidate, dtype=np.float64))
    within = median_interval(logs)
    low, high = float(np.exp(within.low)), float(np.exp(within.high))
    return Ratio(float(np.exp(np.median(logs))), Interval(low, high), paired=True)


def unpaired_ratio(baseline: Sequence[float], candidate: Sequence[float], seed: int = 0) -> Ratio:
    """Ratio of the medians of two separate runs, with a percentile bootstrap interval (Efron 1979).

    The interval holds the noise within each run, not what changed on the machine between them.
    """
    generator = np.random.default_rng(seed)
    tops, bottoms = (_resampled_medians(samples, generator) for samples in (baseline, candidate))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(tops / bottoms, (tail, 1 - tail))
    return Ratio(float(np.median(baseline) / np.median(candidate)), Interval(float(low), float(high)), paired=False)


def _resampled_medians(samples: Sequence[float], generator: np.random.Generator) -> Floats:
    values = np.asarray(samples, dtype=np.float64)
    picks = generator.integers(0, len(values), size=(RESAMPLES, len(values)))
    medians: Floats = np.median(values[picks], axis=1)
    return medians
