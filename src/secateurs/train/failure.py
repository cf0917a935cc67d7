"""A forward pass whose failure says which batch, which shapes and which module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from secateurs.base.batches import forward
from secateurs.base.errors import TrainError, explain
from secateurs.base.loss import describe

_MISFITS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def run(model: nn.Module, inputs: Any, place: str, *, through: nn.Module | None = None) -> Any:
    """`model` on `inputs`, by way of a wrapper of it if `through` is given.

    Raises `TrainError` naming `place` (the batch), the input shapes and the innermost module that failed. Running out
    of memory is passed on as it is.
    """
    try:
        return forward(model if through is None else through, inputs)
    except torch.OutOfMemoryError:
        raise
    except _MISFITS as error:
        module = failing_module(model, inputs)
        inside = f", module `{module}`" if module else ""
        raise TrainError(
            explain(
                "The model cannot run on this batch",
                where=place + inside,
                evidence=f"inputs {describe(inputs)}; {brief(error)}",
                next_step="give batches of the shape and dtype that the model takes, as (inputs, target)",
            )
        ) from error


def failing_module(model: nn.Module, inputs: Any) -> str:
    """Path of the innermost module that raises on these inputs, found by running once more; empty if none does."""
    entered: list[str] = []

    def entering(name: str) -> Callable[..., None]:
        return lambda module, args: entered.append(name)

    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        entered.pop()

    hooks = [module.register_forward_pre_hook(entering(name)) for name, module in model.named_modules() if name]
    hooks += [module.register_forward_hook(leaving) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward(model, inputs)
    except _MISFITS:
        return entered[-1] if entered else ""
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def brief(error: BaseException) -> str:
    """The first line of an error's own text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
