"""Sparse training from sparse: the smallest weights go, others come, and the count stays."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.schedules import Gradual, Iterative, OneShot, Schedule
from secateurs.sparsity.spec import Masks, Spec
from secateurs.sparsity.time import Time, known, parse_time
from secateurs.sparsity.updates import Moment, Update, single_weights, unfit


@dataclass(frozen=True)
class Regrow(Update):
    """Of every layer's kept weights the smallest share goes, and as many masked ones come back, at zero.

    The share falls from `fraction` to 0 as a cosine over `end` steps. The first update only prunes, as sparse as it
    says. For single weights, with a schedule such as `Constant(every=100, end=...)`; meant for mode `"hard"`.

    Subclasses say which come back. Raises `InputError` for numbers that make no sense.
    """

    end: Time
    fraction: float = 0.3

    def __post_init__(self) -> None:
        if isinstance(self.end, str):
            parse_time(self.end)
        if not 0 < self.fraction < 1 or (isinstance(self.end, int) and self.end < 1):
            raise InputError(explain(f"{self} cannot be used", next_step="give 0 < fraction < 1 and at least one step"))

    def check(self, spec: Spec, mode: str, schedule: Schedule | None) -> None:
        """Raises `InputError` for groups of weights, and for schedules of which the count would not stay."""
        single_weights(self, spec)
        if isinstance(schedule or OneShot(), (Gradual, Iterative, OneShot)):
            evidence = f"schedule={schedule}: the count of the first update stays, and it wants updates after that"
            raise unfit(self, evidence, "give schedule=Constant(every=100, end=...)")

    def __call__(self, moment: Moment) -> Masks:
        """The new masks."""
        if all(bool(mask.all()) for mask in moment.masks.values()):
            return moment.by_importance()
        end = known(self.end, f"{type(self).__name__}(end=...)")
        share = self.fraction / 2 * (1 + math.cos(math.pi * min(1.0, moment.step / end)))
        return {name: self._turned(name, mask, share, moment) for name, mask in moment.masks.items()}

    @abstractmethod
    def appeal(self, name: str, mask: Tensor, moment: Moment) -> Tensor:
        """How much each weight wants to come back, flat float64 on the CPU; higher = first."""

    def _turned(self, name: str, mask: Tensor, share: float, moment: Moment) -> Tensor:
        kept = mask.flatten().cpu()
        count = min(math.floor(share * int(kept.sum()) + 0.5), int((~kept).sum()))
        size = moment.weights[name].tensor.detach().abs().flatten().to("cpu", torch.float64)
        order = torch.where(kept, size, torch.inf).argsort(stable=True)
        wish = torch.where(kept, -torch.inf, self.appeal(name, mask, moment)).argsort(stable=True, descending=True)
        turned = kept.clone()
        turned[order[:count]] = False
        turned[wish[:count]] = True
        return turned.reshape(mask.shape).to(mask.device)


@dataclass(frozen=True)
class RandomRegrowth(Regrow):
    """Chance says which weights come back. SET: Mocanu et al., Scalable Training of ANNs, 2018 (1707.04780)."""

    def appeal(self, name: str, mask: Tensor, moment: Moment) -> Tensor:
        """Random numbers."""
        return torch.rand(mask.numel(), generator=moment.generator, dtype=torch.float64)


@dataclass(frozen=True)
class GradientRegrowth(Regrow):
    """The largest gradients come back. RigL: Evci et al., Rigging the Lottery, 2020 (1911.11134)."""

    needs_gradients: ClassVar[bool] = True

    def appeal(self, name: str, mask: Tensor, moment: Moment) -> Tensor:
        """Magnitudes of the gradients of all of W."""
        if name not in moment.gradients:
            raise InputError(
                explain(
                    f"`{name}` has no gradient to regrow by", next_step="run a backward pass before the update is due"
                )
            )
        return moment.gradients[name].detach().abs().flatten().to("cpu", torch.float64)


__all__ = ["GradientRegrowth", "RandomRegrowth", "Regrow"]
