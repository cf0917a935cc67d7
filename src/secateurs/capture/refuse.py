"""What can not be captured although it runs: compiled code, and tensors in arguments that stay closed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import InputError, explain
from secateurs.capture.bind import is_literal

DEPTH = 4
"""How many objects deep an argument is searched for tensors."""


def refuse_compiled(model: nn.Module) -> None:
    """Raises `InputError` if the model, or a part of it, was compiled, or scripted or traced by `torch.jit`."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(
                explain(
                    "A compiled module can not be cut",
                    where=f"`{name}`" if name else "the model itself",
                    evidence="torch.compile runs code that was made for these shapes",
                    next_step="pass the module that was compiled (`_orig_mod`), and compile the smaller one afterwards"
                    if hasattr(module, "_orig_mod")
                    else "cut it before `.compile()` is called, and compile the smaller one afterwards",
                )
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                explain(
                    "A TorchScript module can not be cut",
                    where=f"`{name}`" if name else "the model itself",
                    evidence=f"it is a {type(module).__name__}: compiled code, and no class to give back",
                    next_step="pass the nn.Module that it was made from; script or trace the smaller one afterwards",
                )
            )


def refuse_meta(*trees: Any) -> None:
    """Raises `InputError` if a module or tensor among `trees` has a shape but no values (PyTorch's `meta` device)."""
    for item in pytree.tree_leaves(trees):
        named = [("the example inputs", item)] if isinstance(item, Tensor) else []
        if isinstance(item, nn.Module):
            named = [(f"`{name}`", tensor) for name, tensor in (*item.named_parameters(), *item.named_buffers())]
        for where, tensor in named:
            if tensor.device.type == "meta":
                raise InputError(
                    explain(
                        "There are no values to score or to prove a cut with",
                        where=where,
                        evidence="it is on the device 'meta'",
                        next_step="load the weights first (`to_empty`, then `load_state_dict`)",
                    )
                )


def refuse_hidden_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises `InputError` if an argument that is no list, tuple or dict holds tensors or arrays.

    They would count as constants, and the graph would hold on to the values of this one call.
    """
    for path, leaf in pytree.tree_flatten_with_path((args, dict(kwargs)))[0]:
        if isinstance(leaf, Tensor) or is_literal(leaf) or not _holds_data(leaf, DEPTH):
            continue
        kind = type(leaf).__name__
        array = isinstance(leaf, np.ndarray)
        register = (
            f"torch.export.register_dataclass({kind})"
            if hasattr(leaf, "__dataclass_fields__")
            else f"torch.utils._pytree.register_pytree_node({kind}, ...)"
        )
        raise InputError(
            explain(
                "An argument holds tensors where they can not be followed",
                where=f"argument {pytree.keystr(path[1:])} of type {kind}",
                evidence="PyTorch opens lists, tuples, dicts and registered classes, no others",
                next_step="pass it as a tensor, with torch.from_numpy" if array else f"call {register} once before",
            )
        )


def _holds_data(item: Any, depth: int) -> bool:
    if isinstance(item, (Tensor, np.ndarray, nn.Module)):
        return True
    if depth == 0 or is_literal(item) or isinstance(item, type) or inspect.isroutine(item):
        return False
    parts: list[Any] = list(vars(item).values()) if hasattr(item, "__dict__") else []
    parts += [getattr(item, name, None) for kind in type(item).__mro__ for name in _slots(kind)]
    if isinstance(item, Mapping):
        parts += item.values()
    elif isinstance(item, (list, tuple, set, frozenset)):
        parts += item
    return any(_holds_data(part, depth - 1) for part in parts)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
