"""APoZ: average percentage of zeros."""

from torch import Tensor

from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion
from secateurs.score.passes import channel_means


@criterion("apoz", needs="data", normalizer="none")
def apoz(group: ChannelGroup, context: Context, *, eps: float = 0.0) -> Tensor:
    """`1 - APoZ`: the share of entries of channel k that are not zero where its consumers read it, after the ReLU.

    Rows: one per value that consumers read; between 0 and 1. Higher = keep. Needs inputs, no labels; costs one forward
    pass over the data. With an activation other than ReLU exact zeros are rare: entries with `|z| <= eps` count as
    zeros, so give `eps`; at 0 every unit of such a layer scores 1. A bad choice for those, and where a channel is
    rarely active but matters when it is.

    Hu et al., Network Trimming, 2016.
    """
    return context.once(f"apoz/{eps}", lambda: channel_means(context, lambda z: (z.abs() > eps).double()))[group.name]
