"""How much an error in a single weight matters: the diagonal of the Hessian of the mean loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import derive
from secateurs.base.loss import Loss
from secateurs.base.seeds import seeded
from secateurs.pack.chosen import weights
from secateurs.score.curvature import fisher
from secateurs.score.on_data import context_on, leaves_of

FLOOR = 1e-3
"""Of a tensor's mean: weights that these samples say nothing about are not free."""


def fisher_importance(
    model: nn.Module,
    data: Iterable[Any],
    *,
    loss: str | Loss = "cross_entropy",
    batches: int | None = None,
    floor: float = FLOOR,
    seed: int = 0,
) -> dict[str, Tensor]:
    """`{weight name: empirical Fisher, in the weight's shape, float64}`: mean squared gradients of single samples.

    Near a minimum, moving every weight by d raises the mean loss by about `sum importance * d^2 / 2`. No weight counts
    less than `floor` times its tensor's mean. `data` gives batches `(inputs, target)`, of which the first `batches` are
    used; `loss` is a name or a function `(outputs, target) -> scalar`, the mean over the batch. Eval mode.

    Raises `InputError` for data that does not fit, `TrainError` when it is empty, and what `capture` raises.
    """
    with seeded(derive(seed, "fisher")), torch.no_grad():
        context = context_on(model, data, loss=loss, batches=batches, seed=seed)
        found = fisher(context, list(leaves_of(context, weights(model))))
    return {name: item.cpu().clamp_min(float(item.mean()) * floor) for name, item in found.items()}


__all__ = ["fisher_importance"]
