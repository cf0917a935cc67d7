"""Matrix products."""

from __future__ import annotations

from secateurs.capture.graph import Node
from secateurs.couple.causes import against
from secateurs.couple.contract import contract
from secateurs.couple.coupler import Coupler, Layer, spread
from secateurs.couple.pointwise import pointwise
from secateurs.couple.rules.registry import Unmovable, arguments, rule, value


def add_bias(c: Coupler, node: Node, weight: int, layers: list[Layer], bias: int | None, dim: int) -> None:
    """The bias has one entry per output channel: tie it to the layer along `dim`."""
    if bias is None:
        return
    ids = next((layer.reshape(-1) for layer in layers if layer.shape[dim] > 1), None)
    added = c.along(bias, 0)
    c.pair(ids, added, against(c, node, "adds it to a product with", weight, ids, bias, added))


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
        add_bias(c, node, w, layers, bias, len(c.shape(x)) - 1)
    c.put(node.outputs[0], layers)


@rule("aten.matmul", "aten.bmm", "aten.mm", "aten.mv", "aten.dot", "aten.vdot")
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


@rule("aten.bilinear")
def bilinear(c: Coupler, node: Node) -> None:
    """`y[.., o] = x1[.., i] w[o, i, j] x2[.., j] + b[o]`."""
    given = arguments(node)
    a, b, w, bias = given["input1"].value, given["input2"].value, given["weight"].value, value(given["bias"])
    names = [f"d{i}" for i in range(len(c.shape(a)) - 1)]
    lead = " ".join(names)
    c.consumers.update({(w, 1), (w, 2)})
    half = contract(c, node, a, f"{lead} i", w, "o i j", f"{lead} o j")
    middle = c.temporary((*c.shape(a)[:-1], c.shape(w)[0], c.shape(w)[2]), half)
    layers = contract(c, node, middle, f"{lead} o j", b, f"{lead} j", f"{lead} o")
    add_bias(c, node, w, layers, bias, len(names))
    c.put(node.outputs[0], layers)


@rule("aten.tensordot")
def tensordot(c: Coupler, node: Node) -> None:
    """The named axes of both are summed, in order; what is left stands side by side."""
    given = arguments(node)
    a, b = given["self"].value, given["other"].value
    left = [f"l{i}" for i in range(len(c.shape(a)))]
    right = [f"r{i}" for i in range(len(c.shape(b)))]
    for i, j in zip(given["dims_self"], given["dims_other"], strict=True):
        right[j] = left[i]
    out = [name for name in left if name not in right] + [name for name in right if name not in left]
    c.put(node.outputs[0], contract(c, node, a, " ".join(left), b, " ".join(right), " ".join(out)))


@rule("aten.cdist")
def cdist(c: Coupler, node: Node) -> None:
    """Distances between the rows of `a[.., m, k]` and of `b[.., n, k]`: measured over what is left of `k`."""
    given = list(arguments(node).values())
    a, b = given[0].value, given[1].value
    left, right, out = product_names(len(c.shape(a)), len(c.shape(b)))
    *lead, k, n = right.split()
    layers = contract(c, node, a, left, b, " ".join([*lead, n, k]), out)
    ids = c.along(a, -1)
    if ids is not None:
        c.change(ids, f"{node.where} measures distances over these channels")
    c.put(node.outputs[0], layers)


@rule("aten.einsum")
def einsum(c: Coupler, node: Node) -> None:
    """Any einsum in which no operand repeats a letter, from left to right, two operands at a time."""
    given = arguments(node)
    operands = [item.value for item in given["tensors"]]
    equation = given["equation"].replace(" ", "")
    terms, out = _spelled(equation, [len(c.shape(item)) for item in operands])
    if any(len(set(term)) < len(term) for term in terms):
        raise Unmovable(f"equation {equation!r} repeats a letter in")
    value, names = operands[0], terms[0]
    for number in range(1, len(operands)):
        later = {*out, *(name for term in terms[number + 1 :] for name in term)}
        sizes = {**dict(zip(terms[number], c.shape(operands[number]), strict=True))}
        for name, size in zip(names, c.shape(value), strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
        after = [name for name in dict.fromkeys(names + terms[number]) if name in later]
        left, right = " ".join(names), " ".join(terms[number])
        layers = contract(c, node, value, left, operands[number], right, " ".join(after))
        value, names = c.temporary(tuple(sizes[name] for name in after), layers), after
    gone = [dim for dim, name in enumerate(names) if name not in out]
    kept = c.avoid(value, gone, f"{node.where} sums over it")
    order = [names.index(name) for name in out]
    c.put(
        node.outputs[0], [layer.permute(*order, *gone).reshape([layer.shape[dim] for dim in order]) for layer in kept]
    )


def _spelled(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """Axis names of every operand and of the result; `...` becomes names aligned on the right."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = ("..." if "." in left else "") + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    spans = [rank - len(term.replace(".", "")) if "." in term else 0 for term, rank in zip(terms, ranks, strict=True)]

    def spell(term: str, span: int) -> list[str]:
        head, found, tail = term.partition("...")
        return [*head, *(f"e{i}" for i in range(max(spans) - span, max(spans)) if found), *tail]

    return [spell(term, span) for term, span in zip(terms, spans, strict=True)], spell(right, max(spans))


@rule("aten.outer", "aten.ger")
def outer(c: Coupler, node: Node) -> None:
    """`y[i, j] = a[i] b[j]`."""
    a, b = node.inputs
    layers = [spread(ids, dim, 2) for dim, ids in ((0, c.along(a, 0)), (1, c.along(b, 0))) if ids is not None]
    c.put(node.outputs[0], layers)
