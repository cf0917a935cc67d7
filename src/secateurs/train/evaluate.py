"""Ready-made validation functions: `(model) -> float`, higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn

from secateurs.base.batches import device_of, rows, split, to_device
from secateurs.base.errors import TrainError, explain
from secateurs.base.loss import Loss, describe, logits, losses
from secateurs.base.seeds import seeded
from secateurs.train.failure import run


def accuracy(loader: Iterable[Any], *, batches: int | None = None, seed: int = 0) -> Callable[[nn.Module], float]:
    """A function that gives a model's top-1 accuracy in [0, 1] on `loader`, or on its first `batches` batches.

    Batches are `(inputs, target)`; logits [N, C, ...], target [N, ...] of class numbers. The model runs in eval mode
    on the device of its parameters and is left as it was. Raises `TrainError` when there is no batch or when shapes do
    not fit.
    """

    def evaluate(model: nn.Module) -> float:
        right = total = 0
        device = device_of(model)
        with in_eval_mode(model), torch.no_grad(), seeded(seed):
            for index, batch in enumerate(islice(loader, batches)):
                inputs, target = split(to_device(batch, device), f"validation batch {index}")
                scores = logits(run(model, inputs, f"validation batch {index}"))
                predicted = scores.argmax(dim=1)
                if predicted.shape != target.shape:
                    raise TrainError(
                        explain(
                            "The target is not one class number per prediction",
                            where=f"validation batch {index}",
                            evidence=f"logits {describe(scores)}, target {describe(target)}",
                            next_step="yield class numbers of the logits' shape without its dimension 1",
                        )
                    )
                right += int((predicted == target).sum())
                total += target.numel()
        if total == 0:
            raise TrainError(explain("The validation data is empty", next_step="check the dataset and the batch size"))
        return right / total

    return evaluate


def mean_loss(loader: Iterable[Any], loss: str | Loss = "cross_entropy") -> Callable[[nn.Module], float]:
    """A function that gives a model's mean loss per row on `loader`, in eval mode; lower is better.

    `loss` is that of `FineTune`. Raises `TrainError` when there is no batch or it does not fit.
    """
    measure = losses[loss] if isinstance(loss, str) else loss

    def evaluate(model: nn.Module) -> float:
        total = seen = 0.0
        device = device_of(model)
        with in_eval_mode(model), torch.no_grad(), seeded(0):
            for index, batch in enumerate(loader):
                place = f"validation batch {index}"
                inputs, target = split(to_device(batch, device), place)
                total += float(measure(run(model, inputs, place), target)) * rows(inputs)
                seen += rows(inputs)
        if seen == 0:
            raise TrainError(explain("The validation data is empty", next_step="check the dataset and the batch size"))
        return total / seen

    return evaluate


def checked_metric(evaluate: Callable[[nn.Module], float], model: nn.Module, where: str) -> float:
    """The metric of `model`, with its modes and all random states left as they were.

    Raises `TrainError` when `evaluate` gives something that is not a finite number.
    """
    with in_eval_mode(model), seeded(0):
        metric = evaluate(model)
    try:
        number = float(metric)
    except (TypeError, ValueError) as error:
        raise TrainError(
            explain(
                "`evaluate` did not give a number", where=where, evidence=repr(metric), next_step="return one float"
            )
        ) from error
    if not math.isfinite(number):
        raise TrainError(
            explain(
                "`evaluate` did not give a finite number",
                where=where,
                evidence=f"it gave {number}",
                next_step="check the validation data and the model's outputs for nan and division by zero",
            )
        )
    return number


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in eval mode; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
