"""Taylor, 2019, on gates: the squared change of the loss when a channel is shut, to first order."""

from torch import Tensor

from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion
from secateurs.score.gradients import gate_gradients, over_batches, over_positions, stacked


@criterion("taylor_gates", needs="loss")
def taylor_gates(group: ChannelGroup, context: Context, *, momentum: float | None = None) -> Tensor:
    """`g_z^2`, g_z the gradient of a mini-batch's mean loss to a gate z = 1 on unit k where its consumers read it.

    `g_z = sum z*dLoss/dz` over samples, positions and the unit's channels. Averaged over mini-batches, or with
    `momentum` (0.9 in the paper) a running average over them. Rows: one per value that consumers read. Higher = keep.
    Needs inputs and targets; costs one forward and backward pass. It is defined per mini-batch: how the data is split
    matters, and slopes of opposite signs inside a batch cancel. A bad choice where channels saturate, since a slope
    says little about what happens far away. Right behind a batch norm it equals
    `(gamma*dLoss/dgamma + beta*dLoss/dbeta)^2`.

    Molchanov et al., Importance Estimation for Neural Network Pruning, 2019.
    """
    return context.once(f"taylor_gates/{momentum}", lambda: _rows(context, momentum))[group.name]


def _rows(context: Context, momentum: float | None) -> dict[str, Tensor]:
    batches = ({place: slope.square() for place, slope in found.items()}
               for _, found in gate_gradients(context, over_positions))  # fmt: skip
    return stacked(context, over_batches(batches, momentum))
