"""APoZ: average percentage of zeros."""

import warnings
from collections.abc import Mapping

from torch import Tensor

from secateurs.base.errors import explain
from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion
from secateurs.score.passes import before_averages, channel_means


@criterion("apoz", needs="data", normalizer="none")
def apoz(group: ChannelGroup, context: Context, *, eps: float = 0.0) -> Tensor:
    """`1 - APoZ`: the share of entries of channel k that are not zero where its consumers read it, after the ReLU.

    A consumer that reads averages over positions, such as a classifier behind global pooling, has no zeros to read:
    what the averages are taken of counts. Rows: one per such value; between 0 and 1. Higher = keep. Needs inputs, no
    labels; costs one forward pass over the data.

    With an activation other than ReLU exact zeros are rare: entries with `|z| <= eps` count as zeros, so give `eps`; at
    0 every unit of such a layer scores 1, and a warning names those groups. A bad choice for those, and where a channel
    is rarely active but matters when it is.

    Hu et al., Network Trimming, 2016.
    """
    means = context.once(f"apoz/{eps}", lambda: _means(context, eps))
    blind = context.once(f"apoz/{eps}/blind", lambda: _blind(means))
    if blind and group.name == blind[0]:
        warnings.warn(
            explain(
                "APoZ does not tell units apart where nothing is zero",
                where=f"group{'s' * (len(blind) > 1)} {', '.join(f'`{name}`' for name in blind)}",
                evidence=f"no entry is within {eps:g} of zero, so every unit scores 1",
                next_step="give the option eps, such as options={'eps': 0.05} (--option eps=0.05): how near to zero "
                "counts as zero behind another activation than ReLU; or exclude those groups",
            ),
            stacklevel=4,  # the caller of `score`
        )
    return means[group.name]


def _means(context: Context, eps: float) -> dict[str, Tensor]:
    return channel_means(context, lambda z: (z.abs() > eps).double(), before_averages(context))


def _blind(means: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Groups of which all units score 1, in the order of scoring."""
    return tuple(name for name, rows in means.items() if rows.shape[1] > 1 and bool((rows == 1).all()))
