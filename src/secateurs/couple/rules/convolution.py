"""Convolutions of every rank, grouped, depthwise and transposed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateurs.capture.graph import Node
from secateurs.couple.causes import against, fixed
from secateurs.couple.coupler import Coupler, Layer, spread, varying
from secateurs.couple.rules.registry import arguments, rule, value


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution")
def convolution(c: Coupler, node: Node) -> None:
    """`y[b, o, ..] = sum_i x[b, i, ..] * w[o, i, ..] + b[o]`, in `groups` blocks."""
    given = arguments(node)
    if given.get("transposed"):
        transposed_convolution(c, node)
        return
    x, w, bias, groups = given["input"].value, given["weight"].value, value(given["bias"]), given["groups"]
    _freeze_taps(c, w)
    channel = len(c.shape(x)) - len(c.shape(w)) + 1
    ids_in, out, weight_in = c.along(x, channel), c.along(w, 0), c.along(w, 1)
    spatial = _spatial(c, node, x, w)
    c.consumers.add((w, 1))
    if groups == 1:
        c.pair(ids_in, weight_in, against(c, node, "multiplies it with", x, ids_in, w, weight_in))
    else:
        out = _grouped(c, node, x, w, ids_in, out, weight_in, groups)
    if bias is not None:
        added = c.along(bias, 0)
        c.pair(out, added, against(c, node, "adds it to", w, out, bias, added))
    _finish(c, node, x, spatial, out, channel)


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed_convolution(c: Coupler, node: Node) -> None:
    """Transposed convolution: the weight is `[in, out / groups, ..]`."""
    given = arguments(node)
    x, w, bias, groups = given["input"].value, given["weight"].value, value(given["bias"]), given["groups"]
    _freeze_taps(c, w)
    channel = len(c.shape(x)) - len(c.shape(w)) + 1
    ids_in, weight_in, out = c.along(x, channel), c.along(w, 0), c.along(w, 1)
    spatial = _spatial(c, node, x, w)
    c.consumers.add((w, 0))
    c.pair(ids_in, weight_in, against(c, node, "multiplies it with", x, ids_in, w, weight_in))
    if groups > 1:
        out = _grouped_transposed(c, node, x, weight_in, out, groups, c.shape(w)[1])
    if bias is not None:
        added = c.along(bias, 0)
        c.pair(out, added, against(c, node, "adds it to", w, out, bias, added))
    _finish(c, node, x, spatial, out, channel)


def _grouped(
    c: Coupler,
    node: Node,
    x: int,
    w: int,
    ids_in: Tensor | None,
    out: Tensor | None,
    weight_in: Tensor | None,
    groups: int,
) -> Tensor | None:
    """Wide groups lose the same positions in every group; groups of one channel are themselves the unit."""
    wide_in = weight_in is not None
    wide_out = out is not None and out.numel() > groups
    if wide_in and wide_out:
        assert out is not None and weight_in is not None
        if ids_in is None:
            c.freeze(weight_in, f"{node.where} multiplies it with {fixed(c, x)}")
        else:
            c.tie(ids_in.reshape(groups, -1), weight_in)
        rows = out.reshape(groups, -1)
        c.tie(rows, rows[:1])
        return out
    if weight_in is not None:
        c.freeze(weight_in, f"{node.where} has {groups} groups, which go as a whole")
    if ids_in is None and out is not None and wide_out:
        rows = out.reshape(groups, -1)
        c.tie(rows, rows[:1])
        return out
    if ids_in is None or out is None:
        c.pair(ids_in, out, against(c, node, "ties it, group by group, to", x, ids_in, w, out))
        return None
    block = ids_in.reshape(groups, -1)
    c.tie(block, block[:, :1])
    c.tie(out.reshape(groups, -1), block[:, :1])
    return out


def _grouped_transposed(
    c: Coupler, node: Node, x: int, weight_in: Tensor | None, out: Tensor | None, groups: int, width: int
) -> Tensor | None:
    if weight_in is None:
        if out is not None:
            c.freeze(out, f"{node.where} multiplies it, group by group, with {fixed(c, x)}")
        return None
    if out is not None and weight_in.numel() > groups:
        rows = weight_in.reshape(groups, -1)
        c.tie(rows, rows[:1])
        return out.repeat(groups)
    if out is not None:
        c.freeze(out, f"{node.where} has {groups} groups, which go as a whole")
    block = weight_in.reshape(groups, -1)
    c.tie(block, block[:, :1])
    return block[:, 0].repeat_interleave(width)


def _freeze_taps(c: Coupler, weight: int) -> None:
    """Kernel taps are no channels."""
    for dim in range(2, len(c.shape(weight))):
        ids = c.along(weight, dim)
        if ids is not None:
            c.freeze(ids, "")


def _spatial(c: Coupler, node: Node, x: int, w: int) -> list[Layer]:
    """Layers along positions: a window over an owned axis of unchanged length changes the rest, any other freezes."""
    rank = len(c.shape(w))
    shape = c.shape(x)
    out = next(item for item in node.outputs if item is not None)
    return window(
        c, node, x, range(len(shape) - rank + 2, len(shape)), out, pointlike=all(n == 1 for n in c.shape(w)[2:])
    )


def window(c: Coupler, node: Node, x: int, dims: Any, out: int, *, pointlike: bool = False) -> list[Layer]:
    """What passes through an operator that looks at neighbours along `dims`."""
    kept: list[Layer] = []
    for layer in c.of(x):
        outside = [dim for dim in varying(layer) if dim not in dims]
        if outside and len(varying(layer)) > len(outside):
            c.along(x, outside[0])
    for dim in dims:
        ids = c.along(x, dim)
        if ids is None:
            continue
        if c.shape(out)[dim] != c.shape(x)[dim]:
            c.freeze(ids, f"{node.where} slides over it")
            continue
        if not pointlike:
            c.change(ids, f"{node.where} mixes neighbours along it")
        kept.append(spread(ids, dim, len(c.shape(x))))
    return kept


def _finish(c: Coupler, node: Node, x: int, spatial: list[Layer], out: Tensor | None, channel: int) -> None:
    result = node.outputs[0]
    assert result is not None
    if channel == 1:
        for layer in c.of(x):
            if varying(layer) == (0,):
                c.freeze(layer, f"{node.where} treats it as the batch")
    c.put(result, [*spatial, *([spread(out, channel, len(c.shape(result)))] if out is not None else [])])
