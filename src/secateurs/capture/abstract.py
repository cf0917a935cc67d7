"""Shapes of the operators that most of a network is made of, without asking PyTorch.

In an abstract run only shapes matter, and PyTorch's own way to them takes milliseconds for a batch norm. The few rules
here are checked against it in the tests; for anything unusual they say nothing and PyTorch answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
CONVOLUTIONS = frozenset((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default))


def empty_result(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """An empty tensor like the one that `func` would give, or None if no rule here is sure of it."""
    if kwargs or not args or not isinstance(args[0], Tensor):
        return None
    x: Tensor = args[0]
    if not x.is_contiguous() or (len(args) > 1 and isinstance(args[1], Tensor) and args[1].dtype != x.dtype):
        return None
    if func is aten.batch_norm.default:
        extras = [item for item in args[1:5] if item is not None]
        fits = x.dim() > 1 and all(tuple(item.shape) == (x.shape[1],) for item in extras)
        return torch.empty_like(x) if fits else None
    if func is aten.layer_norm.default:
        inner = tuple(args[1])
        extras = [item for item in args[2:4] if item is not None]
        fits = tuple(x.shape[x.dim() - len(inner) :]) == inner and all(tuple(item.shape) == inner for item in extras)
        return torch.empty_like(x) if fits else None
    if func in CONVOLUTIONS:
        shape = _convolved(x, *args[1:])
        return None if shape is None else x.new_empty(shape)
    if func is aten.linear.default:
        weight = args[1]
        bias = args[2] if len(args) > 2 else None
        fits = weight.dim() == 2 and x.dim() > 0 and x.shape[-1] == weight.shape[1]
        fits = fits and (bias is None or tuple(bias.shape) == tuple(weight.shape[:1]))
        return x.new_empty((*x.shape[:-1], weight.shape[0])) if fits else None
    return None


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[int, ...] | None:
    spatial = weight.dim() - 2
    fits = x.dim() == weight.dim() and x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    if not fits or not weight.is_contiguous() or (bias is not None and tuple(bias.shape) != tuple(weight.shape[:1])):
        return None
    shape = [x.shape[0], weight.shape[0]]
    for dim in range(spatial):
        step, pad, hole = (_at(item, dim) for item in (stride, padding, dilation))
        size = (x.shape[2 + dim] + 2 * pad - hole * (weight.shape[2 + dim] - 1) - 1) // step + 1
        if size < 1:
            return None
        shape.append(size)
    return tuple(shape)


def _at(item: Any, dim: int) -> int:
    """The entry for one dimension of a size that may be given once for all."""
    return int(item) if isinstance(item, int) else int(item[dim] if len(item) > 1 else item[0])
