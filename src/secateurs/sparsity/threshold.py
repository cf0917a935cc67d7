"""`Threshold`: groups below it go, however many they are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest

KINDS = ("mean_std", "std", "value")


@dataclass(frozen=True)
class Threshold:
    """A group stays if its importance is at least t, which the layer's currently kept weights give:

    - `"std"`: `t = factor * std(W)`. Of a Gaussian layer the fraction erf(factor / sqrt 2) goes: 38.3% at 0.5, 68.3% at
      1. Han et al., Learning both Weights and Connections, 2015.
    - `"mean_std"`: `t = mean |W| + factor * std |W|`; the factor may be negative. Of a Gaussian layer 57.5% go at 0,
      72.8% at 0.5. Xu, Park, Brick, Hybrid Pruning, 2018.
    - `"value"`: `t = factor`.

    Standard deviations are those of the population. In mode `"hard"` what is kept changes with every update, so that
    each takes its share of what the last one left, and many leave nothing; in mode `"dense-update"` t is that of all
    weights. With `start`, a `Gradual` schedule moves the factor on its curve from there; without, every update takes
    the factor as it is. Raises `UnknownNameError` and `InputError`.
    """

    kind: str
    factor: float
    start: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            close = nearest(str(self.kind), KINDS)
            raise UnknownNameError(
                explain(
                    f"There is no threshold of the kind {self.kind!r}",
                    evidence=f"known: {', '.join(KINDS)}",
                    next_step=f"did you mean {close[0]!r}?" if close else "pick one of the known kinds",
                )
            )
        for factor in (self.factor, *([] if self.start is None else [self.start])):
            number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
            if not number or not math.isfinite(factor) or (self.kind != "mean_std" and factor < 0):
                raise InputError(
                    explain(
                        f"Threshold({self.kind!r}, {factor!r}) cannot be used",
                        next_step="give a finite number" if self.kind == "mean_std" else "give a number >= 0",
                    )
                )

    def __repr__(self) -> str:
        """Without a `start` as ever: journals of runs hold this text."""
        start = "" if self.start is None else f", start={self.start!r}"
        return f"Threshold(kind={self.kind!r}, factor={self.factor!r}{start})"

    def at(self, progress: float) -> Threshold:
        """The threshold at this share of a schedule's way, 0 to 1."""
        if self.start is None:
            return self
        return replace(self, factor=self.start + (self.factor - self.start) * progress, start=None)

    def of(self, kept: Tensor) -> float:
        """The t of a layer whose kept weights are these (float64, flat); 0 where none is left."""
        if self.kind == "value":
            return float(self.factor)
        if not kept.numel():
            return 0.0
        if self.kind == "std":
            return self.factor * float(kept.std(correction=0))
        size = kept.abs()
        return float(size.mean()) + self.factor * float(size.std(correction=0))


def check_still(targets: Iterable[object]) -> None:
    """Raises `InputError` for a threshold that is to move where no schedule moves it."""
    for target in targets:
        if isinstance(target, Threshold) and target.start is not None:
            raise InputError(
                explain(
                    f"Nothing moves {target}",
                    next_step="give sparsify(schedule=Gradual(...)) or FineTune(sparsity=...), or leave out `start`",
                )
            )


__all__ = ["Threshold", "check_still"]
