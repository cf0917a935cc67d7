"""`Hold`: zeros that survive training, whatever the loop and the optimizer.

Nothing is wrapped and no name changes. A hook on each masked parameter clears its gradient as soon as it is there, and
two hooks on every `torch.optim` step see to values and optimizer memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.held import Held
from secateurs.sparsity.masks import check_masks
from secateurs.sparsity.stepping import KEEPS_ZEROS, MARK, listen

MODES = ("hard", "dense-update")


class Hold:
    """Keeps the zeros of `masks` (bool by parameter name, True = kept) in `model` until `release`.

    - `mode="hard"`: value, gradient, momentum and weight decay are exactly zero where the mask is. So are second
      moments, except those of the Adam family while it trains weights of 4,096 entries or more (float32, float64) on a
      CPU: these are 2^-100 in `optimizer.state`, which changes no step and makes it faster, and exactly zero in
      `optimizer.state_dict()` and as soon as the masks are released.
    - `mode="dense-update"` (straight-through): the model computes with `W * mask`, and the gradient taken there changes
      all of the dense W, so that a weight can come back when the masks change. Between optimizer steps the parameters
      hold `W * mask`; `dense` is W. Parameters named in `hard` are held as in mode `"hard"` all the same.

    The same parameter objects stay in the model, under the same names. Every optimizer derived from
    `torch.optim.Optimizer` is seen, its parameter groups, `GradScaler`, gradient accumulation and closures included;
    parameters that are sharded or flattened (FSDP) are not.

    Raises `InputError` for masks that do not fit and for a parameter that is held already.
    """

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor], mode: str = "hard", hard: Collection[str] = ()
    ) -> None:
        if mode not in MODES:
            raise InputError(explain(f"mode={mode!r} cannot be used", next_step=f"give one of {', '.join(MODES)}"))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        check_masks(masks, {name: tuple(item.shape) for name, item in parameters.items()})
        self.watching = False
        self._held = {
            name: Held(name, parameters[name], mask, mode == "dense-update" and name not in hard)
            for name, mask in masks.items()
        }
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._by_parameter = {id(item.parameter): item for item in self._held.values()}
        self._refuse_twice()
        self._model = weakref.ref(model)
        self._handles: dict[str, list[Any]] = {}
        self._attach(model)
        with torch.no_grad():
            for _, item in self._named():
                item.hide()
                if item.hard:
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
    def hard(self) -> set[str]:
        """The names of those that are held as in mode `"hard"`."""
        return {name for name, item in self._named() if item.hard}

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
                item = self._held[name]
                memories = [optimizer.state.get(item.parameter, {}) for optimizer in self._optimizers]
                if item.hard:
                    for memory in memories:
                        item.lower(memory)  # what comes in again remembers nothing
                item.put(mask)
                if item.hard:
                    item.clear_gradient()
                    for memory in memories:
                        item.clear_memory(memory)

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
        """Take away all hooks. The parameters keep their zeros, exactly +0.0.

        Raises `InputError`, after that, for a parameter in whose place there is another one.
        """
        self.zero()
        for optimizer in self._optimizers:
            self._lower(optimizer)
        for handle in [item for some in self._handles.values() for item in some]:
            handle.remove()
        self._handles.clear()
        for _, item in self._named():
            item.gradient = None
            if getattr(item.parameter, MARK, None) is self:
                delattr(item.parameter, MARK)
        self.check_places()

    def check_places(self) -> None:
        """Raises `InputError` for a parameter that is no longer in the model: what took its place has no zeros."""
        model = self._model()
        there = None if model is None else {id(item) for item in model.parameters()}
        gone = [name for name, item in self._named() if there is not None and id(item.parameter) not in there]
        if gone:
            raise InputError(
                explain(
                    f"The zeros of `{gone[0]}` are not held",
                    evidence="another parameter has taken its place in the model since they were",
                    next_step="write into the parameter instead, or sparsify anew after replacing it",
                )
            )

    def _named(self) -> Iterator[tuple[str, Held]]:
        return iter(self._held.items())

    def _refuse_twice(self) -> None:
        if len(self._by_parameter) < len(self._held):
            raise InputError(
                explain("Two masks are for one tied parameter", next_step="give the mask under one of its names")
            )
        for name, item in self._named():
            if item.parameter.is_meta:
                raise InputError(explain(f"`{name}` has no values to hold", next_step="load the model first"))
            if getattr(item.parameter, MARK, None) is not None:
                raise InputError(
                    explain(f"The zeros of `{name}` are held already", next_step="detach the other sparsifier first")
                )

    def _attach(self, model: nn.Module) -> None:
        """Hooks know this object weakly; the parameters keep it alive, so that a loop need not."""
        for _, item in self._named():
            self._watch_gradient(item)
        owners = {id(module): module for module in model.modules() if self._own(module)}
        for number, module in owners.items():
            loading: Any = module
            hook = _Weakly(weakref.ref(self), "_on_load")
            self._handles[str(number)] = [loading.register_load_state_dict_post_hook(hook)]
        listen()

    def _watch_gradient(self, item: Held) -> None:
        setattr(item.parameter, MARK, self)
        parameter: Any = item.parameter
        wanted = parameter.requires_grad
        parameter.requires_grad_(True)  # a frozen one takes no hook, and may be thawed later
        hook = _Weakly(weakref.ref(self), "_on_gradient")
        self._handles[item.name] = [parameter.register_post_accumulate_grad_hook(hook)]
        parameter.requires_grad_(wanted)

    def _own(self, module: nn.Module) -> list[Held]:
        """What is held of the module's own parameters."""
        found = [self._by_parameter.get(id(item)) for item in module.parameters(recurse=False)]
        return [item for item in found if item is not None]

    def _on_gradient(self, parameter: Tensor) -> None:
        if torch.is_grad_enabled():  # the backward pass is recorded, too
            with torch.no_grad():
                self._on_gradient(parameter)
            return
        listen()
        item = self._by_parameter[id(parameter)]
        if self.watching and parameter.grad is not None:
            item.gradient = parameter.grad.detach().clone()
        if item.hard:
            item.clear_gradient()

    def before_step(self, optimizer: Optimizer, mine: list[Held]) -> None:
        """Memory is zero where the mask is; or the optimizer finds the dense weights."""
        rooted = type(optimizer) in KEEPS_ZEROS and not any(group.get("fused") for group in optimizer.param_groups)
        if optimizer not in self._optimizers:
            self._optimizers.add(optimizer)
            if rooted:
                hook = _Weakly(weakref.ref(self), "_lower")
                self._handles[f"optimizer {id(optimizer)}"] = [optimizer.register_state_dict_pre_hook(hook)]
        for item in mine:
            memory = optimizer.state.get(item.parameter, {})
            if not item.untouched(memory):
                with torch.no_grad():
                    item.show()
                    if item.hard:
                        item.clear_gradient(known=True)
                        item.clear_memory(memory)
            if rooted and item.hard and item.lift_due():
                with torch.no_grad():
                    item.lift(memory)

    def _lower(self, optimizer: Optimizer) -> None:
        """Second moments are exactly zero where masked: for whoever saves them, and for whoever has them after this."""
        with torch.no_grad():
            for _, item in self._named():
                if item.hard:
                    item.lower(optimizer.state.get(item.parameter, {}))

    def _on_load(self, module: nn.Module, keys: Any) -> None:
        """A module that owns parameters was loaded: in place, or with others put into their place (`assign=True`)."""
        self._follow_places()
        with torch.no_grad():
            for item in self._own(module):
                item.take()

    def _follow_places(self) -> None:
        """Hold what has taken the place of a parameter, under its name."""
        model = self._model()
        parameters = {} if model is None else dict(model.named_parameters(remove_duplicate=False))
        for name, item in self._named():
            now = parameters.get(name, item.parameter)
            if now is not item.parameter and now.shape == item.parameter.shape:
                for handle in self._handles.pop(name):
                    handle.remove()
                delattr(item.parameter, MARK)
                del self._by_parameter[id(item.parameter)]
                item.move_to(now)
                self._by_parameter[id(now)] = item
                self._watch_gradient(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_nothing, ())  # copies of a parameter are not held

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None


class _Weakly:
    """A hook that calls a method of a hold as long as there is one. What is pickled of it does nothing."""

    def __init__(self, this: weakref.ref[Hold], method: str) -> None:
        self.this, self.method = this, method

    def __call__(self, *args: Any) -> Any:
        hold = self.this()
        return None if hold is None else getattr(hold, self.method)(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_idle, ())


def _nothing(*args: Any) -> None:
    return None


def _idle() -> Callable[..., None]:
    return _nothing


__all__ = ["MODES", "Hold"]
