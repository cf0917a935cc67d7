"""MACs of a node as a product of sizes, so that any plan can be priced without running anything.

A MAC is one multiplication whose result is added to a sum. Convolutions, linear layers, matrix products, attention and
recurrent cells have them; biases, normalisation, activations, pooling and element-wise operators count 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from secateurs.capture.graph import Graph, Node
from secateurs.couple.rules.recurrent import GATES
from secateurs.couple.rules.registry import arguments, base_name

Axis = tuple[int, int]


@dataclass(frozen=True)
class Term:
    """`factor` times the product of the sizes of these axes, each `(value, dim)`.

    `operands` are those that may be weights: of each, every entry does the same share of these multiplications.
    """

    node: int
    axes: tuple[Axis, ...]
    factor: int = 1
    operands: tuple[int, ...] = ()


Pricer = Callable[[Graph, Node], Iterable[Term]]


def _all(graph: Graph, value: int) -> tuple[Axis, ...]:
    return tuple((value, dim) for dim in range(len(graph.values[value].shape)))


def _first(node: Node) -> int:
    return next(out for out in node.outputs if out is not None)


def _convolution(graph: Graph, node: Node) -> Iterable[Term]:
    given = arguments(node)
    weight = given["weight"].value
    start = given["input"].value if "transpose" in node.op or given.get("transposed") else _first(node)
    yield Term(node.index, (*_all(graph, start), *_all(graph, weight)[1:]), operands=(weight,))


def _product(graph: Graph, node: Node) -> Iterable[Term]:
    left = node.inputs[-2]
    axes = (*_all(graph, _first(node)), (left, len(graph.values[left].shape) - 1))
    yield Term(node.index, axes, operands=node.inputs[-2:])


def _linear(graph: Graph, node: Node) -> Iterable[Term]:
    weight = node.inputs[1]
    axes = (*_all(graph, _first(node)), (weight, len(graph.values[weight].shape) - 1))
    yield Term(node.index, axes, operands=(weight,))


def _attention(graph: Graph, node: Node) -> Iterable[Term]:
    query, key, value = node.inputs[:3]
    q, k = len(graph.values[query].shape), len(graph.values[key].shape)
    yield Term(node.index, (*_all(graph, query), (key, k - 2)))
    yield Term(node.index, (*_all(graph, query)[: q - 1], (key, k - 2), (value, len(graph.values[value].shape) - 1)))


def _bilinear(graph: Graph, node: Node) -> Iterable[Term]:
    given = arguments(node)
    rows, weight = _all(graph, given["input1"].value)[:-1], _all(graph, given["weight"].value)
    yield Term(node.index, (*rows, *weight), operands=(given["weight"].value,))
    yield Term(node.index, (*rows, weight[0], weight[2]))


def _tensordot(graph: Graph, node: Node) -> Iterable[Term]:
    given = arguments(node)
    left = given["self"].value
    summed = [(left, dim % len(graph.values[left].shape)) for dim in given["dims_self"]]
    yield Term(node.index, (*_all(graph, _first(node)), *summed), operands=(left, given["other"].value))


def _einsum(graph: Graph, node: Node) -> Iterable[Term]:
    given = arguments(node)
    operands = [ref.value for ref in given["tensors"]]
    if len(operands) < 2:
        return
    terms = given["equation"].replace(" ", "").partition("->")[0].split(",")
    axes: dict[str, Axis] = {}
    even: list[int] = []  # not those of which only a diagonal is read
    for term, operand in zip(terms, operands, strict=True):
        rank = len(graph.values[operand].shape)
        head, dots, tail = term.partition("...")
        names = [*head, *(f".{i}" for i in range(len(head) + len(tail) - rank, 0) if dots), *tail]
        even += [operand] if len(set(names)) == len(names) else []
        for dim, name in enumerate(names):
            if name not in axes or graph.values[operand].shape[dim] > 1:
                axes[name] = (operand, dim)
    yield Term(node.index, tuple(axes.values()), operands=tuple(even))


def _recurrent(graph: Graph, node: Node) -> Iterable[Term]:
    given = arguments(node)
    if "input" not in given:
        return
    steps = _all(graph, given["input"].value)[:-1]
    for ref in given["params"]:
        if len(graph.values[ref.value].shape) == 2:
            yield Term(node.index, (*steps, *_all(graph, ref.value)), operands=(ref.value,))


def _recurrent_cell(graph: Graph, node: Node) -> Iterable[Term]:
    given = arguments(node)
    steps = _all(graph, given["input"].value)[:-1]
    for ref in (given["w_ih"], given["w_hh"]):
        yield Term(node.index, (*steps, *_all(graph, ref.value)), operands=(ref.value,))


PRICES: dict[str, Pricer] = {
    **{f"aten.conv{n}d": _convolution for n in (1, 2, 3)},
    **{f"aten.conv_transpose{n}d": _convolution for n in (1, 2, 3)},
    "aten.convolution": _convolution,
    "aten.linear": _linear,
    **{f"aten.{name}": _product for name in ("matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm")},
    "aten.scaled_dot_product_attention": _attention,
    "aten.bilinear": _bilinear,
    "aten.tensordot": _tensordot,
    "aten.einsum": _einsum,
    **{f"aten.{name}": _recurrent for name in GATES},
    **{f"aten.{name}_cell": _recurrent_cell for name in GATES},
}


def terms(graph: Graph) -> list[Term]:
    """Every product of sizes that the graph's MACs are the sum of."""
    priced = [(node, PRICES.get(base_name(node.op))) for node in graph.nodes]
    return [term for node, price in priced if price is not None for term in price(graph, node)]
