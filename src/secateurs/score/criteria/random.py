"""Random scores: the baseline that every criterion should beat."""

import torch
from torch import Tensor

from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion


@criterion("random", normalizer="none")
def random(group: ChannelGroup, context: Context) -> Tensor:
    """Uniform in (0, 1), one number per unit `[size]`, from the seed given to `score`. Higher = keep.

    Needs no data. Free of cost. A bad choice for anything but a comparison, above all without training after the cut;
    once fine-tuned, a surprisingly strong baseline.

    Mittal et al., Recovering from Random Pruning: On the Plasticity of Deep Convolutional Neural Networks, 2018.
    """
    return torch.rand(group.size, generator=context.generator, dtype=torch.float64)
