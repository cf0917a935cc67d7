"""Look-ups: embeddings, index tables, gather and scatter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateurs.capture.graph import Node, Ref
from secateurs.couple.causes import fixed
from secateurs.couple.coupler import Coupler, Layer, varying
from secateurs.couple.pointwise import pointwise
from secateurs.couple.rules.movement import shrink
from secateurs.couple.rules.registry import arguments, rule


@rule("aten.embedding", "aten.embedding_bag")
def embedding(c: Coupler, node: Node) -> None:
    """Rows are chosen by the input, so they stay; columns are channels."""
    given = arguments(node)
    weight = given["weight"].value
    rows, columns = c.along(weight, 0), c.along(weight, 1)
    if rows is not None:
        c.freeze(rows, f"{node.where} looks its rows up by number")
    out = node.outputs[0]
    assert out is not None
    rank = len(c.shape(out))
    c.put(out, [columns.reshape((1,) * (rank - 1) + (-1,))] if columns is not None else [])
    for extra in node.outputs[1:]:
        chosen = extra is not None and len(c.shape(extra)) == 2 and c.shape(extra)[1] == c.shape(weight)[1]
        c.put(extra, [columns.reshape(1, -1)] if chosen and columns is not None else [])


@rule("aten.index")
def index(c: Coupler, node: Node) -> None:
    """Advanced indexing. A known index runs on the ids; an unknown one freezes the axes it looks up."""
    x, out = node.args[0].value, node.outputs[0]
    assert out is not None
    indices = list(node.args[1])
    known = [None if item is None else c.graph.known.get(item.value) for item in indices]
    certain = all(item is None or data is not None for item, data in zip(indices, known, strict=True))
    simple = sum(item is not None for item in indices) == 1 and all(item is None or item.dim() == 1 for item in known)
    looked_up = _looked_up(c, indices)
    for item in indices:
        if item is not None:
            for layer in c.of(item.value):
                c.freeze(layer, f"{node.where} looks up by it")
    layers: list[Layer] = []
    for layer in c.of(x):
        if looked_up & set(varying(layer)) and not (certain and simple):
            why = (
                "in a table of several dimensions" if certain else "by numbers that are not known before the model runs"
            )
            c.freeze(layer, f"{node.where} looks it up {why}")
            continue
        table = known if certain else [None if item is None else _stand_in(c, item, out, indices) for item in indices]
        small = c.pin(shrink(_fit(layer.expand(c.shape(x))[tuple(_slices(table))], c.shape(out))), node)
        if small is not None:
            layers.append(small)
    c.put(out, layers)


def _slices(table: list[Tensor | None]) -> list[Any]:
    return [slice(None) if item is None else item.cpu() for item in table]


def _fit(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return ids.expand(shape) if tuple(ids.shape) != shape else ids


def _looked_up(c: Coupler, indices: list[Ref | None]) -> set[int]:
    """Dimensions of the source that tensors index; a boolean mask takes as many as it has."""
    dims: set[int] = set()
    position = 0
    for item in indices:
        mask = item is not None and c.graph.values[item.value].dtype == torch.bool
        taken = len(c.shape(item.value)) if item is not None and mask else 1
        if item is not None:
            dims |= set(range(position, position + taken))
        position += taken
    return dims


def _stand_in(c: Coupler, item: Ref, out: int, indices: list[Ref | None]) -> Tensor:
    """Zeros of the index's shape; a mask becomes a mask with as many hits as the run found."""
    shape = c.shape(item.value)
    if c.graph.values[item.value].dtype != torch.bool:
        return torch.zeros(shape, dtype=torch.long)
    before = next(i for i, other in enumerate(indices) if other is not None)
    hits = c.shape(out)[before] if c.shape(out) else 0
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[:hits] = True
    return mask


@rule("aten.gather")
def gather(c: Coupler, node: Node) -> None:
    """`y[i, j] = x[i, index[i, j]]`: the looked-up axis stays; the others go together with the index's."""
    given = arguments(node)
    x, by, dim = given["self"].value, given["index"].value, given["dim"] % max(len(c.shape(given["self"].value)), 1)
    kept = c.avoid(x, [dim], f"{node.where} looks it up by number")
    layers: list[Layer] = []
    for layer in kept:
        axis = varying(layer)[0]
        small = c.collapse(layer, axis)
        wide = c.along(by, axis)
        ids = c.pair(small.reshape(-1), wide, f"{node.where} takes as much as its index is wide: {fixed(c, by)}")
        if ids is not None and c.shape(by)[axis] == c.shape(x)[axis]:
            layers.append(small)
        elif ids is not None:
            c.freeze(small, f"{node.where} takes a part of it")
    c.put(node.outputs[0], [*layers, *(layer for layer in c.of(by) if varying(layer) == (dim,))])


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce", "aten.index_add", "aten.index_copy", "aten.index_fill")
def scattered(c: Coupler, node: Node) -> None:
    """Written by number along `dim`: that axis stays; the others are tied between target and source."""
    given = arguments(node)
    x, dim = given["self"].value, given["dim"]
    layers = c.avoid(x, [dim], f"{node.where} writes it by number")
    for number in node.inputs[1:]:
        for layer in c.of(number):
            c.freeze(layer, f"{node.where} writes it by number")
        if any(True for layer in layers):
            for layer in layers:
                c.freeze(layer, f"{node.where} writes into it by number")
    c.put(node.outputs[0], layers)


@rule("aten.index_put")
def index_put(c: Coupler, node: Node) -> None:
    """Indexed axes stay; where the written values have the target's last axes, those go together."""
    given = arguments(node)
    x, indices, values = given["self"].value, list(given["indices"]), given["values"].value
    looked_up = _looked_up(c, indices)
    c.avoid(x, sorted(looked_up), f"{node.where} writes it by number")
    rank = len(c.shape(x))
    prefix = looked_up == set(range(len(looked_up)))
    tail = rank - len(looked_up)
    if prefix and tail and len(c.shape(values)) >= tail:
        part = c.temporary(
            c.shape(x)[rank - tail :], [_tail(layer, tail) for layer in c.of(x) if _inside(layer, rank, tail)]
        )
        lead = len(c.shape(values)) - tail
        c.avoid(values, list(range(lead)), f"{node.where} writes it by number")
        small = c.temporary(c.shape(values)[lead:], [_tail(layer, tail) for layer in c.of(values)])
        pointwise(c, node, [part, small], tail)
    else:
        c.freeze_all(x, f"{node.where} writes into it by number")
        c.freeze_all(values, f"{node.where} writes it by number")
    c.put(node.outputs[0], c.of(x))


def _inside(layer: Layer, rank: int, tail: int) -> bool:
    return all(dim >= rank - tail for dim in varying(layer))


def _tail(layer: Layer, tail: int) -> Layer:
    return layer.reshape(layer.shape[layer.dim() - tail :])


__all__ = ["embedding", "gather", "index", "index_put", "scattered"]
