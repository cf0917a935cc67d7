"""Batch-norm scale: how much of a channel the batch norm lets through."""

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.capture.graph import Ref
from secateurs.couple.group import ChannelGroup, Member
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.score.criteria.l2 import l2
from secateurs.score.criterion import Context, criterion

BATCH_NORMS = ("aten.batch_norm", "aten._native_batch_norm_legit_no_training", "aten.native_batch_norm")
WITHOUT = ("refuse", "l2")


@criterion("bn_scale", normalizer="none")
def bn_scale(group: ChannelGroup, context: Context, *, without: str = "refuse") -> Tensor:
    """`|gamma_k|`: the standard deviation that the batch norm gives to channel k. Higher = keep.

    Rows: one per batch norm over the group's channels; the mean over a unit's channels if it owns several. Scales of
    all layers are compared as they are. Needs no data. Free of cost. A bad choice for a network that was not trained
    with a penalty on the scales (`L + lambda * sum |gamma|`), where they hardly differ, and where the channel is added
    to a shortcut that no batch norm scales.

    A group without a batch norm has no scale to compare. `without="refuse"` raises `InputError`, naming the group;
    `without="l2"` takes the L2 norm of its filters instead: the standard deviation of their outputs on uncorrelated
    inputs of variance one, which is what the scale is for the others.

    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017.
    """
    if without not in WITHOUT:
        raise InputError(explain(f"without={without!r} is no choice", next_step=f"take one of {', '.join(WITHOUT)}"))
    scales = _scales(group, context)
    if scales:
        rows = [context.by_unit(group, member, context.weight(member)[:, 0].abs()).mean(1) for member in scales]
        return torch.stack([row.to("cpu", torch.float64) for row in rows])
    if without == "l2":
        return l2(group, context)
    raise InputError(
        explain(
            "The criterion 'bn_scale' needs a batch norm and this group has none",
            where=f"group `{group.name}`",
            evidence=f"its tensors: {', '.join(dict.fromkeys(member.leaf for member in group.members))}",
            next_step=f"exclude `{group.name}`, or give the option without='l2' to score such groups by filter norm",
        )
    )


def _scales(group: ChannelGroup, context: Context) -> list[Member]:
    """The members that are weights of batch norms."""
    graph = context.groups.graph
    found = context.once("bn_scale", lambda: _weights(context))
    return [member for member in group.members if graph.leaf(member.leaf).value in found]


def _weights(context: Context) -> frozenset[int]:
    """Values that some batch norm takes as its scale."""
    nodes = [node for node in context.groups.graph.nodes if base_name(node.op) in BATCH_NORMS]
    given = [arguments(node)["weight"] for node in nodes]
    return frozenset(item.value for item in given if isinstance(item, Ref))
