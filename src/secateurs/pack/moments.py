"""Second moments of what every layer reads: how much an error in each of its weights will matter, and with which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import Batches, derive, device_of, rows, to_device
from secateurs.base.seeds import seeded
from secateurs.capture.graph import Graph, Node
from secateurs.capture.program import Programs, Read, check_call
from secateurs.capture.trace import capture
from secateurs.couple.rules.registry import arguments
from secateurs.train.least_squares import Windows, is_layer


def input_moments(
    model: nn.Module,
    data: Iterable[Any],
    *,
    batches: int | None = None,
    samples_per_image: int | None = 32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """`{weight name: mean of x x^T, [groups, n, n], float64}` of every linear layer and convolution, in eval mode.

    n = inputs of a group times kernel positions, in the order of `weight[output].flatten()`. `data` are batches of
    inputs or `(inputs, target)`, of which the first `batches` are used, `samples_per_image` random positions of each
    image (None: all). A weight that several calls share gets the mean over all of them. Computed weights and transposed
    convolutions are left out. Raises `TrainError` when the data is empty and what `capture` raises.
    """
    loader = Batches(data, limit=batches, seed=seed)
    device = device_of(model)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    programs: Programs | None = None
    try:
        with torch.no_grad(), seeded(derive(seed, "moments")):
            for number, raw in enumerate(loader.epoch(0)):
                batch = to_device(raw, device)
                inputs = batch[0] if isinstance(batch, (list, tuple)) and len(batch) == 2 else batch
                if programs is None:
                    args, keywords = check_call(model, inputs)
                    programs = Programs(model, capture(model, args, kwargs=keywords))
                program, given = programs.program(inputs)
                wanted = None if samples_per_image is None else samples_per_image * rows(inputs)
                reads = _reads(program.graph, sums, counts, wanted, derive(seed, "rows", number))
                program.run(program.begin(given), reads=reads)
    finally:
        loader.close()
    return {name: total / counts[name] for name, total in sums.items()}


def moments_for(
    model: nn.Module, given: Mapping[str, Tensor] | None, data: Iterable[Any] | None, batches: int | None, seed: int
) -> Mapping[str, Tensor]:
    """The moments that were given, else those of `data`; empty without either."""
    if given is None and data is not None:
        return input_moments(model, data, batches=batches, seed=seed)
    return given or {}


def _reads(
    graph: Graph, sums: dict[str, Tensor], counts: dict[str, int], wanted: int | None, seed: int
) -> dict[int, Read]:
    """For each layer, something that watches what it reads and adds it up."""
    names = {leaf.value: leaf.name for leaf in graph.leaves if leaf.kind == "parameter"}
    found: dict[int, Read] = {}
    for node in graph.nodes:
        if is_layer(node) and arguments(node)["weight"].value in names:
            found[node.index] = _watch(graph, node, names[arguments(node)["weight"].value], sums, counts, wanted, seed)
    return found


def _watch(
    graph: Graph, node: Node, name: str, sums: dict[str, Tensor], counts: dict[str, int], wanted: int | None, seed: int
) -> Read:
    shape = graph.values[arguments(node)["weight"].value].shape
    windows = Windows.of(node, shape)
    output = node.outputs[0]
    positions = prod(graph.values[output].shape) // shape[0] if output is not None else 0

    def add(value: int, tensor: Tensor) -> Tensor:
        if value == node.inputs[0]:
            generator = torch.Generator().manual_seed(derive(seed, node.index))
            chosen = torch.randperm(positions, generator=generator)[:wanted].to(tensor.device)
            patches = windows.patches(tensor, chosen).transpose(0, 1)
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + (patches.mT @ patches).cpu()
            counts[name] = counts.get(name, 0) + len(chosen)
        return tensor

    return add


__all__ = ["input_moments", "moments_for"]
