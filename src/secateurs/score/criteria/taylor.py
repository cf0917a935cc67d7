"""Taylor, 2017: the change of the loss when a feature map becomes zero, to first order."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Batch, Context, Tap, criterion
from secateurs.score.flops import unit_flops
from secateurs.score.gradients import gate_gradients, stacked
from secateurs.score.passes import Place


def _charge(group: ChannelGroup, context: Context, *, flops_weight: float = 0.0) -> float:
    return flops_weight * unit_flops(group, context) if flops_weight else 0.0


@criterion("taylor", needs="loss", normalizer="l2", charge=_charge)
def taylor(group: ChannelGroup, context: Context, *, flops_weight: float = 0.0) -> Tensor:
    """`mean_n |1/M * sum z*g|` over the M entries of unit k in a sample's feature map z, where its consumers read it.

    g is the gradient of sample n's own loss; the batch's loss must be the mean over samples. M is P*Q for a channel of
    a map; columns that come from flattening one map are its positions. With `flops_weight` (1e-3 in the paper) the
    score loses, once it is normalised, that much for each million FLOPs that produce the unit, and may be negative.
    Rows: one per value that consumers read. Higher = keep.

    Needs inputs and targets; costs one forward and backward pass, without gradients of the weights. Independent
    of how the data is split into batches. A bad choice where channels saturate, since a slope says little about what
    happens far away, and where M differs between layers that are ranked together without normalisation.

    Raises `InputError` for a model whose samples cannot be told apart where a consumer reads them.

    Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2017.
    """
    return context.once("taylor", lambda: _rows(context))[group.name]


def _rows(context: Context) -> dict[str, Tensor]:
    total: dict[Place, Tensor] = {}
    samples = 0
    for batch, found in gate_gradients(context, _position_means):
        samples += batch.size
        for place, changes in found.items():
            mine = changes.abs().sum(0).cpu()
            total[place] = total[place] + mine if place in total else mine
    return stacked(context, {place: total[place] / samples / _indices(context, place) for place in total})


def _position_means(batch: Batch, tap: Tap, product: Tensor) -> Tensor:
    """`[samples, indices]`: means over positions of z times the gradient of each sample's own loss."""
    axis = batch.axes().get(tap.value)
    if axis is None:
        raise _mixed(batch, tap)
    others = [dim for dim in range(product.dim()) if dim not in (axis.dim, tap.dim)]
    positions = prod(product.shape[dim] for dim in others)
    sums = (product.sum(others, keepdim=True) if others else product).double()
    sums = tap.by_sample(sums, axis)
    return sums.mean(1) / positions * batch.size


def _indices(context: Context, place: Place) -> Tensor:
    """How many indices along the tap's dimension each unit owns, `[size]`."""
    name, number = place
    tap = context.taps[name][number]
    return tap.per_unit(torch.ones(len(tap.units), dtype=torch.float64), context.groups[name].size).clamp_min(1)


def _mixed(batch: Batch, tap: Tap) -> InputError:
    node = batch.program.graph.nodes[tap.nodes[0]]
    return InputError(
        explain(
            "This criterion looks at one sample at a time, and they cannot be told apart here",
            where=node.where,
            evidence=f"it reads a tensor of shape {batch.program.graph.values[tap.value].shape}",
            next_step="take 'taylor_gates', which looks at batches as a whole",
        )
    )
