"""Data movement: the same operator runs on the ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod

import torch
from torch import Tensor

from secateurs.capture.graph import Node, Ref, map_refs
from secateurs.capture.run import operator
from secateurs.couple.causes import fixed
from secateurs.couple.coupler import Coupler, Layer, spread, varying
from secateurs.couple.pointwise import pointwise
from secateurs.couple.rules.registry import Unmovable, arguments, rule
from secateurs.couple.written import lost_write, only_written


def shrink(ids: Tensor) -> Layer:
    """The layer of size 1 along every dimension where `ids` does not vary."""
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1 and ids.stride(dim) == 0:
            ids = ids.narrow(dim, 0, 1)
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1:
            first = ids.narrow(dim, 0, 1)
            if bool((ids == first).all()):
                ids = first
    return ids


@rule(
    "aten.permute", "aten.transpose", "aten.t", "aten.unsqueeze", "aten.squeeze", "aten.select", "aten.slice",
    "aten.narrow",
    "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unbind", "aten.flip", "aten.roll",
    "aten.index_select", "aten.repeat",
    "aten.repeat_interleave", "aten.tile", "aten.movedim", "aten.swapaxes", "aten.swapdims", "aten.unfold",
    "aten.moveaxis", "aten.numpy_T", "aten.mT", "aten.adjoint",
    "aten.split_copy", "aten.unsafe_split", "aten.unsafe_chunk", "aten.hsplit",
    "aten.view_as_complex", "aten.view_as_real", "aten.real", "aten.imag",
)  # fmt: skip
def moved(c: Coupler, node: Node) -> None:
    """One tensor in, its elements out in another order: run the operator on every layer of it."""
    x = node.inputs[0]
    shape = c.shape(x)
    if node.op == "aten.slice.Tensor":
        _hold_written(c, node)
    results: list[list[Layer]] = [[] for _ in node.outputs]
    for layer in c.of(x):
        ids = {x: layer.expand(shape)}
        args, kwargs = map_refs((node.args, dict(node.kwargs)), partial(_ids_or_known, c, ids))
        found = operator(node.op)(*args, **kwargs)
        for position, ids in enumerate(found if isinstance(found, (list, tuple)) else [found]):
            small = c.pin(shrink(ids), node)
            if small is not None:
                results[position].append(small)
    for out, layers in zip(node.outputs, results, strict=True):
        c.put(out, layers)


def _hold_written(c: Coupler, node: Node) -> None:
    """Freeze what is written through a view of every second channel, if a cut could not do that write."""
    given, out = arguments(node), node.outputs[0] or 0
    x, step = given["self"].value, given["step"]
    dim = given["dim"] % len(c.shape(x))
    owned = {axis for layer in c.of(x) for axis in varying(layer)}
    if step == 1 or dim not in owned or only_written(c.graph, out, owned):
        return
    write = lost_write(c.graph, node)
    if write is not None:
        start, span = given["start"] or 0, (c.shape(out)[dim] - 1) * step + 1
        start = max(start + c.shape(x)[dim], 0) if start < 0 else start
        for layer in c.of(x):
            if dim in varying(layer):
                why = f"{write.where} writes through a view of step {step} along it, so it must stay evenly spaced"
                c.freeze(layer.narrow(dim, start, span), why)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def shuffled(c: Coupler, node: Node) -> None:
    """`[groups, width]` transposed: the same positions go from every group, so that the shuffle stays the same."""
    ids = c.along(node.inputs[0], 1)
    if ids is not None:
        rows = ids.reshape(arguments(node)["groups"], -1)
        c.tie(rows, rows[:1])
    moved(c, node)


def _ids_or_known(c: Coupler, ids: Mapping[int, Tensor], ref: Ref) -> Tensor:
    return ids[ref.value] if ref.value in ids else _known(c, ref)


@rule("aten.pixel_shuffle")
def pixel_shuffled(c: Coupler, node: Node) -> None:
    """`C * r * r` channels become `C` channels of `r` times the size: a channel owns `r * r` of the input's."""
    x, out = node.inputs[0], node.outputs[0]
    assert out is not None
    ids = c.along(x, -3)
    layers = list(c.avoid(x, [-1, -2], f"{node.where} spreads channels over it"))
    layers = [layer for layer in layers if layer.shape[-3] == 1]
    if ids is not None:
        rows = ids.reshape(c.shape(out)[-3], -1)
        c.tie(rows, rows[:, :1])
        layers.append(spread(rows[:, 0], len(c.shape(out)) - 3, len(c.shape(out))))
    c.put(out, layers)


