"""Products that sum over shared axes: `linear`, `conv`, `matmul`, `einsum`, attention, written as one einsum each.

`contract(c, node, x, "b i h w", w, "o i", "b o h w")` ties the axes that both operands have, and gives the result its
axes from whichever operand has them. A letter that only one operand has and the result lacks is summed away.
"""

from __future__ import annotations

from torch import Tensor

from secateurs.capture.graph import Node
from secateurs.couple.causes import against
from secateurs.couple.coupler import Coupler, Layer, spread, varying, vector


def contract(c: Coupler, node: Node, a: int, left: str, b: int, right: str, out: str) -> list[Layer]:
    """Layers of the product of values `a` and `b`, whose dimensions are named by the words of `left` and `right`."""
    names_a, names_b, names_out = left.split(), right.split(), out.split()
    sizes_a = dict(zip(names_a, c.shape(a), strict=True))
    sizes_b = dict(zip(names_b, c.shape(b), strict=True))
    axes_a = _axes(c, a, names_a, names_b, names_out, sizes_b, _moving(c, b, names_b))
    axes_b = _axes(c, b, names_b, names_a, names_out, sizes_a, _moving(c, a, names_a))
    result: list[Layer] = []
    for name in dict.fromkeys(names_a + names_b):
        ids_a, ids_b = axes_a.get(name), axes_b.get(name)
        if sizes_a.get(name, 1) > 1 and sizes_b.get(name, 1) > 1:
            ids = c.pair(ids_a, ids_b, against(c, node, "multiplies it with", a, ids_a, b, ids_b))
        else:
            ids = ids_a if ids_a is not None else ids_b
        if ids is not None and name not in names_out and a in c.static and b in c.static:
            c.change(ids, f"{node.where} measures the weights themselves over it")
        if ids is not None and name in names_out:
            result.append(spread(ids, names_out.index(name), len(names_out)))
        elif ids is not None and (name in sizes_a) != (name in sizes_b):
            c.freeze(ids, f"{node.where} sums over it")
    return result


def _moving(c: Coupler, value: int, names: list[str]) -> set[str]:
    """Names of the dimensions along which a value varies."""
    return {names[dim] for layer in c.of(value) for dim in varying(layer)}


def _axes(
    c: Coupler, value: int, names: list[str], other: list[str], out: list[str], sizes: dict[str, int], moving: set[str]
) -> dict[str, Tensor]:
    """Ids by axis name, joint layers collapsed: heads first, then the summed axis, then what is free.

    With `unit="head_dim"` the summed axis comes before the heads.
    """
    axes: dict[str, Tensor] = {}
    layers: list[Layer] = []
    for layer in c.of(value):
        dims = varying(layer)
        if len(dims) > 1:
            dim = max(dims, key=lambda d: (_rank(c, names[d], other, out, sizes, moving), -d))
            layer = c.collapse(layer, dim)
            dims = (dim,)
        layers.append(layer)
        axes[names[dims[0]]] = vector(layer, dims[0])
    c.layers[value] = tuple(layers)
    return axes


def _rank(c: Coupler, name: str, other: list[str], out: list[str], sizes: dict[str, int], moving: set[str]) -> int:
    shared, summed = name in other, name not in out
    possible = not shared or name in moving or sizes.get(name, 1) == 1
    if not possible:
        return 0
    if shared and not summed:
        return 3 if c.unit == "heads" else 1
    return 2 if summed else 1
