"""The network as importance sees it on its way back: absolute weights, activations that pass everything.

Every operator is replaced by a linear one through which a score travels as it should; the derivative of the whole is
then the propagated score. Operators not named here run as they are, on absolute weights and on inputs of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs.capture.graph import Node
from secateurs.capture.run import call, operator
from secateurs.couple.rules.registry import arguments, base_name

Read = Callable[[int], Tensor]
Given = dict[str, Any]
"""The arguments by name, tensors in place of references; `moving` holds the names of those that follow the inputs."""

# fmt: off
PASSING = frozenset(f"aten.{name}" for name in (
    "relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish",
    "sigmoid", "hardsigmoid", "hardswish", "tanh", "softplus", "softsign", "tanhshrink", "log_sigmoid", "threshold",
    "clamp", "clamp_min", "clamp_max", "clip", "abs", "absolute", "neg", "negative", "exp", "log", "sqrt", "rsqrt",
    "square", "pow", "log_softmax", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "to",
    "_to_copy", "type_as", "local_response_norm",
))
MEETING = frozenset(f"aten.{name}" for name in (
    "add", "sub", "subtract", "rsub", "mul", "multiply", "maximum", "minimum",
))
# fmt: on
"""Operators whose score is copied to all that meets: sums, products, maxima of activations."""


def run_node(node: Node, read: Read, moving: frozenset[int]) -> tuple[Any, ...]:
    """The outputs of the node's stand-in; `moving` are the values that follow the inputs."""
    op, given = base_name(node.op), arguments(node)
    tensors = [value for value in node.inputs if value in moving and read(value).is_floating_point()]
    first = node.inputs[0] if node.inputs else None
    if op in PASSING and first in tensors:
        return (read(first),)
    if op in MEETING and len(node.inputs) == 2 and len(tensors) == 2:
        return (read(node.inputs[0]) + read(node.inputs[1]),)
    stand_in = STAND_INS.get(op)
    if stand_in is None or first not in tensors:
        return call(node, read)
    return stand_in({name: _filled(item, read) for name, item in given.items()}, node)


def _filled(item: Any, read: Read) -> Any:
    return read(item.value) if hasattr(item, "value") else item


def _batch_norm(given: Given, node: Node) -> tuple[Any, ...]:
    x, scale = given["input"], torch.ones((), dtype=torch.float64)
    if given["weight"] is not None:
        scale = scale * given["weight"].abs()
    if given.get("running_var") is not None and not given.get("training"):
        scale = scale / (given["running_var"] + given["eps"]).sqrt()
    return _outputs(x * _channels(scale, x), node)


def _group_norm(given: Given, node: Node) -> tuple[Any, ...]:
    x, scale = given["input"], given["weight"]
    return _outputs(x if scale is None else x * _channels(scale.abs(), x), node)


def _layer_norm(given: Given, node: Node) -> tuple[Any, ...]:
    x, scale = given["input"], given["weight"]
    return _outputs(x if scale is None else x * scale.abs(), node)


def _max_pool(given: Given, node: Node) -> tuple[Any, ...]:
    pool = getattr(F, base_name(node.op).split(".")[1].replace("max", "avg").replace("_with_indices", ""))
    x, size = given["self"], given["kernel_size"]
    result = pool(x, size, given["stride"] or size, given["padding"], given["ceil_mode"])
    return _outputs(result, node)


def _adaptive_max_pool(given: Given, node: Node) -> tuple[Any, ...]:
    pool = getattr(F, base_name(node.op).split(".")[1].replace("max", "avg"))
    return _outputs(pool(given["self"], given["output_size"]), node)


def _amax(given: Given, node: Node) -> tuple[Any, ...]:
    x = given["self"]
    return (x.mean(given["dim"] or list(range(x.dim())), keepdim=given["keepdim"]),)


def _softmax(given: Given, node: Node) -> tuple[Any, ...]:
    """All weigh the same: a score goes through what is weighed."""
    return (torch.softmax(given["self"] * 0, given["dim"]),)


def _attention(given: Given, node: Node) -> tuple[Any, ...]:
    even = {**given, "query": given["query"] * 0, "key": given["key"] * 0, "dropout_p": 0.0}
    mask = even.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        even["attn_mask"] = mask.to(even["query"].dtype)
    return (operator(node.op)(**even),)


def _glu(given: Given, node: Node) -> tuple[Any, ...]:
    one, other = given["self"].chunk(2, given["dim"])
    return (one + other,)


def _channels(scale: Tensor, x: Tensor) -> Tensor:
    return scale.reshape(-1, *(1,) * (x.dim() - 2))


def _outputs(result: Tensor, node: Node) -> tuple[Any, ...]:
    """The first output; others, such as indices and statistics, carry no score."""
    return (result, *(torch.zeros(()) for _ in node.outputs[1:]))


STAND_INS: dict[str, Callable[[Given, Node], tuple[Any, ...]]] = {
    **dict.fromkeys(
        ("aten.batch_norm", "aten._native_batch_norm_legit_no_training", "aten.native_batch_norm"), _batch_norm
    ),
    **dict.fromkeys(("aten.group_norm", "aten.native_group_norm", "aten.instance_norm"), _group_norm),
    **dict.fromkeys(
        ("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm"), _layer_norm
    ),
    **{f"aten.max_pool{rank}d{more}": _max_pool for rank in (1, 2, 3) for more in ("", "_with_indices")},
    **{f"aten.adaptive_max_pool{rank}d": _adaptive_max_pool for rank in (1, 2, 3)},
    "aten.amax": _amax,
    "aten.softmax": _softmax,
    "aten.scaled_dot_product_attention": _attention,
    "aten.glu": _glu,
}


__all__ = ["run_node"]
