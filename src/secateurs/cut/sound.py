"""What a program must be like to be stored and run. One from a file may say anything; nothing here trusts it.

It calls operators of PyTorch that give tensors, and that look at their arguments before they touch memory. It reads no
value before something has given it. So it may compute whatever it likes from the tensors that it gets, and do no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from secateurs.capture.bind import Calling, is_literal
from secateurs.capture.graph import Graph, Leaf, Node, Ref
from secateurs.capture.run import operator

NAMESPACES = ("aten", "torchvision")
INTERNAL = (
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "add_relu", "cdist_forward", "conj", "convolution", "embedding_bag",
    "euclidean_dist", "fft_c2c", "fft_c2r", "fft_r2c", "fused_rms_norm", "grouped_mm", "int_mm", "log_softmax",
    "masked_softmax", "native_batch_norm_legit", "native_batch_norm_legit_no_training", "neg_view",
    "pack_padded_sequence", "pad_packed_sequence", "pdist_forward", "safe_softmax",
    "scaled_dot_product_flash_attention_for_cpu", "shape_as_tensor", "softmax", "to_copy", "trilinear", "unique2",
    "unsafe_index", "unsafe_view", "upsample_bicubic2d_aa", "upsample_bilinear2d_aa", "upsample_lanczos2d_aa",
    "upsample_nearest_exact1d", "upsample_nearest_exact2d", "upsample_nearest_exact3d", "weight_norm",
    "weight_norm_interface",
)  # fmt: skip
"""Operators with an underscore before their name that models get to call. The others leave checks to their callers:
`aten._reshape_alias` with a wrong size reads memory that is none of the tensor's.
"""

KINDS = ("parameter", "buffer", "constant")
LARGEST = (1 << 63) - 1
DIMENSIONS = 64
"""What a tensor of PyTorch has at most, so that no list of sizes, strides or axes is longer."""


@cache
def known(op: str) -> str:
    """`op`, if a stored program may call it. Raises `ValueError` if not, `ArtifactError` if it does not exist."""
    namespace, name = [*word(op).split("."), ""][:2]
    if namespace not in NAMESPACES:
        raise ValueError(f"operator {op[:100]!r} is outside {' and '.join(NAMESPACES)}")
    if name.startswith("_") and not name.startswith("__") and name[1:] not in INTERNAL:
        raise ValueError(f"operator {op[:100]!r} is internal to PyTorch")
    schema = operator(op)._schema
    if any(argument.name == "filename" for argument in schema.arguments):
        raise ValueError(f"operator {op!r} touches files")
    if not any("Tensor" in str(item.type) for item in schema.returns) or not _dispatched(op):
        raise ValueError(f"operator {op!r} gives no tensor")
    return op


def _dispatched(op: str) -> bool:
    """Not one of those that only TorchScript has."""
    return bool(torch._C._dispatch_has_kernel(operator(op).name()))


def whole(item: Any, least: int = 0) -> int:
    """A number that is one: no string of digits, no fraction, no flag, nothing that 63 bits do not hold."""
    if type(item) is not int or not least <= item <= LARGEST:
        raise ValueError(f"{str(item)[:50]!r} is no number of at least {least}")
    return item


def word(item: Any) -> str:
    if not isinstance(item, str):
        raise TypeError(f"{str(item)[:50]!r} is no text")
    return item


def check(graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` unless the graph runs on these tensors, as far as that can be told without running it."""
    if graph.calling is not None:
        _check_call(graph, graph.calling)
    if not graph.inputs:
        raise ValueError("it takes no tensor")
    ready: set[int] = set()
    for item in graph.inputs:
        _give(graph, ready, item.value, item.name)
    for leaf in graph.leaves:
        _give(graph, ready, leaf.value, leaf.name)
    names = [name for leaf in (*graph.leaves, *graph.unread) for name in leaf.names]
    if len(set(names)) < len(names):
        raise ValueError("a name is that of two tensors")
    for leaf in (*graph.leaves, *graph.unread):
        _check_leaf(leaf, tensors)
    for node in graph.nodes:
        _check_node(node)
        missing = set(node.inputs) - ready
        if missing:
            raise ValueError(f"node {node.index} reads value {min(missing)} before it exists")
        for out in node.outputs:
            if out is not None:
                _give(graph, ready, out, f"node {node.index}")
    if not set(graph.outputs) <= ready:
        raise ValueError("an output is never computed")


