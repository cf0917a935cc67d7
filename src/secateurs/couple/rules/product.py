"""Matrix products."""

from __future__ import annotations

from secateurs.capture.graph import Node
from secateurs.couple.contract import contract
from secateurs.couple.coupler import Coupler, Layer, spread
from secateurs.couple.pointwise import pointwise
from secateurs.couple.rules.registry import arguments, rule, value


def add_bias(c: Coupler, node: Node, layers: list[Layer], bias: int | None, dim: int, rank: int) -> None:
    """The bias has one entry per output channel: tie it to the layer along `dim`."""
    if bias is None:
        return
    ids = next((layer.reshape(-1) for layer in layers if layer.shape[dim] > 1), None)
    c.pair(ids, c.along(bias, 0), f"{node.where} adds it to channels that can not go")


@rule("aten.linear")
def linear(c: Coupler, node: Node) -> None:
    """`y[.., o] = x[.., i] w[o, i] + b[o]`."""
    given = arguments(node)
    x, w, bias = given["input"].value, given["weight"].value, value(given["bias"])
    lead = " ".join(f"d{i}" for i in range(len(c.shape(x)) - 1))
    c.consumers.add((w, 1))
    if len(c.shape(w)) == 1:
        layers = contract(c, node, x, f"{lead} i", w, "i", lead)
    else:
        layers = contract(c, node, x, f"{lead} i", w, "o i", f"{lead} o")
        add_bias(c, node, layers, bias, len(c.shape(x)) - 1, len(c.shape(x)))
    c.put(node.outputs[0], layers)


@rule("aten.matmul", "aten.bmm", "aten.mm", "aten.mv", "aten.dot")
def matmul(c: Coupler, node: Node) -> None:
    """`y[.., m, n] = a[.., m, k] b[.., k, n]` with broadcasting batch axes."""
    given = list(arguments(node).values())
    a, b = given[0].value, given[1].value
    left, right, out = product_names(len(c.shape(a)), len(c.shape(b)))
    c.put(node.outputs[0], contract(c, node, a, left, b, right, out))


def product_names(rank_a: int, rank_b: int) -> tuple[str, str, str]:
    """Axis names of a `matmul` of tensors with these ranks."""
    batch = max(rank_a, rank_b, 2) - 2
    names = [f"b{i}" for i in range(batch)]
    left = [*names[batch - max(rank_a - 2, 0) :], *(["m"] if rank_a > 1 else []), "k"]
    right = [*names[batch - max(rank_b - 2, 0) :], "k", *(["n"] if rank_b > 1 else [])]
    out = [*names, *(["m"] if rank_a > 1 else []), *(["n"] if rank_b > 1 else [])]
    return " ".join(left), " ".join(right), " ".join(out)


@rule("aten.addmm", "aten.baddbmm")
def addmm(c: Coupler, node: Node) -> None:
    """`y = beta * input + alpha * (a @ b)`."""
    values = list(arguments(node).values())
    bias, a, b = (item.value for item in values[:3])
    out = node.outputs[0]
    assert out is not None
    left, right, names = product_names(len(c.shape(a)), len(c.shape(b)))
    c.put(out, contract(c, node, a, left, b, right, names))
    c.put(out, pointwise(c, node, [out, bias], len(c.shape(out))))


@rule("aten.einsum")
def einsum(c: Coupler, node: Node) -> None:
    """Any two-operand einsum without repeated letters; others freeze what they touch."""
    given = arguments(node)
    operands = [item.value for item in given["tensors"]]
    equation = given["equation"].replace(" ", "")
    left, _, out = equation.partition("->")
    terms = left.split(",")
    plain = len(operands) == 2 and out and all(len(set(term)) == len(term) for term in (*terms, out))
    if plain and "." not in equation:
        a, b = (" ".join(term) for term in terms)
        c.put(node.outputs[0], contract(c, node, operands[0], a, operands[1], b, " ".join(out)))
        return
    if plain:
        a, b, names = _name_dots(terms, out, [len(c.shape(item)) for item in operands])
        c.put(node.outputs[0], contract(c, node, operands[0], a, operands[1], b, names))
        return
    for operand in operands:
        c.freeze_all(operand, f"{node.where} with equation {equation!r} has no rule")
    c.put(node.outputs[0], ())


def _name_dots(terms: list[str], out: str, ranks: list[int]) -> tuple[str, str, str]:
    """`...` spelled out as axis names, aligned on the right."""
    spans = [rank - len(term.replace(".", "")) if "." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    most = max(spans)

    def spell(term: str, span: int) -> str:
        dots = [f"e{i}" for i in range(most - span, most)]
        head, found, tail = term.partition("...")
        return " ".join([*head, *(dots if found else []), *tail])

    return spell(terms[0], spans[0]), spell(terms[1], spans[1]), spell(out, most)


@rule("aten.outer", "aten.ger")
def outer(c: Coupler, node: Node) -> None:
    """`y[i, j] = a[i] b[j]`."""
    a, b = node.inputs
    layers = [spread(ids, dim, 2) for dim, ids in ((0, c.along(a, 0)), (1, c.along(b, 0))) if ids is not None]
    c.put(node.outputs[0], layers)
