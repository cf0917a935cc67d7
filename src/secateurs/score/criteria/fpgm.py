"""FPGM: filters near the geometric median of their layer are the ones that the others can replace."""

import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs.base.errors import InputError, explain
from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion

DISTANCES = ("euclidean", "cosine")


@criterion("fpgm")
def fpgm(group: ChannelGroup, context: Context, *, distance: str = "euclidean") -> Tensor:
    """`sum_j ||F_k - F_j||_2` over the filters of the same layer; biases do not count. Higher = keep.

    The lowest are nearest to the geometric median: the rest can stand in for them. `distance="cosine"` takes `1 -
    cos(F_k, F_j)` instead, the distance of directions; a filter of zeros then has the distance 1 to every other. Rows:
    one per layer that produces the channels; a unit of several filters is one long filter. Needs no data. Costs
    `size^2` distances per layer. A bad choice where filters are pruned for being small: it does not look at magnitude,
    and in a group of two both score the same.

    He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration, 2019.
    """
    if distance not in DISTANCES:
        raise InputError(
            explain(f"distance={distance!r} is no choice", next_step=f"take one of {', '.join(DISTANCES)}")
        )
    measure = _euclidean if distance == "euclidean" else _cosine
    filters = [context.by_unit(group, member, context.weight(member)) for member in context.producers(group)]
    return torch.stack([measure(each.flatten(1).to("cpu", torch.float64)).sum(1) for each in filters])


def _euclidean(filters: Tensor) -> Tensor:
    """Distances `[size, size]` of `[size, entries]`. What all have in common goes first, for the sake of precision."""
    filters = filters - filters.mean(0)
    return torch.cdist(filters, filters).fill_diagonal_(0)


def _cosine(filters: Tensor) -> Tensor:
    directions = F.normalize(filters, eps=1e-300)
    return (1 - directions @ directions.T).clamp_min(0).fill_diagonal_(0)
