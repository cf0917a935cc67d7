"""Linear operators whose output, without a few input channels, is the output less what those channels add to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateurs.capture.program import Program
from secateurs.capture.run import operator
from secateurs.couple.group import Bools
from secateurs.couple.rules.registry import arguments


@dataclass(frozen=True)
class Product:
    """`output = op(value, weight) + bias` at a node, summed over dimension `dim` of both."""

    node: int
    value: int
    output: int
    dim: int
    weight: Tensor
    op: Any
    options: tuple[Any, ...]

    def short(self, keeps: Mapping[tuple[int, int, int], Bools]) -> bool:
        """Whether all that is masked at this node are channels of this operand, and they are the smaller part."""
        here = [(value, dim, keep) for (node, value, dim), keep in keeps.items() if node == self.node]
        if len(here) != 1:
            return False
        value, dim, keep = here[0]
        return (value, dim) == (self.value, self.dim) and 2 * int((~keep).sum()) <= keep.size

    def part(self, x: Tensor, samples: Tensor, channels: Tensor) -> Tensor:
        """What these channels of these samples add to the output."""
        x = x.index_select(self.dim, channels).index_select(0, samples)
        result: Tensor = self.op(x, self.weight.index_select(1, channels), None, *self.options)
        return result


def product_at(program: Program, position: int) -> Product | None:
    """The node at `position` as a product; None if it is no ungrouped convolution of images or linear layer."""
    node = program.graph.nodes[position]
    if node.op not in ("aten.conv2d.default", "aten.linear.default"):
        return None
    given = arguments(node)
    value, output = given["input"].value, node.outputs[0]
    leaf = next((leaf for leaf in program.graph.leaves if leaf.value == given["weight"].value), None)
    rank = len(program.graph.values[value].shape)
    if leaf is None or output is None or value == given["weight"].value or len(leaf.shape) < 2:
        return None
    weight, op = program.tensors[leaf.name], operator(node.op)
    if node.op == "aten.linear.default":
        return Product(node.index, value, output, rank - 1, weight, op, ()) if rank > 1 else None
    if given["groups"] != 1 or rank != 4:
        return None
    return Product(node.index, value, output, 1, weight, op, tuple(given[k] for k in ("stride", "padding", "dilation")))


__all__ = ["Product", "product_at"]
