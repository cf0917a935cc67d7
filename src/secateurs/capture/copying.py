"""Deep copies of a module tree, for running it and for cutting it: the original stays as it is."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import CaptureError, explain

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout))


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(model, memo)`, in which every `torch.Generator` becomes one of its own in the same state.

    Raises `CaptureError` when the model holds something that can not be copied.
    """
    try:
        return _copy(model, memo)  # type: ignore[no-any-return]
    except Exception as error:
        raise CaptureError(
            explain(
                f"{type(model).__name__} can not be copied, and the original must stay as it is",
                evidence=f"{type(error).__name__}: {str(error)[:300]}",
                next_step="make the attribute that the message names a parameter, a buffer or plain data, or give its "
                "class a __deepcopy__",
            )
        ) from error


def _copy(item: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy(item, memo)`, without its detours for modules and plain dictionaries, of which a model is made."""
    kind: Any = type(item)
    if kind in _PLAIN:
        return item
    known = memo.get(id(item))
    if known is not None:
        return known
    if kind is tuple and all(type(part) in _PLAIN for part in item):
        return item
    if kind is dict or kind is OrderedDict:
        made: Any = kind()
        _keep(item, made, memo)
        made.update((_copy(key, memo), _copy(value, memo)) for key, value in item.items())
        return made
    if kind is set and all(type(part) in _PLAIN for part in item):
        made = set(item)
        _keep(item, made, memo)
        return made
    if isinstance(item, nn.Module) and _copied_by_state(kind):
        made = object.__new__(kind)
        _keep(item, made, memo)
        state = ((name, value) for name, value in item.__dict__.items() if name != "_compiled_call_impl")
        made.__dict__.update((name, _copy(value, memo)) for name, value in state)
        return made
    _renew_generators(item, memo)
    return copy.deepcopy(item, memo)


def _keep(item: Any, made: Any, memo: dict[int, Any]) -> None:
    """What `copy.deepcopy` notes: the copy of an object, and the object itself, so that its `id` is not reused."""
    memo[id(item)] = made
    memo.setdefault(id(memo), []).append(item)


@cache
def _copied_by_state(kind: type[nn.Module]) -> bool:
    """Nothing but `nn.Module` says how instances of the class are copied, so the contents of `__dict__` are all.

    PyTorch's own layers have a `__setstate__` for files of older versions, which does nothing to a living module.
    """
    hooks = {"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"}
    hooks |= {"__setstate__", "__new__", "__slots__"}
    for base in kind.__mro__:
        if base in (nn.Module, object):
            continue
        said = hooks & set(vars(base))
        if said and not (said == {"__setstate__"} and base.__module__.startswith("torch.nn.modules.")):
            return False
    return kind not in copyreg.dispatch_table


def _renew_generators(item: Any, memo: dict[int, Any]) -> None:
    """Enter a copy of every generator that deepcopy would meet in `item`, which it does not copy by itself."""
    inside = (
        [part for module in item.modules() for part in vars(module).values()] if isinstance(item, nn.Module) else item
    )
    for leaf in pytree.tree_leaves(inside):
        if isinstance(leaf, torch.Generator):
            memo.setdefault(id(leaf), torch.Generator(leaf.device).set_state(leaf.get_state()))
