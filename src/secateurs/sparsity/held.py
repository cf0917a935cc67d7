"""`Held`: one parameter whose masked entries are zero.

Masks are integers of the weights' width, all ones where a weight is kept: `and` with them is as fast as copying, gives
+0.0 from any bits, infinities included, and leaves kept weights alone. Filling through a bool mask takes ten times as
long on a CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ROOTED = ("exp_avg_sq", "max_exp_avg_sq")
"""What the Adam family takes the square root of."""

TINY = 2.0**-100
FEW = 4096
"""Entries whose roots are not worth a detour."""

LIFT_EVERY = 64
"""Steps from lift to lift. Second moments decay: of 0.9 a step, 2^-100 is 2^-110 by then."""


class Held:
    """One parameter and what is masked of it. With `dense`, also the weight that it would be without the mask.

    Everything here works in place on the parameter, and is called without recording gradients. Writes by others are
    noticed by the parameter's version; those through `.data` are not, and need `zero`.
    """

    def __init__(self, name: str, parameter: nn.Parameter, mask: Tensor, dense: bool) -> None:
        self.name, self.parameter = name, parameter
        self.gradient: Tensor | None = None
        self._keep, self._dtype = _ones_where(mask, parameter), parameter.dtype
        self._dense = parameter.detach().clone() if dense else None
        self._shown = False
        self._loaded: Tensor | None = None
        self._clean: dict[str, tuple[weakref.ref[Tensor], int]] = {}
        self._seen: tuple[weakref.ref[Tensor], int] | None = None
        self._tiny: Tensor | None = None
        self._lift_in = 0
        self._version = -1

    @property
    def mask(self) -> Tensor:
        """Bool, True = kept."""
        return (self._keep != 0).to(self.parameter.device)

    @property
    def hard(self) -> bool:
        """Is nothing remembered of what is masked?"""
        return self._dense is None

    @property
    def dense(self) -> Tensor:
        """The weight without its mask."""
        self._end_step()
        self._absorb()
        return self.parameter.detach() if self._dense is None else self._dense

    def zero(self, *, written: bool = True) -> None:
        """Masked entries are exactly +0.0 from here on; what others wrote to kept ones counts."""
        self._end_step()
        self._absorb(written)
        _bits(self.parameter).bitwise_and_(self._keep)
        self._version = self.parameter._version

    def show(self) -> None:
        """Before an optimizer step: the dense weight is in the parameter."""
        if self._dense is None:
            if self.parameter._version != self._version:
                self.zero()
        elif not self._shown:
            self._absorb()
            self._exchange()

    def hide(self) -> None:
        """After an optimizer step: masked entries are zero."""
        self._loaded = None
        if self._dense is not None:
            if self._shown:
                self._exchange()
            torch.bitwise_and(_bits(self._dense), self._keep, out=_bits(self.parameter))
        else:
            _bits(self.parameter).bitwise_and_(self._keep)
        self._version = self.parameter._version

    def untouched(self, state: Mapping[str, Any]) -> bool:
        """Is all as it was left, so that nothing is to be done before an optimizer step?"""
        if self._dense is not None or self.parameter._version != self._version:
            return False
        gradient, seen = self.parameter.grad, self._seen
        if gradient is not None and (seen is None or seen[0]() is not gradient or seen[1] != gradient._version):
            return False
        return all(self._is_clean(key, item) for key, item in state.items())

    def stepped(self, state: Mapping[str, Any]) -> None:
        """After a step that leaves zeros in place: the parameter and what the optimizer remembers are as clean."""
        self._loaded, self._version = None, self.parameter._version
        for key, (known, _) in self._clean.items():
            tensor = known()
            there = tensor is not None and state.get(key) is tensor
            self._clean[key] = known, tensor._version if there and tensor is not None else -1

    def put(self, mask: Tensor) -> None:
        """Another mask. What it lets in again is what the dense weight is, or what was loaded last, or zero."""
        self._end_step()
        self._absorb()
        if self._loaded is not None:
            self.parameter.copy_(self._loaded)
        self._keep = _ones_where(mask, self.parameter)
        self._clean.clear()
        self._seen = self._tiny = None
        loaded = self._loaded
        self.hide()
        self._loaded = loaded

    def restore(self, dense: Tensor) -> None:
        """This is the dense weight."""
        self._end_step()
        self._follow()
        assert self._dense is not None
        self._dense.copy_(dense)
        self.hide()

    def take(self) -> None:
        """The parameter was loaded: zeros at masked places say nothing about the dense weight, other values do.

        Until the next optimizer step another mask may still come, which then finds all that was loaded.
        """
        self._end_step()
        self._follow()
        if self.parameter._version == self._version:
            return  # taken already, under another name
        now = self.parameter.detach()
        if self._dense is None:
            self._loaded = now.clone()
        else:
            self._dense.copy_(torch.where((self._keep == 0) & (now == 0), self._dense, now))
        self.zero(written=False)

    def clear(self, tensor: Tensor) -> None:
        """Masked entries of a tensor of the parameter's shape are exactly +0.0; of a sparse one those that it has."""
        keep = self._keep
        plain = tensor.dtype is self._dtype and tensor.layout is torch.strided and tensor.device == keep.device
        if plain and tensor.stride() == keep.stride():
            tensor.view(keep.dtype).bitwise_and_(keep)  # nearly always, in every step: no more than it takes
            return
        self._follow()
        if tensor.is_sparse:
            kept = (self._keep != 0).to(tensor.device)
            tensor._values().masked_fill_(~kept[tuple(tensor._indices())], 0.0)
        elif tensor.element_size() == self._keep.element_size() and tensor.device == self._keep.device:
            _bits(tensor).bitwise_and_(self._keep)
        else:
            tensor.masked_fill_((self._keep == 0).to(tensor.device), 0.0)

    def clear_gradient(self, *, known: bool = False) -> None:
        """Masked entries of the gradient are zero. `known`: one that nobody has written to since is not looked at."""
        gradient = self.parameter.grad
        if gradient is None:
            return
        if known and self._seen is not None and self._seen[0]() is gradient and self._seen[1] == gradient._version:
            return
        self.clear(gradient)
        self._seen = weakref.ref(gradient), gradient._version

    def move_to(self, parameter: nn.Parameter) -> None:
        """Another parameter has taken the place of this one."""
        self.parameter, self._version, self._seen = parameter, -1, None
        self._clean.clear()

    def clear_memory(self, state: Mapping[str, Any]) -> None:
        """Masked entries of what the optimizer remembers are zero: once for each tensor, for they stay so, and again
        where something else than a step has written to it.
        """
        for key, item in state.items():
            if not self._is_clean(key, item):
                self.clear(item)
                self._clean[key] = weakref.ref(item), item._version
                self._lift_in = 0

    def clear_all_memory(self, state: Mapping[str, Any]) -> None:
        """The same after a step that may have written anything anywhere."""
        self._clean.clear()
        self.clear_memory(state)

    def _is_clean(self, key: str, item: Any) -> bool:
        """Has nobody written to this since it was cleaned, or is it nothing to clean?"""
        known, version = self._clean.get(key, (None, 0))
        tensor = None if known is None else known()
        if tensor is not None and tensor is item and tensor._version == version:
            return True
        return not (isinstance(item, Tensor) and item.shape == self._keep.shape and item.is_floating_point())

    def lift_due(self) -> bool:
        """Is it time to lift again? To be asked once a step."""
        due, self._lift_in = self._lift_in == 0, (self._lift_in or LIFT_EVERY) - 1
        return due

    def lift(self, state: Mapping[str, Any]) -> None:
        """Second moments are tiny instead of zero where masked, until `lower`.

        On CPUs PyTorch takes six times as long for the root of a zero as for that of other numbers. A step is the same:
        what is divided by the root is zero there.
        """
        for item in self._rooted(state):
            if self._tiny is None or self._tiny.stride() != item.stride():
                kept, tiny = _ones_where(self._keep != 0, item), _bits(torch.tensor(TINY, dtype=item.dtype))
                self._tiny = torch.bitwise_and(kept.bitwise_not_(), tiny)
            self.clear(item)
            _bits(item).bitwise_or_(self._tiny)

    def lower(self, state: Mapping[str, Any]) -> None:
        """What was lifted is zero again; tensors that came into its place since then were not."""
        self._lift_in = 0
        known = [tensor() for tensor, _ in self._clean.values()]
        for item in self._rooted(state):
            if any(item is tensor for tensor in known):
                self.clear(item)

    def _end_step(self) -> None:
        """An optimizer step that was broken off has left the dense weight in the parameter."""
        if self._shown:
            self._follow()
            self.hide()

    def _rooted(self, state: Mapping[str, Any]) -> list[Tensor]:
        """What a root is taken of, if that is worth a detour."""
        there = self.parameter
        if there.numel() < FEW or there.device.type != "cpu" or there.dtype not in (torch.float32, torch.float64):
            return []
        found = [state.get(key) for key in ROOTED]
        return [item for item in found if isinstance(item, Tensor) and _alike(item, there)]

    def _absorb(self, written: bool | None = None) -> None:
        """What others wrote to kept entries is part of the dense weight."""
        self._follow()
        if written is None:
            written = self.parameter._version != self._version
        if self._dense is not None and written and not self._shown:
            self._dense.copy_(torch.where(self._keep != 0, self.parameter.detach(), self._dense))

    def _exchange(self) -> None:
        """The parameter and the dense weight change places: pointers, not values."""
        assert self._dense is not None
        self._dense, self.parameter.data = self.parameter.data, self._dense
        self._shown = not self._shown

    def _follow(self) -> None:
        """Be where the parameter went, of its dtype, and laid out as it is."""
        there = self.parameter
        moved = self._keep.device != there.device or self._dtype != there.dtype
        if moved or self._keep.stride() != there.stride():
            self._keep, self._dtype, self._tiny = _ones_where(self._keep != 0, there), there.dtype, None
            if self._dense is not None:
                self._dense = torch.empty_like(there.detach()).copy_(self._dense)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.dtype == other.dtype and one.shape == other.shape


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers."""
    return tensor.view(WIDTHS[tensor.element_size()])


def _ones_where(mask: Tensor, parameter: Tensor) -> Tensor:
    """All bits set where the mask is, laid out in memory as the parameter is."""
    made = torch.empty_like(parameter.detach(), dtype=WIDTHS[parameter.element_size()])
    return made.copy_(mask.to(parameter.device)).neg_()


__all__ = ["ROOTED", "Held"]
