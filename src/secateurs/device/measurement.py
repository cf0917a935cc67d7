"""`Measurement`, `Measurements`, `Comparison`: timings as data that can be printed, saved and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.units import TIME
from secateurs.device.environment import Environment
from secateurs.device.statistics import PLACEMENT, Interval, Ratio, median_interval, paired_ratio, unpaired_ratio


@dataclass(frozen=True)
class Measurement:
    """How long one run of a model takes. All times are seconds per run.

    `samples` holds one time per round, each the mean of `runs_per_sample` runs in a row. `started` is when the rounds
    began: measurements that share it were taken in the same rounds, in turn.
    """

    name: str
    device: str
    samples: tuple[float, ...]
    runs_per_sample: int
    threads: int
    warmup: int
    seed: int
    started: str
    environment: Environment

    @property
    def median(self) -> float:
        """Median time of one run, in seconds."""
        return float(np.median(self.samples))

    @cached_property
    def interval(self) -> Interval:
        """95 % confidence interval of the median, in seconds."""
        return median_interval(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the rounds, in seconds."""
        low, high = np.quantile(self.samples, (0.25, 0.75))
        return float(low), float(high)

    @property
    def iqr(self) -> float:
        """Interquartile range: the spread of the middle half of the rounds, in seconds."""
        low, high = self.quartiles
        return high - low

    @property
    def rounds(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def against(self, baseline: Measurement) -> Comparison:
        """Compare with a baseline; this measurement is the candidate."""
        return Comparison(candidate=self, baseline=baseline)

    def differs_from(self, other: Measurement) -> bool:
        """True when the ratio of the two times is measurably not 1; see `Comparison.differs`."""
        return self.against(other).differs

    def to_dict(self) -> dict[str, Any]:
        """JSON data: every field, and the statistics that follow from the samples."""
        derived = {"median": self.median, "interval": [self.interval.low, self.interval.high], "iqr": self.iqr}
        return {**asdict(self), "samples": list(self.samples), "unit": "s", **derived}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The measurement back from `to_dict`. Raises `InputError` on other data."""
        try:
            return cls(
                name=str(data["name"]),
                device=str(data["device"]),
                samples=tuple(float(sample) for sample in data["samples"]),
                runs_per_sample=int(data["runs_per_sample"]),
                threads=int(data["threads"]),
                warmup=int(data["warmup"]),
                seed=int(data["seed"]),
                started=str(data["started"]),
                environment=Environment(**data["environment"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                explain("This is not a measurement", evidence=repr(error), next_step="write it with `to_dict`")
            ) from error

    def __str__(self) -> str:
        return f"{self.name} on {self.device}: {self._numbers()}; {self.environment}"

    def _numbers(self) -> str:
        median, low, high, spread = map(TIME.format, (self.median, self.interval.low, self.interval.high, self.iqr))
        rounds = f"{self.rounds} rounds of {_count(self.runs_per_sample, 'run')}, {_count(self.threads, 'thread')}"
        return f"median {median} (95 % interval {low} to {high}), interquartile range {spread}, {rounds}"


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline.

    Rounds that ran side by side are compared pairwise, so that what slows down the machine for a while cancels.
    Measurements of separate runs are compared by their medians; then what changed on the machine in between counts as
    a difference, and the verdict says that they were taken apart.
    """

    candidate: Measurement
    baseline: Measurement

    @property
    def paired(self) -> bool:
        """True when both were measured in the same rounds."""
        here, there = self.candidate, self.baseline
        return (here.started, here.environment, here.rounds) == (there.started, there.environment, there.rounds)

    @cached_property
    def ratio(self) -> Ratio:
        """Baseline time / candidate time, with its interval."""
        if self.paired:
            return paired_ratio(self.baseline.samples, self.candidate.samples)
        return unpaired_ratio(self.baseline.samples, self.candidate.samples, seed=self.candidate.seed)

    @property
    def speedup(self) -> float:
        """Baseline time / candidate time: above 1, the candidate is faster."""
        return self.ratio.value

    @property
    def interval(self) -> Interval:
        """95 % confidence interval of the speedup."""
        return self.ratio.interval

    @property
    def differs(self) -> bool:
        """True when the 95 % interval excludes 1 and every ratio that two copies of one model can have (1 % off)."""
        return self.ratio.differs

    @property
    def verdict(self) -> str:
        """One sentence that claims no more than the rounds support."""
        value, low, high = self.speedup, self.interval.low, self.interval.high
        apart = "" if self.paired else ", measured apart"
        if not self.differs:
            digits = 2 if 1 in self.interval else 4
            copies = "" if 1 in self.interval else f"; two copies of one model can differ by {PLACEMENT * 100:g} %"
            numbers = f"ratio {value:.{digits}f}, 95 % interval {low:.{digits}f} to {high:.{digits}f}"
            return f"no measurable difference ({numbers}{apart}{copies})"
        word = "faster"
        if value < 1:
            word, value, low, high = "slower", 1 / value, 1 / high, 1 / low
        return f"{value:.2f}x {word} (95 % interval {low:.2f} to {high:.2f}{apart})"

    def to_dict(self) -> dict[str, Any]:
        """JSON data: both measurements and what follows from them."""
        return {
            "candidate": self.candidate.to_dict(),
            "baseline": self.baseline.to_dict(),
            "speedup": self.speedup,
            "interval": [self.interval.low, self.interval.high],
            "paired": self.paired,
            "differs": self.differs,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        title = f"{self.candidate.name} against {self.baseline.name}: {self.verdict}"
        return f"{title}\n  {self.baseline}\n  {self.candidate}"


@dataclass(frozen=True)
class Measurements(Mapping[str, Measurement]):
    """Several models measured in the same rounds, by name; the first one is the baseline of the printed verdicts."""

    entries: tuple[Measurement, ...]

    def __getitem__(self, name: str) -> Measurement:
        for entry in self.entries:
            if entry.name == name:
                return entry
        close = nearest(name, self)
        raise UnknownNameError(
            explain(
                f"No model named {name!r} was measured",
                evidence=f"measured: {', '.join(self)}",
                next_step=f"did you mean {close[0]!r}?" if close else "pick one of the measured names",
            )
        )

    def __contains__(self, name: object) -> bool:
        return any(entry.name == name for entry in self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(entry.name for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def comparison(self, candidate: str, baseline: str) -> Comparison:
        """One of the models against another. Raises `UnknownNameError` on a name that was not measured."""
        return self[candidate].against(self[baseline])

    def to_dict(self) -> dict[str, Any]:
        """JSON data: one entry per model."""
        return {entry.name: entry.to_dict() for entry in self.entries}

    def __str__(self) -> str:
        first, *others = self.entries
        lines = [f"{first.device}: {first.environment}", f"  {first.name}: {first._numbers()}"]
        for entry in others:
            lines.append(f"  {entry.name}: {entry._numbers()}; {entry.against(first).verdict}")
        return "\n".join(lines)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
