"""L1: mean absolute weight of a filter."""

import torch
from torch import Tensor

from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion


@criterion("l1")
def l1(group: ChannelGroup, context: Context) -> Tensor:
    """`mean |W[k]|` over the weights that produce unit k; biases do not count. Higher = keep.

    Rows: one per layer that produces the channels. Needs no data. Free of cost. A bad choice where scales differ for
    other reasons than importance, as before a normalisation layer, which undoes any scale. Ranks like the sum form
    inside one layer.

    Li et al., Pruning Filters for Efficient ConvNets, 2017 (the sum form).
    """
    return context.rows(
        group,
        lambda rows: torch.linalg.vector_norm(rows, 1, dim=1) / rows.shape[1],
        lambda parts: parts.mean(1),
    )
