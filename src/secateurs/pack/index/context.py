"""One bit per entry, each coded with the probability that its neighbours, its row and its column give it.

The mask is gone through in steps, a column of it at a time (or a row, where that is shorter), and all entries of a step
side by side: their probabilities follow from earlier steps alone. Whole numbers throughout, so that every machine gets
the same ones. A logistic mixture of contexts as in Mahoney, Adaptive weighing of context models, 2005.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from constriction import stream as constriction
from numpy.typing import NDArray

from secateurs.pack.coded import Bools
from secateurs.pack.entropy.ans import PRECISION, from_words, to_words
from secateurs.pack.index.encoding import Encoding, Field, Grid, Index, Mask, Positions, Read, ascending, encoding
from secateurs.pack.refuse import refused

FEATURES = 11
UNIT = 16
"""Weights of features are stored in parts of this."""

NEAREST = 4
"""The smallest lag: the neighbour that far back, and those on both sides of it, are looked at."""

LAGS = 128
"""Lags that are looked for."""

MOST_STEPS, MOST_ENTRIES = 1 << 12, 1 << 20
"""Larger masks are not coded so: every step takes some tens of microseconds."""

WORTH = 32
"""Kept entries below which weights cost more than they save."""

FITTED = 60_000
"""Entries that are not kept, at most about, to which weights are fitted."""
ROUNDS = 12
RIDGE = 0.5
_FAR = 18 << 8
"""Least and largest logit, base 2, in parts of 256."""

Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]


def log2(numbers: Integers) -> Integers:
    """`floor(256 * (e + n / 2^e - 1))` of every n >= 1, where e = floor(log2 n) (Mitchell, 1962)."""
    whole = np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1
    found: Integers = (whole << 8) + ((numbers << 8) >> whole) - 256
    return found


def logit(part: Integers, whole: int) -> Integers:
    """Of `part / whole`, base 2, in parts of 256."""
    return log2(part) - log2(whole - part)


def of_one(part: int, whole: int) -> int:
    """`logit` of a single number."""
    return _log2(part) - _log2(whole - part)


def _log2(number: int) -> int:
    whole = number.bit_length() - 1
    return (whole << 8) + ((number << 8) >> whole) - 256


class Past:
    """What is known of `[lanes]` entries of a step before it is coded: the steps before it, and their sums."""

    def __init__(self, lanes: int, steps: int, lag: int) -> None:
        self.distances = (1, 2, lag, lag + 1, lag - 1)
        self.lanes, self.step, self.total = lanes, 0, 0
        self.bits = np.zeros((lag + 1 + steps, lanes), dtype=np.int64)
        self.before = lag + 1
        """Rows of `bits` that stand for steps before the first."""
        self.sums = [0] * len(self.bits)
        self.kept = np.zeros(lanes, dtype=np.int64)

    def features(self) -> Integers:
        """What the logit is made of, `[FEATURES, lanes]`, in parts of 256."""
        lanes, step = self.lanes, self.step
        at = self.before + step
        sums = [self.sums[at - distance] for distance in self.distances]
        share = ((2 * self.total + 1) << 16) // (2 * step * lanes + 20)
        near = ((2 * sums[0] + sums[1] + 2 * sums[2] + sums[3] + sums[4]) << 16) + 2 * share + 1
        column = of_one(near, (7 * lanes + 2 << 16) + 2)
        base = of_one(2 * self.total + 1, 2 * step * lanes + 20)
        row = logit((self.kept << 17) + (3 * share + 1), (2 * step + 3 << 16) + 2)
        found = np.empty((FEATURES, lanes), dtype=np.int64)
        found[0], found[1], found[2], found[8] = 256, row, column, base
        for place, distance in enumerate(self.distances):
            found[3 + place] = self.bits[at - distance] << 8
        found[9], found[10] = found[3] & found[4], found[3] & found[5]
        return found

    def add(self, bits: NDArray[np.integer]) -> None:
        """The entries of this step, 0 or 1; on to the next."""
        at = self.before + self.step
        self.bits[at] = bits
        self.sums[at] = int(np.count_nonzero(bits))
        self.kept += self.bits[at]
        self.total += self.sums[at]
        self.step += 1


def frequencies(features: Integers, weights: Integers) -> Integers:
    """Of 2^24, how probable a kept entry is: `[lanes]`."""
    mixed = np.clip((weights @ features) >> 4, -_FAR, _FAR)
    distance = np.abs(mixed)
    odds = ((512 - (distance & 255)) << (PRECISION - 9)) >> (distance >> 8)
    rarer = (odds << PRECISION) // (odds + (1 << PRECISION))
    found: Integers = np.where(mixed <= 0, rarer, (1 << PRECISION) - rarer)
    return found


def chances(found: Integers) -> Doubles:
    """The numbers that make the coder take exactly these frequencies, of which it gives each symbol 1 beforehand."""
    return (found - 1.5) / ((1 << PRECISION) - 2)


@encoding
class Context(Encoding):
    """Parameters: twice the lag, plus 1 where steps are rows; bytes. Field: they, weights and an ANS stream."""

    name, code, parameters, fields, slow = "context", 6, 2, 1, True

    def choices(self, mask: Mask) -> list[tuple[int, ...]]:
        """The lag and direction of the fewest estimated bits."""
        found = [
            (_cost(features, bits, _fit(features, bits)), 2 * lag + turned)
            for turned in (0, 1)
            if mask.count >= WORTH and _fits(mask.grid, turned)
            for lag in _lags(_steps(mask, turned))
            for features, bits in [_all(mask, 2 * lag + turned)]
        ]
        if not found:
            return []
        form = min(found)[1]
        return [(form, len(_written(mask, form)))]

    def bits(self, mask: Mask, parameters: tuple[int, ...]) -> int:
        return 8 * parameters[1]

    def encode(self, mask: Mask, parameters: tuple[int, ...]) -> Index:
        data = _written(mask, parameters[0])
        return Index(self.name, (parameters[0], len(data)), (Field(np.frombuffer(data, np.uint8), 256),))

    def check(self, parameters: tuple[int, ...], grid: Grid, count: int) -> None:
        form, size = parameters
        steps = (grid.columns, grid.rows)[form & 1]
        if not count or not _fits(grid, form & 1) or not NEAREST <= form >> 1 <= max(NEAREST, steps):
            raise refused(f"contexts with a lag of {form >> 1:,} for {count:,} entries of {grid.size:,}")
        if not FEATURES < size <= FEATURES + 4 * grid.size + 8:
            raise refused(f"{size:,} bytes say which of {grid.size:,} entries are kept")

    def decode(self, grid: Grid, count: int, parameters: tuple[int, ...], read: Read) -> tuple[Positions, Bools | None]:
        form, size = parameters
        data = read(size, 256).astype(np.uint8)
        weights = data[:FEATURES].view(np.int8).astype(np.int64)
        lanes, steps = (grid.rows, grid.columns) if form % 2 == 0 else (grid.columns, grid.rows)
        past = Past(lanes, steps, form >> 1)
        ans, model = constriction.stack.AnsCoder(to_words(data[FEATURES:].tobytes())), _MODEL
        for _ in range(steps):
            past.add(ans.decode(model, chances(frequencies(past.features(), weights))))
        if not ans.is_empty():
            raise refused("the coder of an index is not at its beginning after the last entry")
        bits = past.bits[past.before :]
        return ascending(np.flatnonzero(bits if form % 2 else bits.T), grid, count), None


_MODEL = constriction.model.Bernoulli(perfect=False)


def _fits(grid: Grid, turned: int) -> bool:
    steps = (grid.columns, grid.rows)[turned]
    return 0 < grid.size <= MOST_ENTRIES and steps <= MOST_STEPS


def _steps(mask: Mask, turned: int) -> Bools:
    """The mask, `[steps, lanes]`."""
    return mask.kept if turned else mask.kept.T


def _lags(steps: Bools) -> list[int]:
    """The least, and the one at which kept entries most often meet kept ones."""
    found = {NEAREST}
    last = min(LAGS, len(steps) - 1)
    if last > NEAREST:
        meet = [np.count_nonzero(steps[lag:] & steps[:-lag]) / (len(steps) - lag) for lag in range(NEAREST, last + 1)]
        found.add(NEAREST + int(np.argmax(meet)))
    return sorted(found)


def _all(mask: Mask, form: int) -> tuple[Integers, Bools]:
    """The features `[FEATURES, entries]` of all entries in the order of coding, and whether each is kept."""
    steps = np.ascontiguousarray(_steps(mask, form & 1))
    past = Past(steps.shape[1], len(steps), form >> 1)
    return np.concatenate(list(_each(past, steps)), axis=1), steps.reshape(-1)


def _each(past: Past, steps: Bools) -> Iterator[Integers]:
    for bits in steps:
        yield past.features()
        past.add(bits)


def _fit(features: Integers, bits: Bools) -> Integers:
    """The weights of the fewest bits, by Newton's method on the kept entries and some of the others."""
    others = np.flatnonzero(~bits)
    every = max(1, others.size // FITTED)
    chosen = np.concatenate([np.flatnonzero(bits), others[::every]])
    counts = np.where(bits[chosen], 1.0, every)
    inputs = features[:, chosen].T * (np.log(2) / 256)
    wanted = bits[chosen].astype(np.float64)
    weights = np.zeros(FEATURES)
    weights[8] = 1.0
    best, least, most = weights, np.inf, 127 / UNIT
    for _ in range(ROUNDS):
        given = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        loss = -float((counts * np.log(np.where(wanted > 0, given, 1 - given))).sum())
        best, least = (weights, loss) if loss < least else (best, least)
        bend = (inputs * (counts * given * (1 - given))[:, None]).T @ inputs + RIDGE * np.eye(FEATURES)
        slope = inputs.T @ (counts * (wanted - given)) - RIDGE * weights
        weights = np.clip(weights + np.clip(np.linalg.solve(bend, slope), -1.0, 1.0), -most, most)
    return np.rint(best * UNIT).astype(np.int64)


def _cost(features: Integers, bits: Bools, weights: Integers) -> float:
    """Bits that the entries take."""
    kept = frequencies(features, weights)
    return float(-np.log2(np.where(bits, kept, (1 << PRECISION) - kept) / (1 << PRECISION)).sum())


def _written(mask: Mask, form: int) -> bytes:
    features, bits = _all(mask, form)
    weights = _fit(features, bits)
    ans = constriction.stack.AnsCoder()
    ans.encode_reverse(bits.astype(np.int32), _MODEL, chances(frequencies(features, weights)))
    return weights.astype(np.int8).tobytes() + from_words(ans.get_compressed())


__all__ = ["Context"]
