"""Operators that fold an axis away: sums are exact, statistics make the axis inexact, choices freeze it."""

from __future__ import annotations

from typing import Any

import torch

from secateurs.capture.graph import Node
from secateurs.couple.coupler import Coupler, Layer, varying
from secateurs.couple.pointwise import pointwise
from secateurs.couple.rules.convolution import window
from secateurs.couple.rules.registry import arguments, base_name, elementwise_node, rule

STATISTICS = (
    "mean",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "norm",
    "linalg_vector_norm",
    "linalg_norm",
    "linalg_matrix_norm",
    "aminmax",
    "count_nonzero",
    "logsumexp",
    "var_mean",
    "std_mean",
    "nanmean",
)


def dims_of(given: dict[str, Any], rank: int) -> list[int]:
    """The reduced dimensions, non-negative; all of them if none is named."""
    dim = given.get("dim")
    if dim is None or dim == []:
        return list(range(rank))
    return [item % rank for item in ([dim] if isinstance(dim, int) else dim)] if rank else []


def reduce_layers(c: Coupler, x: int, dims: list[int], keepdim: bool, *, gone: Any) -> list[Layer]:
    """Layers after `dims` are folded away; `gone(layer)` says what happens to a layer that varies only there."""
    kept: list[Layer] = []
    inside = set(dims)
    for layer in c.of(x):
        free = [dim for dim in varying(layer) if dim not in inside]
        if free:
            small = layer if not inside & set(varying(layer)) else c.collapse(layer, free[0])
            kept.append(small)
        else:
            gone(layer)
    if keepdim:
        return kept
    return [layer.squeeze(tuple(dims)) if layer.dim() else layer for layer in kept]


@rule("aten.sum", "aten.nansum")
def total(c: Coupler, node: Node) -> None:
    """Removed entries count as zero: exact. A sum of weights (demodulation) or of squares is a norm: inexact."""
    given = arguments(node)
    x = node.inputs[0]
    dims = dims_of(given, len(c.shape(x)))

    def gone(layer: Layer) -> None:
        if x in c.static:
            c.change(layer, f"{node.where} measures the weights themselves over it")
        elif _is_square(c, x):
            c.change(layer, f"{node.where} measures lengths over these channels")

    c.put(node.outputs[0], reduce_layers(c, x, dims, bool(given.get("keepdim")), gone=gone))


def _is_square(c: Coupler, value: int) -> bool:
    """Whether the value is a power, a product with itself or an absolute value, so that its sum is a norm."""
    producer = c.graph.values[value].producer if value >= 0 else None
    if producer is None:
        return False
    node = c.graph.nodes[producer]
    name = base_name(node.op)
    return name in ("aten.pow", "aten.square", "aten.abs") or (
        name == "aten.mul" and len(set(node.inputs)) == 1 < len(node.inputs)
    )


@rule("aten.cosine_similarity", "aten.pairwise_distance")
def compared(c: Coupler, node: Node) -> None:
    """One number for two broadcast vectors along `dim` (the last one for distances), with the norms of both in it."""
    given = arguments(node)
    a, b = node.inputs[:2]
    rank = max(len(c.shape(a)), len(c.shape(b)))
    shape = tuple(torch.broadcast_shapes(c.shape(a), c.shape(b)))  # type: ignore[no-untyped-call]
    both = c.temporary(shape, pointwise(c, node, [a, b], rank))

    def inexact(layer: Layer) -> None:
        c.change(layer, f"{node.where} measures lengths over these channels")

    dims = [given.get("dim", -1) % rank]
    c.put(node.outputs[0], reduce_layers(c, both, dims, bool(given.get("keepdim")), gone=inexact))


@rule(*(f"aten.{name}" for name in STATISTICS))
def statistic(c: Coupler, node: Node) -> None:
    """Means, extremes and norms over an owned axis are taken over what is left of it."""
    given = arguments(node)
    if len(node.inputs) == 2 or ("other" in given):
        elementwise_node(c, node)
        return
    x = node.inputs[0]
    dims = dims_of(given, len(c.shape(x)))

    def inexact(layer: Layer) -> None:
        c.change(layer, f"{node.where} takes its statistics over these channels")

    layers = reduce_layers(c, x, dims, bool(given.get("keepdim")), gone=inexact)
    for out in node.outputs:
        c.put(out, layers)


@rule("aten.argmax", "aten.argmin", "aten.prod", "aten.any", "aten.all", "aten.median", "aten.mode")
def choice(c: Coupler, node: Node) -> None:
    """The result names or multiplies entries of the axis, so none may go."""
    given = arguments(node)
    x = node.inputs[0]
    dims = dims_of(given, len(c.shape(x)))

    def gone(layer: Layer) -> None:
        c.freeze(layer, f"{node.where} chooses among these channels")

    layers = reduce_layers(c, x, dims, bool(given.get("keepdim")), gone=gone)
    for out in node.outputs:
        c.put(out, layers)


@rule(
    "aten.sort",
    "aten.argsort",
    "aten.topk",
    "aten.cumsum",
    "aten.cumprod",
    "aten.flip_order",
    "aten.kthvalue",
    "aten.logcumsumexp",
    "aten.cummax",
)
def along_axis(c: Coupler, node: Node) -> None:
    """Order matters along `dim`: nothing of it may go; other axes pass."""
    given = arguments(node)
    x = node.inputs[0]
    layers = c.avoid(x, [given.get("dim", -1)], f"{node.where} orders or accumulates these channels")
    for out in node.outputs:
        c.put(out, layers)


POOLS = {
    **{f"aten.{kind}_pool{n}d": n for kind in ("max", "avg", "lp") for n in (1, 2, 3)},
    **{f"aten.adaptive_{kind}_pool{n}d": n for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"aten.max_pool{n}d_with_indices": n for n in (1, 2, 3)},
    **{f"aten.fractional_max_pool{n}d": n for n in (2, 3)},
    **{f"aten.upsample_{mode}": n for mode, n in (
        ("nearest1d", 1), ("nearest2d", 2), ("nearest3d", 3), ("linear1d", 1), ("bilinear2d", 2), ("trilinear3d", 3),
        ("bicubic2d", 2),
    )},
    **{f"aten._upsample_{mode}": n for mode, n in (
        ("nearest_exact1d", 1), ("nearest_exact2d", 2), ("nearest_exact3d", 3), ("bilinear2d_aa", 2),
        ("bicubic2d_aa", 2),
    )},
}  # fmt: skip


@rule(*POOLS)
def pooling(c: Coupler, node: Node) -> None:
    """Windows and interpolation over the last dimensions; channels pass."""
    x = node.inputs[0]
    rank = len(c.shape(x))
    dims = range(rank - POOLS[base_name(node.op)], rank)
    for out in node.outputs:
        if out is not None:
            slid = window(c, node, x, dims, out)
            c.put(out, [*c.others(x, list(dims)), *slid])
