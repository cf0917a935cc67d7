"""How masks change when a schedule says so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.measured import Evidence
from secateurs.sparsity.schedules import Schedule
from secateurs.sparsity.spec import Masks, Spec, Target, masks_of
from secateurs.sparsity.weights import LayerWeight


@dataclass(frozen=True)
class Moment:
    """What an update may look at: the weights behind the masks, the masks, what is to be reached now, and chance.

    `gradients` are those of all of W if the update `needs_gradients`, else what is in `.grad`. `biases` are those
    beside the weights, by the weights' names; `beside` are the names of those that have masks of their own. `evidence`
    is where an importance may look at data.
    """

    step: int
    weights: Mapping[str, LayerWeight]
    masks: Masks
    spec: Spec
    targets: Mapping[str, Target]
    gradients: Mapping[str, Tensor]
    mode: str
    generator: torch.Generator
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    evidence: Evidence | None = None

    def by_importance(self, within: Masks | None = None) -> Masks:
        """The masks that importance gives, within those of before."""
        return masks_of(
            self.weights, self.spec, targets=self.targets, gradients=self.gradients, within=within,
            evidence=self.evidence,
        )  # fmt: skip


@dataclass(frozen=True)
class Update(ABC):
    """Masks from masks. `needs_gradients`: also those of masked weights. `decides`: itself how much goes."""

    needs_gradients: ClassVar[bool] = False
    decides: ClassVar[bool] = False

    @property
    def masks_biases(self) -> bool:
        """Do the biases beside the weights get masks, too?"""
        return False

    @abstractmethod
    def __call__(self, moment: Moment) -> Masks:
        """The new masks."""

    def check(self, spec: Spec, mode: str, schedule: Schedule | None) -> None:  # noqa: B027  most take everything
        """Raises `InputError` where it would not do what these say."""

    def memory(self) -> dict[str, Tensor]:
        """What it has to remember, as tensors by name."""
        return {}

    def recall(self, memory: Mapping[str, Tensor]) -> None:  # noqa: B027  most have nothing to remember
        """Go on from `memory()`."""


@dataclass(frozen=True)
class ByImportance(Update):
    """The most important groups stay. In mode `"hard"` what is zero stays zero."""

    def __call__(self, moment: Moment) -> Masks:
        return moment.by_importance(moment.masks if moment.mode == "hard" else None)


def unfit(update: Update, evidence: str, next_step: str) -> InputError:
    """What an update's `check` raises."""
    return InputError(explain(f"{update} cannot work so", evidence=evidence, next_step=next_step))


def single_weights(update: Update, spec: Spec) -> None:
    """Raises `InputError` unless the pattern is that of single weights."""
    if spec.form.name != "weight":
        raise unfit(
            update, f"it changes single weights, the pattern is `{spec.form}`", "leave out `pattern`, or the update"
        )


__all__ = ["ByImportance", "Moment", "Update", "single_weights", "unfit"]
