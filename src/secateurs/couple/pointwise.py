"""Element-wise operators with broadcasting: what meets, position by position, is tied."""

from __future__ import annotations

import torch

from secateurs.capture.graph import Node
from secateurs.couple.causes import fixed
from secateurs.couple.coupler import Coupler, Layer, varying

UNREAD = ("copy", "to", "type_as")
"""Operators of two tensors that read the data of one."""


def pointwise(c: Coupler, node: Node, operands: list[int], rank: int) -> list[Layer]:
    """Tie the layers of operands that broadcast against each other; the layers of the result, of rank `rank`."""
    if c.apart:  # the result stands for the activation among its operands
        operands = sorted(operands, key=lambda value: value not in c.apart)
    aligned = [[_align(layer, rank) for layer in c.of(value)] for value in operands]
    present = [_present(c.shape(value), rank) for value in operands]
    if c.apart:
        _keep_apart(c, node, operands, aligned, present)
    result: list[Layer] = []
    for component in _components([layer for layers in aligned for layer in layers]):
        members = {id(layer) for layer in component}
        mine = [[layer for layer in layers if id(layer) in members] for layers in aligned]
        sets = {varying(layer) for layer in component}
        dims = sorted({dim for layer in component for dim in varying(layer)})
        whole = len(sets) == 1 and all(layers or not present[i] & set(dims) for i, layers in enumerate(mine))
        if whole:
            for layer in component[1:]:
                c.tie(component[0], layer)
            result.append(component[0])
            continue
        unit = _unit(dims, mine, present)
        if unit is None:
            for layer in component:
                c.freeze(layer, f"{node.where} combines it with {_other(c, operands, mine, present, dims)}")
            continue
        first: Layer | None = None
        for layer in component:
            if unit in varying(layer):
                small = c.collapse(layer, unit)
                if first is None:
                    first = small
                else:
                    c.tie(first, small)
            else:
                c.freeze(layer, f"{node.where} repeats it for every unit of another axis")
        if first is not None:
            result.append(first)
    return result


def _keep_apart(
    c: Coupler, node: Node, operands: list[int], aligned: list[list[Layer]], present: list[set[int]]
) -> None:
    """Freeze what meets another activation, one that is not made of the same channels (as in `x * sigmoid(x)`)."""
    if node.op.split(".")[1].rstrip("_") in UNREAD:
        return
    for i, layers in enumerate(aligned):
        for j, others in enumerate(aligned):
            if not {operands[i], operands[j]} <= c.apart or operands[i] == operands[j]:
                continue
            for layer in layers:
                if present[j] & set(varying(layer)) and not any(torch.equal(layer, other) for other in others):
                    c.freeze(layer, f"{node.where} combines it, element by element, with another activation")


def _other(c: Coupler, operands: list[int], mine: list[list[Layer]], present: list[set[int]], dims: list[int]) -> str:
    """The operand, in words, that has these dimensions and can lose nothing along them."""
    still = [value for i, value in enumerate(operands) if not mine[i] and present[i] & set(dims)]
    return fixed(c, still[0]) if still else "a tensor that loses other slices than it does"


def _align(layer: Layer, rank: int) -> Layer:
    return layer if layer.dim() == rank else layer.reshape((1,) * (rank - layer.dim()) + tuple(layer.shape))


def _present(shape: tuple[int, ...], rank: int) -> set[int]:
    """Dimensions of the result along which an operand of this shape is not broadcast."""
    return {dim + rank - len(shape) for dim, size in enumerate(shape) if size > 1}


def _components(layers: list[Layer]) -> list[list[Layer]]:
    """Layers whose dimensions overlap, directly or through others."""
    parts: list[tuple[set[int], list[Layer]]] = []
    for layer in layers:
        dims, group = set(varying(layer)), [layer]
        rest: list[tuple[set[int], list[Layer]]] = []
        for other_dims, other in parts:
            if other_dims & dims:
                dims |= other_dims
                group = other + group
            else:
                rest.append((other_dims, other))
        parts = [*rest, (dims, group)]
    return [group for _, group in parts]


def _unit(dims: list[int], mine: list[list[Layer]], present: list[set[int]]) -> int | None:
    """The leftmost dimension along which every operand that is there at all can lose something."""
    for dim in dims:
        if all(
            dim not in present[i] or any(dim in varying(layer) for layer in layers) for i, layers in enumerate(mine)
        ):
            return dim
    return None