@rule("aten.pixel_unshuffle")
def pixel_unshuffled(c: Coupler, node: Node) -> None:
    """The inverse: each channel becomes `r * r` of them."""
    x, out = node.inputs[0], node.outputs[0]
    assert out is not None
    ids = c.along(x, -3)
    layers = list(c.avoid(x, [-1, -2], f"{node.where} folds it into channels"))
    layers = [layer for layer in layers if layer.shape[-3] == 1]
    if ids is not None:
        times = c.shape(out)[-3] // ids.numel()
        layers.append(spread(ids.repeat_interleave(times), len(c.shape(out)) - 3, len(c.shape(out))))
    c.put(out, layers)


def _known(c: Coupler, ref: Ref) -> Tensor:
    known = c.graph.known.get(ref.value)
    if known is None:
        raise Unmovable("an index that is not known before the model runs, in")
    return known


@rule(
    "aten.view",
    "aten.reshape",
    "aten.flatten",
    "aten.unflatten",
    "aten._unsafe_view",
    "aten.view_as",
    "aten.reshape_as",
    "aten.ravel",
)
def reshaped(c: Coupler, node: Node) -> None:
    """Axes merge and split; a layer becomes joint where an axis it varies along is split."""
    x, out = node.inputs[0], node.outputs[0]
    assert out is not None
    layers = [c.pin(reshape_layer(layer, c.shape(x), c.shape(out)), node) for layer in c.of(x)]
    c.put(out, [layer for layer in layers if layer is not None])


def reshape_layer(layer: Layer, old: tuple[int, ...], new: tuple[int, ...]) -> Layer:
    """The layer of a value of shape `old` after a reshape to `new`, expanding only the axes that must be."""
    blocks = _blocks(old, new)
    shape_in: list[int] = []
    shape_out: list[int] = []
    for before, after in blocks:
        moving = any(layer.shape[dim] > 1 for dim in before)
        shape_in += [old[dim] if moving else 1 for dim in before]
        shape_out += [new[dim] if moving else 1 for dim in after]
    return shrink(layer.expand(shape_in).reshape(shape_out))


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Runs of old and new dimensions that cover the same elements."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = ([i] if i < len(old) else []), ([j] if j < len(new) else [])
        i, j = i + len(before), j + len(after)
        while prod(old[d] for d in before) != prod(new[d] for d in after):
            if (prod(old[d] for d in before) < prod(new[d] for d in after) and i < len(old)) or j >= len(new):
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        blocks.append((before, after))
    return blocks


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expanded(c: Coupler, node: Node) -> None:
    """Repetitions are all alike: any of them may go."""
    x, out = node.inputs[0], node.outputs[0]
    assert out is not None
    lead = len(c.shape(out)) - len(c.shape(x))
    old, new = (1,) * lead + c.shape(x), c.shape(out)
    layers = [layer.reshape((1,) * lead + tuple(layer.shape)) for layer in c.of(x)]
    repeated = [dim for dim in range(len(new)) if old[dim] == 1 and new[dim] > 1]
    c.put(out, [*layers, *(spread(c.fresh_copies(new[dim]), dim, len(new)) for dim in repeated)])


@rule("aten.meshgrid", "aten.broadcast_tensors")
def spread_out(c: Coupler, node: Node) -> None:
    """Grids of positions: nothing here may go."""
    for number in node.inputs:
        c.freeze_all(number, f"{node.where} builds a grid from it")
    for out in node.outputs:
        c.put(out, ())


@rule("aten.cat", "aten.concat", "aten.concatenate")
def concatenated(c: Coupler, node: Node) -> None:
    """Ids are concatenated; a part that can lose nothing enters as frozen indices."""
    out = node.outputs[0]
    assert out is not None
    parts = [ref.value for ref in node.args[0]] if node.args else [ref.value for ref in node.kwargs["tensors"]]
    parts = [part for part in parts if c.shape(part) != (0,)]
    rank = len(c.shape(out))
    dim = arguments(node)["dim"] % rank
    c.put(out, joined(c, node, parts, dim, rank))


