"""Scaled dot-product attention: heads (default) or columns of a head are the unit."""

from __future__ import annotations

from secateurs.capture.graph import Node
from secateurs.couple.contract import contract
from secateurs.couple.coupler import Coupler, Layer, varying
from secateurs.couple.pointwise import pointwise
from secateurs.couple.rules.registry import arguments, rule, value


@rule("aten.scaled_dot_product_attention", "aten._scaled_dot_product_flash_attention_for_cpu")
def attention(c: Coupler, node: Node) -> None:
    """`softmax(q k^T * scale + mask) v` over `[.., length, width]`; with grouped queries a key head serves several."""
    given = arguments(node)
    q, k, v, mask = given["query"].value, given["key"].value, given["value"].value, value(given.get("attn_mask"))
    if given.get("enable_gqa"):
        k, v = _repeat_heads(c, k, c.shape(q)[-3]), _repeat_heads(c, v, c.shape(q)[-3])
    batch = [f"b{i}" for i in range(len(c.shape(q)) - 2)]
    lead = " ".join(batch)
    scores = contract(c, node, q, f"{lead} l e", k, f"{lead} s e", f"{lead} l s")
    shape = (*c.shape(q)[:-1], c.shape(k)[-2])
    held = c.temporary(shape, scores)
    if mask is not None:
        held = c.temporary(shape, pointwise(c, node, [held, mask], len(shape)))
    c.avoid(held, [-1], f"{node.where} takes a softmax over it")
    c.put(node.outputs[0], contract(c, node, held, f"{lead} l s", v, f"{lead} s e", f"{lead} l e"))
    for extra in node.outputs[1:]:
        c.put(extra, ())


def _repeat_heads(c: Coupler, x: int, heads: int) -> int:
    """The value with each head repeated until there are `heads` of them."""
    shape = c.shape(x)
    if shape[-3] == heads:
        return x
    times = heads // shape[-3]
    dim = len(shape) - 3
    layers: list[Layer] = [layer.repeat_interleave(times, dim) if dim in varying(layer) else layer for layer in c.of(x)]
    return c.temporary((*shape[:-3], heads, *shape[-2:]), layers)
