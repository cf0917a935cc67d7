"""How much does a group of weights matter: one number per group, higher = keep.

What looks at data is in `measured`; what only units of channels have is in `UNIT_ONLY`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from secateurs.base.batches import derive
from secateurs.base.errors import InputError, UnknownNameError, explain
from secateurs.base.registry import Registry
from secateurs.sparsity.pattern import Grouping


@dataclass(frozen=True)
class GroupedWeight:
    """What a measure of importance may look at: a weight, flat and in float64, its gradient, its groups, and a seed."""

    name: str
    values: Tensor
    grouping: Grouping
    slopes: Tensor | Callable[[], Tensor] | None = None
    seed: int = 0

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over each group of one number per weight: `[weights]` -> `[groups]`."""
        ids = self.grouping.ids.flatten()
        sums = numbers.new_zeros(self.grouping.count + 1)
        return sums.index_add_(0, torch.where(ids < 0, self.grouping.count, ids), numbers)[: self.grouping.count]

    @property
    def gradient(self) -> Tensor:
        """The gradient of the loss, like `values`. Raises `InputError` when there is none."""
        if self.slopes is None:
            raise InputError(
                explain(
                    f"`{self.name}` has no gradient",
                    next_step="pass `data=`, batches of (inputs, target), run `loss.backward()` first, or pass "
                    "gradients={parameter name: tensor}",
                )
            )
        return self.slopes() if callable(self.slopes) else self.slopes


Importance = Callable[[GroupedWeight], Tensor]
"""`(grouped weight) -> [groups]`; higher = keep."""

IMPORTANCES: Registry[Importance] = Registry("importance")


@IMPORTANCES.register("l1")
def l1(weight: GroupedWeight) -> Tensor:
    """`sum |w|`: the magnitude that goes. Larger groups weigh more. Mao et al. 2017."""
    return weight.total(weight.values.abs())


@IMPORTANCES.register("l2")
def l2(weight: GroupedWeight) -> Tensor:
    """`sqrt(sum w^2)`."""
    return weight.total(weight.values.square()).sqrt()


@IMPORTANCES.register("rms")
def rms(weight: GroupedWeight) -> Tensor:
    """`sqrt(mean w^2)` over the weights that the group really has, at a tail too. Yu et al., Scalpel, 2017."""
    return (weight.total(weight.values.square()) / weight.grouping.sizes).sqrt()


@IMPORTANCES.register("mean")
def mean(weight: GroupedWeight) -> Tensor:
    """`mean |w|`: comparable between groups of different sizes, and so between layers."""
    return weight.total(weight.values.abs()) / weight.grouping.sizes


@IMPORTANCES.register("taylor")
def taylor(weight: GroupedWeight) -> Tensor:
    """`|sum w * dL/dw|`: what the loss changes by, to first order, when the group becomes zero."""
    return weight.total(weight.values * weight.gradient).abs()


@IMPORTANCES.register("random")
def random(weight: GroupedWeight) -> Tensor:
    """Uniform in (0, 1), from the seed: the same for a weight each time, so that masks nest. The baseline to beat."""
    generator = torch.Generator().manual_seed(derive(weight.seed, "importance", weight.name))
    return torch.rand(weight.grouping.count, generator=generator, dtype=torch.float64)


@dataclass(frozen=True, eq=False, repr=False)
class Obd:
    """`sum h * w^2 / 2`: what the loss rises by, to second order at a minimum, when the group becomes zero.

    `curvature` gives h, the diagonal of the Hessian: a tensor of each weight's shape by parameter name, such as
    `sec.fisher_importance(model, data)`; a group whose sum is negative counts as 0. `importance="obd"` with `data=`
    measures h itself. LeCun, Denker, Solla, 1990.

        sec.masks(model, 0.9, importance=sec.sparsity.Obd(sec.fisher_importance(model, data)), scope="global")

    Raises `InputError`, when it is used, for a weight whose curvature is missing or of another shape.
    """

    curvature: Mapping[str, Tensor]

    def __call__(self, weight: GroupedWeight) -> Tensor:
        """One number per group."""
        found = self.curvature.get(weight.name)
        if found is None or found.shape != weight.grouping.ids.shape:
            raise InputError(
                explain(
                    f"The curvature of `{weight.name}` is {'missing' if found is None else 'of another shape'}",
                    evidence=f"known: {', '.join(list(self.curvature)[:5]) or 'none'}"
                    if found is None
                    else f"{tuple(found.shape)}, the weight {tuple(weight.grouping.ids.shape)}",
                    next_step="give it, by parameter name, or exclude the layer",
                )
            )
        second = found.detach().to("cpu", torch.float64).flatten()
        return weight.total(second * weight.values.square()).clamp(min=0) / 2

    def __repr__(self) -> str:
        """With a digest of the numbers: runs that resume tell one curvature from another by it."""
        seen = hashlib.sha256()
        for name in sorted(self.curvature):
            seen.update(name.encode())
            seen.update(self.curvature[name].detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
        return f"Obd({seen.hexdigest()[:16]})"


UNIT_ONLY = {
    "apoz": "it counts the zeros among a channel's activations, and a weight has no activation",
    "mean_activation": "it is the mean of a channel's activations, and a weight has none",
    "taylor_gates": "it is the slope of a gate on a channel; for weights it is `taylor_weights`",
    "thinet": "it rebuilds what a layer puts out from some of its input channels",
    "lasso": "it rebuilds what a layer puts out from some of its input channels",
    "fpgm": "it is the distance of a filter from the other filters of its layer",
    "bn_scale": "it is the scale that a batch norm gives to a channel, and a weight has none",
    "nisp": "it carries the importance of the last features back from channel to channel",
    "oracle": "it runs the network without each unit, which nobody can do for each weight",
}
"""Criteria that say nothing about single weights, and why."""


def find_importance(importance: str | Importance) -> Importance:
    """A registered measure or the function itself. Raises `UnknownNameError`, `InputError` if it is neither."""
    given: Any = importance
    if isinstance(given, str):
        if given in UNIT_ONLY:
            raise UnknownNameError(
                explain(
                    f"{given!r} scores whole units, not weights or groups of them",
                    where="importance",
                    evidence=UNIT_ONLY[given],
                    next_step=f"give one of {', '.join(IMPORTANCES)}, or cut units by it: `sec.prune(criterion=...)`",
                )
            )
        return IMPORTANCES[given]
    if callable(given):
        return cast("Importance", given)
    step = f"give one of {', '.join(IMPORTANCES)}, or a function of a GroupedWeight"
    raise InputError(explain(f"importance={given!r} cannot be used", next_step=step))


def check_scores(name: str, groups: int, found: Tensor) -> Tensor:
    """One finite float64 per group. Raises `InputError` for a measure of one's own that gives anything else."""
    found = found.detach().to("cpu", torch.float64)
    if tuple(found.shape) != (groups,) or not bool(torch.isfinite(found).all()):
        raise InputError(
            explain(
                f"The importance of `{name}` cannot be used",
                evidence=f"{groups} groups, scores of shape {tuple(found.shape)}, "
                f"{int((~torch.isfinite(found)).sum())} of them not finite",
                next_step="give one finite number per group",
            )
        )
    return found


__all__ = ["IMPORTANCES", "UNIT_ONLY", "GroupedWeight", "Importance", "Obd", "check_scores", "find_importance"]
