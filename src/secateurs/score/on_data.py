"""A context around a model and its data alone: for who asks about weights and has no groups of channels at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from secateurs.base.batches import Batches, device_of, split, to_device
from secateurs.base.loss import Loss
from secateurs.capture.program import check_call
from secateurs.capture.trace import capture
from secateurs.couple.couple import couple
from secateurs.score.criterion import Context
from secateurs.score.samples import Samples
from secateurs.score.score import tensors_of


def context_on(
    model: nn.Module,
    data: Iterable[Any],
    *,
    loss: str | Loss = "cross_entropy",
    batches: int | None = None,
    seed: int = 0,
) -> Context:
    """What a criterion may look at: `model`, captured on the first batch, and the first `batches` of `data`.

    Draws from the process's random states, which callers protect. Raises `TrainError` for data that is empty or no
    pairs `(inputs, target)`, and what `capture` raises.
    """
    args, keywords = _first(model, data, seed)
    graph = capture(model, args, kwargs=keywords)
    groups = couple(graph)
    samples = Samples(model, graph, data, loss=loss, limit=batches, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return Context(groups, model, tensors_of(groups, model), generator, samples, seed)


def leaves_of(context: Context, names: Iterable[str]) -> dict[str, str]:
    """`{parameter name: the name of its leaf}`, which differ where it is tied; without those that nothing reads."""
    graph = context.groups.graph
    read = {name: leaf.name for leaf in graph.leaves for name in leaf.names}
    return {name: read[name] for name in names if name in read}


def _first(model: nn.Module, data: Iterable[Any], seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of the model for the first batch."""
    loader = Batches(data, limit=1, seed=seed)
    try:
        batch = to_device(next(loader.epoch(0)), device_of(model))
    finally:
        loader.close()
    return check_call(model, split(batch, "batch 0")[0])


__all__ = ["context_on", "leaves_of"]
