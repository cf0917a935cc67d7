"""`Hold`: zeros that survive training, whatever the loop and the optimizer.

Nothing is wrapped and no name changes. A hook on each masked parameter clears its gradient as soon as it is there, and
two hooks on every `torch.optim` step see to values and optimizer memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.held import Held
from secateurs.sparsity.masks import check_masks

MODES = ("hard", "dense-update")
KEEPS_ZEROS = frozenset(
    (optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop, optim.Adagrad,
     optim.Adadelta, optim.Rprop)
)  # fmt: skip
"""Optimizers that leave a weight at zero whose gradient and memory are zero; after others it is set to zero again."""

_MARK = "_secateurs_hold"


class Hold:
    """Keeps the zeros of `masks` (bool by parameter name, True = kept) in `model` until `release`.

    - `mode="hard"`: value, gradient, momentum and weight decay are exactly zero where the mask is.
    - `mode="dense-update"` (straight-through): the model computes with `W * mask`, and the gradient taken there changes
      all of the dense W, so that a weight can come back when the masks change. Between optimizer steps the parameters
      hold `W * mask`; `dense` is W.

    The same parameter objects stay in the model, under the same names. Every optimizer derived from
    `torch.optim.Optimizer` is seen, its parameter groups, `GradScaler`, gradient accumulation and closures included;
    parameters that are sharded or flattened (FSDP) are not.

    Raises `InputError` for masks that do not fit and for a parameter that is held already.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], mode: str = "hard") -> None:
        if mode not in MODES:
            raise InputError(explain(f"mode={mode!r} cannot be used", next_step=f"give one of {', '.join(MODES)}"))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        check_masks(masks, {name: tuple(item.shape) for name, item in parameters.items()})
        self.mode, self.watching = mode, False
        self._held = {name: Held(name, parameters[name], mask, mode == "dense-update") for name, mask in masks.items()}
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._by_parameter = {id(item.parameter): item for item in self._held.values()}
        self._refuse_twice()
        self._model = weakref.ref(model)
        self._handles: list[Any] = []
        self._attach(model)
        with torch.no_grad():
            for _, item in self._named():
                item.hide()
                if mode == "hard":
                    item.clear_gradient()

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks, bool by parameter name, True = kept."""
        return {name: item.mask for name, item in self._held.items()}

    @property
    def dense(self) -> dict[str, Tensor]:
        """The weights behind the masks: W in mode `"dense-update"`, else what is in the model."""
        with torch.no_grad():
            return {name: item.dense for name, item in self._named()}

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The gradients of all of W from the last backward pass that was watched, else those in `.grad`."""
        found = {name: item.parameter.grad if item.gradient is None else item.gradient for name, item in self._named()}
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    @property
    def watched(self) -> dict[str, Tensor]:
        """Those of the last backward pass that was watched."""
        return {name: item.gradient for name, item in self._named() if item.gradient is not None}

    def held(self, parameter: nn.Parameter) -> Held:
        """What is held of this parameter."""
        return self._by_parameter[id(parameter)]

    def put(self, masks: Mapping[str, Tensor]) -> None:
        """Other masks, from here on. Raises `InputError` for one that does not fit."""
        check_masks(masks, {name: tuple(item.parameter.shape) for name, item in self._named()})
        with torch.no_grad():
            for name, mask in masks.items():
                self._held[name].put(mask)
                if self.mode == "hard":
                    self._held[name].clear_gradient()
                    for optimizer in self._optimizers:
                        self._held[name].clear_memory(optimizer.state.get(self._held[name].parameter, {}))

    def restore(self, dense: Mapping[str, Tensor]) -> None:
        """Take these as the dense weights, as after loading a checkpoint."""
        with torch.no_grad():
            for name, tensor in dense.items():
                self._held[name].restore(tensor)

    def zero(self) -> None:
        """Put the zeros in place now: writing to parameters does not do so by itself."""
        with torch.no_grad():
            for _, item in self._named():
                item.zero()

    def watch(self, on: bool) -> None:
        """Keep, or forget, the gradient of masked weights too, in the backward passes to come."""
        self.watching = on
        for _, item in self._named():
            item.gradient = None if on else item.gradient

    def release(self) -> None:
        """Take away all hooks. The parameters keep their zeros, exactly +0.0."""
        self.zero()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for _, item in self._named():
            item.gradient = None
            if getattr(item.parameter, _MARK, None) is self:
                delattr(item.parameter, _MARK)

    def _named(self) -> Iterator[tuple[str, Held]]:
        return iter(self._held.items())

    def _refuse_twice(self) -> None:
        if len(self._by_parameter) < len(self._held):
            raise InputError(
                explain("Two masks are for one tied parameter", next_step="give the mask under one of its names")
            )
        for name, item in self._named():
            if hasattr(item.parameter, _MARK):
                raise InputError(
                    explain(f"The zeros of `{name}` are held already", next_step="detach the other sparsifier first")
                )

    def _attach(self, model: nn.Module) -> None:
        """Hooks know this object weakly; the parameters keep it alive, so that a loop need not."""
        this = weakref.ref(self)
        for _, item in self._named():
            setattr(item.parameter, _MARK, self)
            parameter: Any = item.parameter
            wanted = parameter.requires_grad
            parameter.requires_grad_(True)  # a frozen one takes no hook, and may be thawed later
            self._handles.append(parameter.register_post_accumulate_grad_hook(_weakly(this, Hold._on_gradient)))
            parameter.requires_grad_(wanted)
        loading: Any = model
        self._handles.append(loading.register_load_state_dict_post_hook(_weakly(this, Hold._on_load)))
        _listen()

    def _on_gradient(self, parameter: Tensor) -> None:
        item = self._by_parameter[id(parameter)]
        with torch.no_grad():
            if self.watching and parameter.grad is not None:
                item.gradient = parameter.grad.detach().clone()
            if self.mode == "hard":
                item.clear_gradient()

    def before_step(self, optimizer: Optimizer, mine: list[Held]) -> None:
        """Memory is zero where the mask is; or the optimizer finds the dense weights."""
        self._optimizers.add(optimizer)
        for item in mine:
            item.show()
            if self.mode == "hard":
                item.clear_memory(optimizer.state.get(item.parameter, {}))

    def _on_load(self, model: nn.Module, keys: Any) -> None:
        if model is self._model():
            with torch.no_grad():
                for _, item in self._named():
                    item.take()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_nothing, ())  # copies of a parameter are not held

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None


