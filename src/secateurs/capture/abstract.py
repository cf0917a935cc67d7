"""Shapes of the operators that most of a network is made of, without asking PyTorch.

In an abstract run only shapes matter, and PyTorch's own way to them takes milliseconds for a batch norm. The few rules
here are checked against it in the tests; for anything unusual they say nothing and PyTorch answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

aten = torch.ops.aten
CONVOLUTIONS = frozenset((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default))
POINTWISE = frozenset((aten.relu.default, aten.silu.default, aten.sigmoid.default, aten.gelu.default))
"""Of one tensor, with options that do not change the shape."""
IN_PLACE = frozenset((aten.relu_.default, aten.silu_.default, aten.hardtanh_.default, aten.hardswish_.default))
"""The result is the argument itself."""
PAIRWISE = frozenset((aten.add.Tensor, aten.mul.Tensor))


def empty_result(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], fake: FakeTensorMode | None = None
) -> Tensor | None:
    """An empty tensor like the one that `func` would give, or None if no rule here is sure of it.

    With a mode `fake` it is one of its tensors, without data.
    """
    if kwargs or not args or not isinstance(args[0], Tensor):
        return None
    x: Tensor = args[0]
    if fake is not None and isinstance(x, FakeTensor) and func in IN_PLACE and x.is_floating_point():
        return x
    if not _plain(x) or (len(args) > 1 and isinstance(args[1], Tensor) and args[1].dtype != x.dtype):
        return None
    shape = _shape(func, x, args)
    if shape is None:
        return None
    if fake is None:
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    with no_dispatch():
        return FakeTensor(fake, torch.empty(shape, dtype=x.dtype, device="meta"), x.device)


def _shape(func: Any, x: Tensor, args: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The shape of the contiguous result, or None."""
    if func is aten.batch_norm.default:
        extras = [item for item in args[1:5] if item is not None]
        fits = x.dim() > 1 and all(tuple(item.shape) == (x.shape[1],) for item in extras)
        return tuple(x.shape) if fits else None
    if func is aten.layer_norm.default:
        inner = tuple(args[1])
        extras = [item for item in args[2:4] if item is not None]
        fits = tuple(x.shape[x.dim() - len(inner) :]) == inner and all(tuple(item.shape) == inner for item in extras)
        return tuple(x.shape) if fits else None
    if func in CONVOLUTIONS:
        return _convolved(x, *args[1:])
    if func is aten.linear.default:
        weight = args[1]
        bias = args[2] if len(args) > 2 else None
        fits = weight.dim() == 2 and x.dim() > 0 and x.shape[-1] == weight.shape[1]
        fits = fits and (bias is None or tuple(bias.shape) == tuple(weight.shape[:1]))
        return (*x.shape[:-1], weight.shape[0]) if fits else None
    if func in POINTWISE and x.is_floating_point():
        return tuple(x.shape)
    if func in PAIRWISE:
        return _broadcast(x, args[1])
    if func is aten.adaptive_avg_pool2d.default and x.dim() == 4 and x.is_floating_point():
        size = tuple(args[1])
        return (*x.shape[:2], *size) if len(size) == 2 and min(size) > 0 and x.numel() else None
    return None


def _plain(x: Tensor) -> bool:
    """Contiguous, and where a dimension is of size 1 its stride is the usual one too."""
    step = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if stride != step:
            return False
        step *= max(int(size), 1)
    return True


def _broadcast(x: Tensor, y: Any) -> tuple[int, ...] | None:
    """The common shape of two tensors, if one of them has it already."""
    if not isinstance(y, Tensor) or y.device != x.device or y.dim() != x.dim() or not _plain(y):
        return None
    shape = tuple(b if a == 1 else a for a, b in zip(x.shape, y.shape, strict=True))
    fits = all(b in (1, size) for b, size in zip(y.shape, shape, strict=True))
    return shape if fits and shape in (tuple(x.shape), tuple(y.shape)) else None


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
