"""Dynamic network surgery: masks with hysteresis, changed ever more rarely."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.schedules import Schedule
from secateurs.sparsity.spec import ByLayer, Masks, Spec, by_layer
from secateurs.sparsity.updates import Moment, Update, single_weights, unfit


@dataclass(frozen=True)
class Surgery(Update):
    """A kept weight goes when `|w| <= below * t`, a masked one comes back when `|w| > above * t`; else nothing changes.

    `t = max(mean |w| + c * std |w|, 0)` of a layer's weights and bias that are not zero, at the first update, then
    fixed; `c` is one number or one per layer (by name, glob or module class); a larger one prunes more. An update that
    is due happens with probability `(1 + gamma * step)^-power`, for all layers or none. For single weights and mode
    `"dense-update"`, with a schedule such as `Constant(end=...)`; no `sparsity` is given. With `biases`, those beside
    the weights come and go by the same thresholds, as in the authors' code. Guo, Yao, Chen, Dynamic Network Surgery,
    2016.

    Raises `InputError` for numbers that make no sense.
    """

    decides: ClassVar[bool] = True
    c: float | ByLayer[float] = 1.0
    below: float = 0.9
    above: float = 1.1
    gamma: float = 1e-4
    power: float = 1.0
    biases: bool = False
    thresholds: dict[str, float] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.below <= self.above or self.gamma < 0 or self.power < 0:
            raise InputError(
                explain(f"{self} cannot be used", next_step="give 0 <= below <= above, and gamma and power >= 0")
            )

    @property
    def masks_biases(self) -> bool:
        return self.biases

    def check(self, spec: Spec, mode: str, schedule: Schedule | None) -> None:
        """Raises `InputError` where weights could not come back, or something else decides how many go."""
        single_weights(self, spec)
        if mode != "dense-update":
            raise unfit(self, f"with mode={mode!r} no masked weight can come back", 'give mode="dense-update"')
        if spec.sparsity != 0.0:
            raise unfit(self, f"sparsity={spec.sparsity!r}, but `c` says how much goes", "leave out `sparsity`")
        if schedule is None:
            raise unfit(self, "without a schedule the masks change once", "give schedule=Constant(end=...)")

    def __call__(self, moment: Moment) -> Masks:
        """The new masks. Raises `InputError` for a `c` of no layer, or none for a layer."""
        factors = self._factors(moment)
        sizes = {name: weight.tensor.detach().abs() for name, weight in moment.weights.items() if name in moment.masks}
        for name, size in sizes.items():
            if name not in self.thresholds:
                kept = size[moment.masks[name] & (size > 0)].flatten()
                bias = moment.biases.get(name, kept[:0]).abs().flatten()
                self.thresholds[name] = _threshold(torch.cat([kept, bias[bias > 0].to(kept)]), factors[name])
        chance = float(torch.rand((), generator=moment.generator, dtype=torch.float64))
        if chance >= (1 + self.gamma * moment.step) ** -self.power:
            return dict(moment.masks)
        found = {name: self._changed(moment.masks[name], size, self.thresholds[name]) for name, size in sizes.items()}
        for name, beside in moment.beside.items():
            found[beside] = self._changed(moment.masks[beside], moment.biases[name].abs(), self.thresholds[name])
        return found

    def memory(self) -> dict[str, Tensor]:
        """The thresholds."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.thresholds.items()}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """The thresholds of before."""
        self.thresholds.clear()
        self.thresholds.update({name: float(value) for name, value in memory.items()})

    def _changed(self, mask: Tensor, size: Tensor, threshold: float) -> Tensor:
        size = size.double()
        return (mask & (size > self.below * threshold)) | (~mask & (size > self.above * threshold))

    def _factors(self, moment: Moment) -> dict[str, float]:
        if not isinstance(self.c, Mapping):
            return dict.fromkeys(moment.masks, self.c)
        names = [name for name in moment.masks if name in moment.weights]
        found = by_layer(self.c, {name: moment.weights[name] for name in names}, "Surgery(c=...)")
        missing = [name for name in names if name not in found]
        if missing:
            raise unfit(self, f"`{missing[0]}` has no c", "give one for every layer, or `exclude` the layer")
        return found


def _threshold(sizes: Tensor, c: float) -> float:
    if not sizes.numel():
        return 0.0
    sizes = sizes.double()
    found = float(sizes.mean()) + c * float(sizes.std(correction=0))
    return max(found, 0.0) if math.isfinite(found) else 0.0


__all__ = ["Surgery"]
