"""Element-wise operators that PyTorch does not tag as such, and the few with channel-wise parameters."""

from __future__ import annotations

from secateurs.capture.graph import Node
from secateurs.couple.causes import against
from secateurs.couple.coupler import Coupler, spread
from secateurs.couple.rules.registry import RULES, arguments, elementwise_node, rule, value

# fmt: off
UNTAGGED = (
    "aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout", "aten.to",
    "aten._to_copy", "aten.type_as", "aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.lift_fresh",
    "aten.lift_fresh_copy", "aten.relu6", "aten.celu", "aten.rrelu", "aten.masked_fill", "aten.copy", "aten.fill",
    "aten.zero", "aten.where", "aten.float_power", "aten.nan_to_num", "aten.softplus", "aten.rsub", "aten.positive",
    "aten.square", "aten.clip", "aten.absolute", "aten.negative", "aten.selu", "aten.hardsigmoid", "aten.hardswish",
    "aten.hardtanh", "aten.silu", "aten.mish", "aten.logit", "aten.threshold", "aten.softsign", "aten.tanhshrink",
    "aten.log_sigmoid", "aten.logaddexp", "aten.true_divide", "aten.multiply", "aten.subtract", "aten.divide",
    "aten.bernoulli", "aten.isnan", "aten.isinf", "aten.isfinite", "aten.native_dropout", "aten.rand_like",
    "aten.randn_like", "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.clamp_max",
    "aten.clamp_min", "aten.greater", "aten.less", "aten.greater_equal", "aten.less_equal", "aten.not_equal",
    "aten.gelu", "aten.relu", "aten.elu", "aten.leaky_relu", "aten.sigmoid", "aten.tanh", "aten.logical_and",
    "aten.logical_or", "aten.logical_xor", "aten.logical_not", "aten.bitwise_and", "aten.bitwise_or",
    "aten.bitwise_not", "aten.__and__", "aten.__or__", "aten.__xor__",
)
# fmt: on

for _name in UNTAGGED:
    RULES[_name] = elementwise_node


@rule("aten.prelu")
def prelu(c: Coupler, node: Node) -> None:
    """One slope for all, or one per channel of dimension 1."""
    given = arguments(node)
    x, weight = given["self"].value, given["weight"].value
    if c.shape(weight) != (1,):
        ids, slope = c.along(x, 1), c.along(weight, 0)
        c.pair(ids, slope, against(c, node, "has one slope per channel of", x, ids, weight, slope))
    c.put(node.outputs[0], c.of(x))


@rule("aten.glu")
def glu(c: Coupler, node: Node) -> None:
    """`a * sigmoid(b)` where `a`, `b` are the halves of `x` along `dim`: index i of one dies with i of the other."""
    given = arguments(node)
    x, dim = given["self"].value, given["dim"] % len(c.shape(given["self"].value))
    ids = c.along(x, dim)
    layers = list(c.others(x, [dim]))
    if ids is not None:
        first, second = ids.chunk(2)
        c.tie(first, second)
        if x in c.apart:
            c.freeze(ids, f"{node.where} multiplies one half of it, element by element, with the other")
        layers.append(spread(first, dim, len(c.shape(x))))
    c.put(node.outputs[0], layers)


@rule(
    "aten.zeros",
    "aten.ones",
    "aten.full",
    "aten.empty",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
    "aten.new_empty",
)
def uniform(c: Coupler, node: Node) -> None:
    """The same number everywhere: any index of it may go."""
    out = node.outputs[0]
    assert out is not None
    rank = len(c.shape(out))
    c.put(out, [spread(c.fresh(size), dim, rank) for dim, size in enumerate(c.shape(out)) if size > 1])


@rule("aten.scalar_tensor")
def scalar(c: Coupler, node: Node) -> None:
    """A number has no axes."""
    c.put(node.outputs[0], ())


__all__ = ["UNTAGGED", "glu", "prelu", "scalar", "uniform", "value"]
