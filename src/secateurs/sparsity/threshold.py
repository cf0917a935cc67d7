"""`Threshold`: groups below it go, however many they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    Standard deviations are those of the population. Raises `UnknownNameError` and `InputError`.
    """

    kind: str
    factor: float

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
        number = isinstance(self.factor, (int, float)) and not isinstance(self.factor, bool)
        if not number or not math.isfinite(self.factor) or (self.kind != "mean_std" and self.factor < 0):
            raise InputError(
                explain(
                    f"Threshold({self.kind!r}, {self.factor!r}) cannot be used",
                    next_step="give a finite number" if self.kind == "mean_std" else "give a number >= 0",
                )
            )

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


__all__ = ["Threshold"]
