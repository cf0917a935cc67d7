"""Normalisations. Statistics over an owned axis make its groups inexact; per-channel statistics do not."""

from __future__ import annotations

from secateurs.capture.graph import Node
from secateurs.couple.causes import against
from secateurs.couple.coupler import Coupler, Layer, spread, varying
from secateurs.couple.pointwise import pointwise
from secateurs.couple.rules.registry import arguments, rule, value


@rule("aten.batch_norm", "aten.instance_norm", "aten._native_batch_norm_legit_no_training", "aten.native_batch_norm")
def batch_norm(c: Coupler, node: Node) -> None:
    """Scale, shift and statistics have one entry per channel of dimension 1."""
    given = arguments(node)
    x = given["input"].value
    ids = c.along(x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        extra = value(given.get(name))
        if extra is not None:
            entry = c.along(extra, 0)
            ids = c.pair(ids, entry, against(c, node, "ties it, entry by entry, to", x, ids, extra, entry))
    others = c.others(x, [1])
    if given.get("training") or given.get("use_input_stats") or value(given.get("running_mean")) is None:
        for layer in others:
            c.change(layer, f"{node.where} takes its statistics over it")
    c.put(node.outputs[0], [*others, *([spread(ids, 1, len(c.shape(x)))] if ids is not None else [])])


@rule("aten.layer_norm", "aten.rms_norm", "aten.native_layer_norm", "aten._fused_rms_norm")
def layer_norm(c: Coupler, node: Node) -> None:
    """Statistics over the last dimensions: exact for what varies elsewhere, inexact for what varies along them."""
    given = arguments(node)
    x = given["input"].value
    rank = len(c.shape(x))
    inside = set(range(rank - len(given["normalized_shape"]), rank))
    layers: list[Layer] = []
    for layer in c.of(x):
        dims = set(varying(layer))
        if dims & inside and dims - inside:
            layer = c.collapse(layer, min(dims - inside))
        elif dims & inside:
            layer = c.collapse(layer, min(dims))
            c.change(layer, f"{node.where} takes its statistics over these channels")
        layers.append(layer)
    c.layers[x] = tuple(layers)
    extra = [number for name in ("weight", "bias") if (number := value(given.get(name))) is not None]
    c.put(node.outputs[0], pointwise(c, node, [x, *extra], rank))
    for out in node.outputs[1:]:
        c.put(out, ())


@rule("aten.group_norm", "aten.native_group_norm")
def group_norm(c: Coupler, node: Node) -> None:
    """One group: like layer norm. Groups of one channel: exact. Otherwise whole groups go."""
    given = arguments(node)
    x = given["input"].value
    groups = int(given["num_groups"] if "num_groups" in given else given["group"])
    channels = c.shape(x)[1]
    ids = c.along(x, 1)
    for name in ("weight", "bias"):
        extra = value(given.get(name))
        if extra is not None:
            entry = c.along(extra, 0)
            ids = c.pair(ids, entry, against(c, node, "ties it, entry by entry, to", x, ids, extra, entry))
    for layer in c.others(x, [1]):
        c.freeze(layer, f"{node.where} takes its statistics over it")
    if ids is not None and groups == 1:
        c.change(ids, f"{node.where} takes its statistics over these channels")
    elif ids is not None and groups < channels:
        rows = ids.reshape(groups, -1)
        c.tie(rows, rows[:, :1])
    c.put(node.outputs[0], [spread(ids, 1, len(c.shape(x)))] if ids is not None else [])
    for out in node.outputs[1:]:
        c.put(out, ())


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.special_softmax")
def softmax(c: Coupler, node: Node) -> None:
    """Every entry along `dim` depends on all the others: that axis can lose nothing."""
    given = arguments(node)
    x = node.inputs[0]
    layers = c.avoid(x, [given["dim"]], f"{node.where} runs over this axis: every entry depends on all the others")
    c.put(node.outputs[0], layers)


@rule("aten._weight_norm", "aten._weight_norm_interface")
def weight_norm(c: Coupler, node: Node) -> None:
    """`w = g * v / |v|`, the norm over all but `dim`: rows are exact, columns change the rest."""
    given = arguments(node)
    v, g, dim = given["v"].value, given["g"].value, given["dim"]
    for layer in c.of(v):
        if varying(layer) != (dim,):
            c.change(layer, f"{node.where} takes the norm of the weight over it")
    c.put(node.outputs[0], pointwise(c, node, [v, g], len(c.shape(v))))


@rule("aten.local_response_norm")
def local_response_norm(c: Coupler, node: Node) -> None:
    """A window over neighbouring channels: removing one changes the others."""
    x = node.inputs[0]
    ids = c.along(x, 1)
    if ids is not None:
        c.change(ids, f"{node.where} mixes neighbouring channels")
    c.put(node.outputs[0], c.of(x))