def _listen() -> None:
    """Two hooks on the steps of all optimizers, for all holds; there to stay, as hooks must not go while they run."""
    if not _LISTENING:
        _LISTENING.append(register_optimizer_step_pre_hook(_before_step))
        _LISTENING.append(register_optimizer_step_post_hook(_after_step))


_LISTENING: list[Any] = []


def _mine(optimizer: Optimizer) -> dict[Hold, list[Held]]:
    """What of an optimizer's parameters is held, by whom."""
    found: dict[Hold, list[Held]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            hold = getattr(parameter, _MARK, None)
            if hold is not None:
                found.setdefault(hold, []).append(hold.held(parameter))
    return found


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    found = _mine(optimizer)
    with torch.no_grad():
        for hold, mine in found.items():
            hold.before_step(optimizer, mine)
    hidden = [item for hold, mine in found.items() if hold.mode == "dense-update" for item in mine]
    return _with_closure(hidden, args, kwargs) if hidden else None


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with torch.no_grad():
        for mine in _mine(optimizer).values():
            for item in mine:
                item.hide(intact=type(optimizer) in KEEPS_ZEROS)


def _weakly(this: weakref.ref[Hold], method: Callable[..., Any]) -> Callable[..., Any]:
    def hook(*args: Any) -> Any:
        hold = this()
        return None if hold is None else method(hold, *args)

    return hook


def _with_closure(mine: list[Held], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of `optimizer.step` with a closure that computes with `W * mask`; None if there is no closure."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        return None

    def masked() -> Any:
        with torch.no_grad():
            for item in mine:
                item.hide()
        try:
            return closure()
        finally:
            with torch.no_grad():
                for item in mine:
                    item.show()

    if "closure" in kwargs:
        return args, {**kwargs, "closure": masked}
    return (args[0], masked, *args[2:]), kwargs


def _nothing() -> None:
    return None


__all__ = ["MODES", "Hold"]
