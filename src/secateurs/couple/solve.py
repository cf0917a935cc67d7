"""From ties between ids to labels: which ids are one, which are frozen, and onto which dimension each layer falls."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from secateurs.couple.coupler import Coupler, Layer, varying

Ints = NDArray[np.int64]


def solve(c: Coupler) -> Ints:
    """The label of every id, after every joint layer has been collapsed onto one dimension.

    Layers that stayed joint because only data movement touched them fall onto the dimension with the most distinct
    labels, the longer one where two are even. What one layer ties is known to the next: a shuffle and what comes after
    it must agree. Each round may tie more, so it repeats until nothing changes.
    """
    labels = components(c)
    while True:
        before = len(c.ties)
        for value, layer in unique_layers(c):
            dims = varying(layer)
            if len(dims) > 1 and unit_dim(layer, labels) is None:
                producer = c.graph.values[value].producer if value >= 0 else None
                c.node = -1 if producer is None else producer
                dim = max(dims, key=lambda d: (_units(layer, d, labels), layer.shape[d], -d))
                labels = _merged(labels, layer, c.collapse(layer, dim))
        if len(c.ties) == before:
            return labels
        labels = components(c)


def _merged(labels: Ints, layer: Layer, small: Layer) -> Ints:
    """The labels once those of `layer` are one with those of `small`, which broadcasts against it."""
    a, b = np.broadcast_arrays(labels[layer.numpy()], labels[small.numpy()])
    met, compact = np.unique(np.stack([a.reshape(-1), b.reshape(-1)]), return_inverse=True)
    left, right = compact.reshape(2, -1)
    edges = coo_matrix((np.ones(left.size, dtype=np.int8), (left, right)), shape=(met.size, met.size))
    _, part = connected_components(edges, directed=False)
    first = np.full(met.size, np.iinfo(np.int64).max)
    np.minimum.at(first, part, met)
    to = np.arange(int(labels.max()) + 1)
    to[met] = first[part]
    return np.asarray(to[labels], dtype=np.int64)


def components(c: Coupler) -> Ints:
    """Connected components of the ties."""
    if not c.count:
        return np.zeros(0, dtype=np.int64)
    if c.ties:
        left = torch.cat([a for a, _ in c.ties]).numpy()
        right = torch.cat([b for _, b in c.ties]).numpy()
    else:
        left = right = np.zeros(0, dtype=np.int64)
    graph = coo_matrix((np.ones(left.size, dtype=np.int8), (left, right)), shape=(c.count, c.count))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, dtype=np.int64)


def unique_layers(c: Coupler) -> Iterable[tuple[int, Layer]]:
    """Every layer object once, with the first value that carries it."""
    found: dict[int, tuple[int, Layer]] = {}
    for value, layers in list(c.layers.items()):
        for layer in layers:
            found.setdefault(id(layer), (value, layer))
    return found.values()


def unit_dim(layer: Layer, labels: Ints) -> int | None:
    """The dimension along which alone the labels of a layer vary, or None if there is no such dimension."""
    dims = varying(layer)
    if len(dims) == 1:
        return dims[0]
    found = labels[layer.numpy()]
    for dim in dims:
        index = tuple(slice(None) if other == dim else slice(0, 1) for other in range(layer.dim()))
        if bool((found == found[index]).all()):
            return dim
    return None


def _units(layer: Layer, dim: int, labels: Ints) -> int:
    """How many units would be left if the layer fell onto `dim`."""
    index = tuple(slice(None) if other == dim else slice(0, 1) for other in range(layer.dim()))
    return int(np.unique(labels[layer.numpy()[index]]).size)


def reasons(labels: Ints, marked: list[tuple[Tensor, str]]) -> tuple[Ints, list[str]]:
    """For every label the index of its first non-empty reason in the returned list, or -1; empty reasons give -2."""
    count = int(labels.max()) + 1 if labels.size else 0
    texts = [text for _, text in marked]
    first = np.full(count, len(texts), dtype=np.int64)
    silent = np.zeros(count, dtype=bool)
    for index, (ids, text) in enumerate(marked):
        hit = labels[ids.numpy()]
        if text:
            np.minimum.at(first, hit, index)
        else:
            silent[hit] = True
    first[first == len(texts)] = -1
    first[(first == -1) & silent] = -2
    return first, texts
