"""Batch-norm statistics measured afresh: a cut changes the mean and the variance of what a layer reads."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.base.batches import Batches, derive, device_of, to_device
from secateurs.base.errors import InputError, TrainError, explain
from secateurs.base.seeds import seeded
from secateurs.train.evaluate import in_eval_mode
from secateurs.train.failure import run


def recalibrate(model: nn.Module, data: Iterable[Any], *, batches: int = 50, seed: int = 0) -> nn.Module:
    """A copy of `model` whose batch-norm statistics are those of the first `batches` batches of `data`.

    Every running mean becomes the average of the batch means, every running variance the average of the unbiased batch
    variances, as seen by that layer with the layers before it normalising by the batch. Parameters, momenta and modes
    stay; dropout is off; labels are not looked at. A batch is `(inputs, target)` or the inputs alone (a tensor or a
    dict). Costs one forward pass per batch. The result equals the model when it has no batch norm.

    Give data as the model was trained on, moved and mirrored if that was done: statistics of images as they are cost a
    ResNet-56 that was trained on moved ones three points (CIFAR-10).

    Raises `InputError` when `batches` is below 1, `TrainError` when the data is empty, does not fit the model, or
    leaves statistics that are not finite.
    """
    fresh = copy.deepcopy(model)
    recalibrate_(fresh, data, batches=batches, seed=seed)
    return fresh


def recalibrate_(model: nn.Module, data: Iterable[Any], *, batches: int, seed: int) -> None:
    """`recalibrate` on the model itself."""
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise InputError(
            explain(f"recalibrate(batches={batches!r}) cannot be used", next_step="give an integer above 0")
        )
    norms = running_statistics(model)
    if norms:
        with in_eval_mode(model), _averaging(norms), torch.no_grad(), seeded(derive(seed, "recalibrate")):
            _feed(model, data, batches, seed)
        _check_finite(norms)


def running_statistics(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers of `model` that keep running statistics, by module path."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {path: layer for path, layer in layers.items() if layer.running_mean is not None}


@contextmanager
def _averaging(norms: Mapping[str, _BatchNorm]) -> Iterator[None]:
    """Inside the block the statistics start from nothing and average over batches; momenta are restored after it."""
    momenta = [norm.momentum for norm in norms.values()]
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum in zip(norms.values(), momenta, strict=True):
            norm.momentum = momentum
            norm.training = False


def _feed(model: nn.Module, data: Iterable[Any], batches: int, seed: int) -> None:
    device = device_of(model)
    loader = Batches(data, limit=batches, seed=seed)
    try:
        for index, batch in enumerate(loader.epoch(0)):
            inputs = batch[0] if isinstance(batch, (list, tuple)) and len(batch) == 2 else batch
            run(model, to_device(inputs, device), f"recalibration batch {index}")
    finally:
        loader.close()


def _check_finite(norms: Mapping[str, _BatchNorm]) -> None:
    for name, norm in norms.items():
        for part in ("running_mean", "running_var"):
            values = getattr(norm, part)
            bad = int((~torch.isfinite(values)).sum())
            if bad:
                raise TrainError(
                    explain(
                        "Recalibration gave statistics that are not finite",
                        where=f"`{name}.{part}`",
                        evidence=f"{bad} of {values.numel()} channels",
                        next_step="look for nan or infinity in the data and in the weights before that layer",
                    )
                )
