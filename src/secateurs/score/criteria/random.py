"""Random scores: the baseline that every criterion should beat."""

import torch
from torch import Tensor

from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion


@criterion("random", normalizer="none")
def random(group: ChannelGroup, context: Context) -> Tensor:
    """Uniform in (0, 1), from the seed given to `score`. A surprisingly strong baseline once fine-tuned."""
    return torch.rand(group.size, generator=context.generator, dtype=torch.float64)
