"""The steps of optimizers, as those who hold zeros see them: two hooks for all steps, whoever holds what."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import optim
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from secateurs.sparsity.held import Held

if TYPE_CHECKING:
    from secateurs.sparsity.hold import Hold

KEEPS_ZEROS = frozenset(
    (optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop, optim.Adagrad,
     optim.Adadelta, optim.Rprop)
)  # fmt: skip
"""Optimizers that leave a weight at zero whose gradient and memory are zero, unless they divide by a zero; after others
it is set to zero again.
"""

MARK = "_secateurs_hold"
"""Where a parameter has the `Hold` that holds it."""


def listen() -> None:
    """Two hooks on the steps of all optimizers, for all holds; there to stay, as hooks must not go while they run.

    A step that is compiled runs them as they are, for what they look at is no data. That takes what `torch.compile` is
    made of: seconds to import, but whoever has made an optimizer has it.
    """
    compiles = "torch._dynamo" in sys.modules
    if compiles not in _LISTENING:
        apart: Callable[[Any], Any] = torch.compiler.disable if compiles else lambda hook: hook
        before, after = apart(_before_step), apart(_after_step)
        _LISTENING[compiles] = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
        for handle in _LISTENING.pop(not compiles, []):
            handle.remove()


_LISTENING: dict[bool, list[Any]] = {}
"""The handles of both hooks, by whether `torch.compile` leaves them alone."""

_STEPPING = "_secateurs_stepping"
"""Where an optimizer has what is held of its parameters while it is within a step."""


def _mine(optimizer: Optimizer) -> dict[Hold, list[Held]]:
    """What of an optimizer's parameters is held, by whom."""
    found: dict[Hold, list[Held]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            hold = getattr(parameter, MARK, None)
            if hold is not None:
                found.setdefault(hold, []).append(hold.held(parameter))
    return found


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    found = _mine(optimizer)
    if getattr(optimizer, _STEPPING, None) is not None:
        delattr(optimizer, _STEPPING)  # the last step was broken off
    if not found:
        return None  # nothing is asked of optimizers that hold nothing, not even that they take attributes
    vars(optimizer)[_STEPPING] = found
    for hold, mine in found.items():
        hold.before_step(optimizer, mine)
    return _with_closure([item for mine in found.values() for item in mine], args, kwargs)


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found = getattr(optimizer, _STEPPING, None)
    if found is None:
        return
    delattr(optimizer, _STEPPING)
    for item in (item for mine in found.values() for item in mine):
        memory = optimizer.state.get(item.parameter, {})
        if item.hard and _keeps_zeros(optimizer, item.parameter.dtype):
            item.stepped(memory)
            continue
        with torch.no_grad():
            item.hide()
            if item.hard:
                item.clear_all_memory(memory)


def _keeps_zeros(optimizer: Optimizer, dtype: torch.dtype) -> bool:
    """Does a step leave a weight of this type at zero? One that divides by `sqrt(0) + eps` does, unless eps is 0 in it.

    The 1e-8 of Adam is, in float16.
    """
    if type(optimizer) not in KEEPS_ZEROS:
        return False
    return all(group.get("eps", 1.0) >= _smallest(dtype) for group in optimizer.param_groups)


@cache
def _smallest(dtype: torch.dtype) -> float:
    """The smallest positive number of a type."""
    kind = torch.finfo(dtype)
    return kind.smallest_normal * kind.eps


def _with_closure(mine: list[Held], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of `optimizer.step` with a closure that computes with `W * mask`; None if there is no closure.

    In mode `"hard"` its gradients are zero where the mask is, whatever it does to them.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not mine or not callable(closure):
        return None
    hidden = [item for item in mine if not item.hard]

    def masked() -> Any:
        with torch.no_grad():
            for item in hidden:
                item.hide()
        found = closure()  # an error ends the step, and leaves the masked weights in the model
        with torch.no_grad():
            for item in hidden:
                item.show()
            for item in mine:
                if item.hard:
                    item.clear_gradient(known=True)
        return found

    if "closure" in kwargs:
        return args, {**kwargs, "closure": masked}
    return (args[0], masked, *args[2:]), kwargs


__all__ = ["KEEPS_ZEROS", "MARK", "listen"]