def _give(graph: Graph, ready: set[int], value: int, by: str) -> None:
    if whole(value) >= len(graph.values):
        raise ValueError(f"{by} gives value {value} of {len(graph.values)}")
    if value in ready:
        raise ValueError(f"value {value} is given twice, the second time by {by}")
    ready.add(value)


def _check_leaf(leaf: Leaf, tensors: Mapping[str, Tensor]) -> None:
    if leaf.kind not in KINDS:
        raise ValueError(f"`{leaf.name}` is a {leaf.kind!r}")
    if leaf.names[:1] != (leaf.name,):
        raise ValueError(f"`{leaf.name}` is not the first of its names")
    tensor = tensors[leaf.name]
    if tuple(tensor.shape) != leaf.shape:
        raise ValueError(f"`{leaf.name}` has shape {tuple(tensor.shape)}, the graph says {leaf.shape}")
    for name in leaf.names:
        if name in tensors and not _same(tensors[name], tensor):
            raise ValueError(f"`{name}` and `{leaf.name}` are one tensor in the graph and two here")


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other or (one.shape != other.shape or one.dtype != other.dtype):
        return one is other
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _check_node(node: Node) -> None:
    """The call has the arguments that the operator takes, by name, and as many results as it gives."""
    schema = operator(node.op)._schema
    positional = [item.name for item in schema.arguments if not item.kwarg_only]
    given = [*positional[: len(node.args)], *node.kwargs]
    needed = {item.name for item in schema.arguments if not item.has_default_value()}
    names = {item.name for item in schema.arguments}
    if len(node.args) > len(positional) or len(set(given)) < len(given) or not needed <= set(given) <= names:
        raise ValueError(f"node {node.index} calls {node.op} with {len(node.args)} arguments and {list(node.kwargs)}")
    values = {**dict(zip(positional, node.args, strict=False)), **node.kwargs}
    for item in schema.arguments:
        _check_list(node, item, values.get(item.name))
    if not listed(schema.returns) and len(node.outputs) != len(schema.returns):
        raise ValueError(f"node {node.index} takes {len(node.outputs)} of {len(schema.returns)} results of {node.op}")


def _check_list(node: Node, argument: Any, value: Any) -> None:
    """PyTorch refuses these only when it runs, in a message that prints every tensor of the list."""
    if not isinstance(value, (list, tuple)):
        return
    kind = str(argument.type)
    if "List" not in kind and kind != "Any":
        raise ValueError(f"node {node.index} gives a list to `{argument.name}` of {node.op}, which is {kind}")
    if any(isinstance(item, (list, tuple)) for item in value):
        raise ValueError(f"node {node.index} gives a list of lists to `{argument.name}` of {node.op}")
    if "Tensor" not in kind and sum(isinstance(item, Ref) for item in value) > DIMENSIONS:
        raise ValueError(f"node {node.index} gives {len(value)} tensors to `{argument.name}` of {node.op}")


def listed(returns: Sequence[Any]) -> bool:
    """Does an operator give one list, whose length its arguments decide?"""
    return len(returns) == 1 and "List" in str(returns[0].type)


def _check_call(graph: Graph, calling: Calling) -> None:
    given = {leaf.value for leaf in calling.leaves.values() if isinstance(leaf, Ref)}
    if given != {item.value for item in graph.inputs}:
        raise ValueError("the call does not hold the inputs")
    rest = [leaf for leaf in calling.leaves.values() if not isinstance(leaf, Ref)]
    if not all(is_literal(item) for item in (*rest, *calling.parameters.defaults.values())):
        raise ValueError("the call holds something that is neither a tensor nor a literal")


__all__ = ["NAMESPACES", "check", "known", "whole", "word"]
