"""Losses by name. Each takes the model's outputs and the target and gives the mean over the batch's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.base.registry import Registry

Loss = Callable[[Any, Any], Tensor]

losses: Registry[Loss] = Registry("loss")


def logits(outputs: Any) -> Tensor:
    """The tensor of class scores in a model's outputs: the tensor itself, `outputs.logits` or `outputs["logits"]`.

    Raises `InputError` on any other structure, since picking one of several tensors would be a guess.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise InputError(
        explain(
            "The model's output is not one tensor, so it is not clear which part to compare with the target",
            evidence=f"output is {describe(outputs)}",
            next_step="pass `loss=` a function (outputs, target) -> scalar, or wrap the model to return its logits",
        )
    )


@losses.register("cross_entropy")
def cross_entropy(outputs: Any, target: Tensor) -> Tensor:
    """Softmax cross-entropy. Logits [N, C, ...], target [N, ...] of class numbers or [N, C, ...] of probabilities."""
    return torch.nn.functional.cross_entropy(logits(outputs), target)


@losses.register("binary_cross_entropy")
def binary_cross_entropy(outputs: Any, target: Tensor) -> Tensor:
    """Sigmoid cross-entropy. Logits and targets in [0, 1] of the same shape."""
    scores = logits(outputs)
    return torch.nn.functional.binary_cross_entropy_with_logits(scores, target.to(scores.dtype))


@losses.register("mse")
def mse(outputs: Any, target: Tensor) -> Tensor:
    """Mean squared error between outputs and targets of the same shape."""
    scores = logits(outputs)
    if scores.shape != target.shape:
        raise ValueError(f"outputs are {list(scores.shape)}, the target is {list(target.shape)}")
    return torch.nn.functional.mse_loss(scores, target)


def describe(tree: Any) -> str:
    """Shapes in a nested structure, for messages: `[8, 3, 32, 32]`, `{mask: [8, 16]}`."""
    if isinstance(tree, Tensor):
        return str(list(tree.shape))
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in tree.items()) + "}"
    if isinstance(tree, (list, tuple)):
        shown = [describe(item) for item in tree[:4]] + ["..."] * (len(tree) > 4)
        return "(" + ", ".join(shown) + ")"
    return f"a {type(tree).__name__}"