@rule("aten.stack")
def stacked(c: Coupler, node: Node) -> None:
    """A new axis that can lose nothing; the others are tied."""
    out = node.outputs[0]
    assert out is not None
    dim = arguments(node)["dim"] % len(c.shape(out))
    layers = pointwise(c, node, list(node.inputs), len(c.shape(out)) - 1)
    c.put(out, [layer.unsqueeze(dim) for layer in layers])


def joined(c: Coupler, node: Node, parts: list[int], dim: int, rank: int) -> list[Layer]:
    """Layers of a concatenation along `dim`."""
    touching = [[layer for layer in c.of(part) if dim in varying(layer)] for part in parts]
    sets = {varying(layer) for layers in touching for layer in layers}
    result: list[Layer] = []
    if sets:
        same = len(sets) == 1 and (sets == {(dim,)} or all(touching))
        if not same:
            for part in parts:
                c.along(part, dim)
            touching = [[layer for layer in c.of(part) if dim in varying(layer)] for part in parts]
        pieces: list[Tensor] = []
        for part, layers in zip(parts, touching, strict=True):
            if layers:
                pieces.append(layers[0])
                continue
            ids = c.fresh(c.shape(part)[dim])
            c.freeze(ids, f"{node.where} joins it with {fixed(c, part)}")
            pieces.append(spread(ids, dim, rank))
        result.append(torch.cat(pieces, dim))
    flat = [
        c.temporary(tuple(1 if d == dim else n for d, n in enumerate(c.shape(part))), c.others(part, [dim]))
        for part in parts
    ]
    taken = {d for layer in result for d in varying(layer)}
    for layer in pointwise(c, node, flat, rank):
        if taken & set(varying(layer)):
            c.freeze(layer, f"{node.where} joins it with a tensor that can not lose this axis")
        else:
            result.append(layer)
    return result


@rule("aten.pad", "aten.constant_pad_nd", "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.reflection_pad3d",
      "aten.replication_pad1d", "aten.replication_pad2d", "aten.replication_pad3d")  # fmt: skip
def padded(c: Coupler, node: Node) -> None:
    """Constant padding of an owned axis brings indices that nobody owns; other modes repeat owned ones."""
    given = arguments(node)
    x, out = node.inputs[0], node.outputs[0]
    assert out is not None
    pad = list(given.get("pad") or given.get("padding") or [])
    rank = len(c.shape(x))
    amounts: dict[int, tuple[int, int]] = {rank - 1 - i: (pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)}
    constant = "constant_pad" in node.op or given.get("mode") == "constant"
    layers: list[Layer] = []
    for layer in c.of(x):
        hit = [dim for dim in varying(layer) if amounts.get(dim, (0, 0)) != (0, 0)]
        if not hit:
            layers.append(layer)
            continue
        if not constant:
            c.freeze(layer, f"{node.where} mirrors or repeats it")
            continue
        small = c.collapse(layer, hit[0])
        before, after = amounts[hit[0]]
        ids = _pad_vector(c, small.reshape(-1), before, after)
        layers.append(spread(ids, hit[0], rank))
    c.put(out, layers)


def _pad_vector(c: Coupler, ids: Tensor, before: int, after: int) -> Tensor:
    ids = ids[max(-before, 0) : ids.numel() - max(-after, 0)]
    return torch.cat([c.fresh(max(before, 0)), ids, c.fresh(max(after, 0))])


@rule("aten.im2col", "aten.col2im")
def unfolded(c: Coupler, node: Node) -> None:
    """Patches of `C x kh x kw` values: each channel owns `kh * kw` consecutive rows."""
    x, out = node.inputs[0], node.outputs[0]
    assert out is not None
    batched = len(c.shape(out)) - (1 if "im2col" in node.op else 2)
    dim = 1 if batched >= 2 else 0
    ids = c.along(x, dim)
    for layer in c.others(x, [dim]):
        c.freeze(layer, f"{node.where} takes patches over it")
    if ids is None:
        c.put(out, ())
        return
    if "im2col" in node.op:
        taps = c.shape(out)[dim] // ids.numel()
        c.put(out, [spread(ids.repeat_interleave(taps), dim, len(c.shape(out)))])
    else:
        rows = ids.reshape(c.shape(out)[dim], -1)
        c.tie(rows, rows[:, :1])
        c.put(out, [spread(rows[:, 0], dim, len(c.shape(out)))])


__all__ = ["joined", "reshape_layer", "shrink"]
