"""How a model's channels are coupled, seen on the first batch of its training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from secateurs.base.batches import Batches, device_of, split, to_device
from secateurs.capture.trace import capture
from secateurs.couple import Groups, couple


def coupled_on(batches: Batches, model: nn.Module, exclude: Sequence[str] = ()) -> Groups:
    """The groups of `model` on the first batch. Raises `TrainError` for a batch that is not a pair."""
    inputs, _ = split(to_device(next(iter(batches.epoch(0))), device_of(model)), "batch 0 (to see the layers)")
    args = inputs if isinstance(inputs, (list, tuple)) else () if isinstance(inputs, Mapping) else (inputs,)
    graph = capture(model, tuple(args), kwargs=dict(inputs) if isinstance(inputs, Mapping) else None)
    return couple(graph, exclude=exclude)


__all__ = ["coupled_on"]
