"""Mean activation: how much of a channel its consumers get to see."""

from torch import Tensor

from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion
from secateurs.score.passes import channel_means


@criterion("mean_activation", needs="data")
def mean_activation(group: ChannelGroup, context: Context) -> Tensor:
    """Mean over samples and positions of channel k, as its consumers read it: after batch norm and activation.

    Rows: one per value that consumers read. Higher = keep. Needs inputs, no labels; costs one forward pass over the
    data. Independent of how the data is split into batches. A bad choice where a channel with small values meets large
    weights, which it does not look at, and where activations take both signs (they cancel).

    Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2017 (section 2.2).
    """
    return context.once("mean_activation", lambda: channel_means(context, lambda tensor: tensor))[group.name]
