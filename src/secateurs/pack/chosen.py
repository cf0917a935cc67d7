"""Which weights of a model are to be coded, in how many bits; and their numbers as NumPy knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.globs import fits as matches
from secateurs.capture.copying import copied
from secateurs.pack.coded import Bools, Coded, Floats

Bits = int | Mapping[Any, int | None]
"""One number for every weight matrix and kernel; or globs over names and module paths, and classes of modules, of which
the first that matches counts, globs before classes. None, or no match: the tensor stays as it is."""


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weight matrices and kernels by name, a tied one once: floating-point parameters of at least two axes."""
    return {name: item for name, item in model.named_parameters() if item.dim() > 1 and item.is_floating_point()}


def chosen(model: nn.Module, bits: Bits) -> dict[str, int]:
    """`{parameter name: bits}` for the weights that `bits` chooses.

    Raises `UnknownNameError` for a glob or class that fits no weight and `InputError` when none is chosen, or for bits
    that are no whole numbers.
    """
    _check_bits(bits)
    named, kinds = weights(model), _kinds(model)
    given: Mapping[Any, int | None] = {"*": bits} if isinstance(bits, int) else bits
    keys = sorted(given, key=lambda key: isinstance(key, type))

    def fits(name: str, key: str | type) -> bool:
        if isinstance(key, type):
            return any(issubclass(kind, key) for kind in kinds[id(named[name])])
        return matches(name, key) or matches(name.rpartition(".")[0], key)

    for key in keys:
        if named and not any(fits(name, key) for name in named):
            text = key.__name__ if isinstance(key, type) else repr(key)
            close = [] if isinstance(key, type) else nearest(key, [*named, *(n.rpartition(".")[0] for n in named)])
            raise UnknownNameError(
                explain(
                    f"No weight is {'of a' if isinstance(key, type) else 'named'} {text}",
                    evidence=f"{len(named)} weight matrices and kernels, such as {', '.join(list(named)[:3])}",
                    next_step=f"did you mean {close[0]!r}?" if close else "name parameters, module paths, or globs",
                )
            )
    wanted = {name: next((given[key] for key in keys if fits(name, key)), None) for name in named}
    found = {name: number for name, number in wanted.items() if number is not None}
    if not found:
        raise InputError(explain("No weight is chosen to be coded", evidence=f"the model has {len(named)}"))
    return found


def _check_bits(bits: Bits) -> None:
    """Raises `InputError` unless a whole number, or such numbers and None by glob."""
    each: Mapping[Any, Any] = bits if isinstance(bits, Mapping) else {"*": bits}
    for key, number in each.items():
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not isinstance(key, (str, type)) or not (whole or (number is None and isinstance(bits, Mapping))):
            raise InputError(
                explain(
                    "Bits are a whole number, or such numbers by layer",
                    evidence=f"got {bits!r}"[:200],
                    next_step='write 5, or {"conv*": 8, "fc*": 5}',
                )
            )


def _kinds(model: nn.Module) -> dict[int, list[type]]:
    """Classes of the modules that own a parameter, by its identity."""
    found: dict[int, list[type]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            found.setdefault(id(parameter), []).append(type(module))
    return found


def numbers(tensor: Tensor) -> Floats:
    """The tensor as float32. Raises `InputError` when it is not of finite floating-point numbers."""
    found = tensor.detach().to("cpu", torch.float32).numpy() if tensor.is_floating_point() else None
    if found is None or not np.isfinite(found).all():
        raise InputError(
            explain(
                "These weights cannot be coded",
                evidence=f"{tensor.dtype}" if found is None else f"{np.count_nonzero(~np.isfinite(found))} not finite",
                next_step="code finite floating-point weights",
            )
        )
    return found


def nonzero(values: Floats) -> Bools | None:
    """Which entries are not zero; None if all of them."""
    kept: Bools = values != 0
    return None if kept.all() else kept


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def weighed(importance: Tensor | NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """What an error counts at each entry, as float64. Raises `InputError` unless finite, >= 0 and of this shape."""
    if importance is None:
        return None
    found = np.asarray(importance.detach().cpu() if isinstance(importance, Tensor) else importance, dtype=np.float64)
    if found.shape != shape or not np.isfinite(found).all() or (found < 0).any():
        raise InputError(
            explain(
                "The importance does not fit the weights",
                evidence=f"{found.shape} for {shape}, smallest {found.min(initial=np.inf):g}",
                next_step="give one finite number of at least 0 for every weight, such as a Fisher diagonal",
            )
        )
    return found


def of_names(importance: Mapping[str, Tensor] | None, named: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The importance by name, empty for None. Raises `UnknownNameError` for a name that is not coded."""
    given = importance or {}
    for name in given:
        if name not in named:
            raise UnknownNameError(explain(f"No coded weight is named {name!r}", where="importance"))
    return given


def with_coded(model: nn.Module, coded: Mapping[str, Coded]) -> nn.Module:
    """A copy of the model with these tensors decoded in place of its own, in its own dtypes.

    Raises `UnknownNameError` for a name that is neither parameter nor buffer and `InputError` for another shape.
    """
    fresh = copied(model, {})
    own = {**dict(fresh.named_parameters(remove_duplicate=False)), **dict(fresh.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for name, tensor in coded.items():
            if name not in own:
                close = nearest(name, own)
                raise UnknownNameError(
                    explain(f"No tensor is named {name!r}", next_step=f"did you mean {close[0]!r}?" if close else "")
                )
            if tuple(own[name].shape) != tensor.shape:
                raise InputError(
                    explain(
                        "A coded tensor does not fit the model",
                        where=f"`{name}`",
                        evidence=f"{tensor.shape} coded, {tuple(own[name].shape)} in the model",
                    )
                )
            own[name].copy_(decoded(tensor))
    return fresh


def decoded(tensor: Coded) -> Tensor:
    """The tensor in its dtype."""
    values = tensor.decode()
    if tensor.dtype == "bfloat16" and values.dtype == np.uint16:
        return torch.from_numpy(values.copy()).view(torch.bfloat16)
    kind: torch.dtype = getattr(torch, tensor.dtype)
    return torch.from_numpy(np.ascontiguousarray(values)).to(kind)


__all__ = [
    "Bits",
    "chosen",
    "decoded",
    "dtype_name",
    "nonzero",
    "numbers",
    "of_names",
    "weighed",
    "weights",
    "with_coded",
]
