"""How much an error in a single weight matters: the diagonal of the Hessian of the mean loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import Batches, derive, device_of, split, to_device
from secateurs.base.loss import Loss
from secateurs.base.seeds import seeded
from secateurs.capture.program import check_call
from secateurs.capture.trace import capture
from secateurs.couple.couple import couple
from secateurs.pack.chosen import weights
from secateurs.score.criterion import Context
from secateurs.score.curvature import fisher
from secateurs.score.samples import Samples
from secateurs.score.score import tensors_of

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
        args, keywords = _first(model, data, seed)
        graph = capture(model, args, kwargs=keywords)
        groups = couple(graph)
        samples = Samples(model, graph, data, loss=loss, limit=batches, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        context = Context(groups, model, tensors_of(groups, model), generator, samples, seed)
        read = {name for leaf in graph.leaves for name in leaf.names}
        found = fisher(context, [name for name in weights(model) if name in read])
    return {name: item.cpu().clamp_min(float(item.mean()) * floor) for name, item in found.items()}


def _first(model: nn.Module, data: Iterable[Any], seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of the model for the first batch."""
    loader = Batches(data, limit=1, seed=seed)
    try:
        batch = to_device(next(loader.epoch(0)), device_of(model))
    finally:
        loader.close()
    return check_call(model, split(batch, "batch 0")[0])


__all__ = ["fisher_importance"]
