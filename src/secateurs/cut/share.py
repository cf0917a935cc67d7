"""How much of a consumer's output the constants of removed channels make up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.capture.graph import Graph, Node
from secateurs.couple.group import Bools, Groups
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.cut.held import CONVOLUTIONS, TRANSPOSED, Held
from secateurs.cut.prove import Run
from secateurs.cut.rewrite import with_arguments
from secateurs.cut.shift import Place

SAME = 1e-10
"""Positions differ if they are further apart than this, relative to the largest."""


@dataclass(frozen=True, eq=False)
class Shift:
    """What a consumer's output loses: `values` per kept output channel, along `dim` of `whole`, the exact difference.

    `whole` has the output's shape without what it shares: size 1 along every dimension but the channels and positions.
    """

    node: int
    place: Place
    dim: int
    values: Tensor
    whole: Tensor
    held: Held

    @property
    def exact(self) -> bool:
        return self.whole.numel() == self.values.numel()


def shift_of(groups: Groups, alive: Bools, item: Held, place: Place, fixed: Run, padding: str) -> Shift:
    """What the node's output loses at the channels that stay; `fixed` holds what no input reaches.

    `padding` says which number stands for a map: `"interior"`, or the mean over positions.
    """
    node = groups.graph.nodes[item.node]
    shape = groups.graph.values[item.value].shape
    whole = _share(node, item, shape, fixed)
    name = base_name(node.op).split(".", 1)[1]
    spatial = fixed.read(arguments(node)["weight"].value).dim() - 2 if name in (*CONVOLUTIONS, *TRANSPOSED) else 0
    dim = whole.dim() - 1 - spatial
    indices = groups.kept(node.outputs[0] or 0, dim, alive)
    kept = torch.arange(whole.shape[dim]) if indices is None else torch.from_numpy(indices)
    whole = whole.index_select(dim, kept)
    for other in range(whole.dim()):
        first = whole.narrow(other, 0, 1)
        if other != dim and float((whole - first).abs().max()) <= SAME * float(whole.abs().max()):
            whole = first
    values = whole.movedim(dim, 0).reshape(len(kept), -1).mean(1)
    plain = name in CONVOLUTIONS and not arguments(node).get("transposed")
    if padding == "interior" and plain and whole.numel() > values.numel():
        values = _interior(node, item, shape, fixed).flatten()[kept]
    return Shift(node.index, place, dim, values, whole, item)


def _share(node: Node, item: Held, shape: tuple[int, ...], fixed: Run) -> Tensor:
    """What the node makes of the constants alone, without its bias, `[1, ...]` if it takes a batch."""
    constant = along(item, shape).expand(shape)

    def result(x: Tensor) -> Tensor:
        made: Tensor = fixed.step(node, lambda value: x if value == item.value else fixed.read(value))[0]
        return made.to("cpu", torch.float64)

    sample = fixed.read(next(value for value in node.inputs if value != item.value))
    constant = constant.to(sample.device, sample.dtype)
    return result(constant) - result(torch.zeros_like(constant))


def _interior(node: Node, item: Held, shape: tuple[int, ...], fixed: Run) -> Tensor:
    """The same where the kernel lies wholly inside: on an input as large as the kernel, without padding."""
    given = arguments(node)
    kernel = fixed.read(given["weight"].value).shape[2:]
    steps = [given["dilation"]] * len(kernel) if isinstance(given["dilation"], int) else list(given["dilation"])
    steps = steps * len(kernel) if len(steps) == 1 else steps
    window = [(size - 1) * step + 1 for size, step in zip(kernel, steps, strict=True)]
    unpadded = "valid" if isinstance(given["padding"], str) else [0] * len(kernel)
    bare = with_arguments(node, padding=unpadded)
    lead = len(shape) - len(kernel)
    return _share(bare, item, (*(1,) * (lead - 1), shape[lead - 1], *window), fixed)


def along(item: Held, shape: tuple[int, ...]) -> Tensor:
    return item.constants.reshape([-1 if dim == item.dim else 1 for dim in range(len(shape))])


def fixed_run(graph: Graph, leaves: Callable[[str], Tensor], moving: frozenset[int], wide: bool) -> Run:
    """The run of everything that no input reaches, all values kept."""
    run = Run(graph, leaves, {}, wide)
    for node in graph.nodes:
        if not any(out in moving for out in node.outputs) and not any(value in moving for value in node.inputs):
            run.values.update(
                (out, made) for out, made in zip(node.outputs, run.step(node), strict=True) if out is not None
            )
    return run
