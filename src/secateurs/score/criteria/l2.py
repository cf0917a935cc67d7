"""L2: Euclidean norm of a filter."""

import torch
from torch import Tensor

from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion


@criterion("l2")
def l2(group: ChannelGroup, context: Context) -> Tensor:
    """`sqrt(sum W[k]^2)` over the weights that produce unit k; biases do not count. Higher = keep.

    Rows: one per layer that produces the channels. Needs no data. Free of cost. A bad choice where scales differ for
    other reasons than importance, as before a normalisation layer, which undoes any scale; small norms mean most after
    training with a penalty on them.

    He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, 2018 (also NVIDIA's TLT / TAO).
    """
    return context.rows(
        group,
        lambda rows: torch.linalg.vector_norm(rows, dim=1).double().square(),
        lambda parts: parts.sum(1).sqrt(),
    )
