"""Taylor, 2019, on weights: the squared change of the loss when a filter becomes zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion
from secateurs.score.equalize import named
from secateurs.score.gradients import Slope, leaf_gradients, over_batches

FORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "filter": (lambda change: change, torch.square),
    "squares": (torch.square, lambda total: total),
}
"""What happens to the change of each weight before the sum over a filter, and to the sum."""


@criterion("taylor_weights", needs="loss")
def taylor_weights(
    group: ChannelGroup, context: Context, *, form: str = "filter", order: int = 1, momentum: float | None = None
) -> Tensor:
    """`(sum g_s*w_s)^2` over the weights s that produce unit k, g the gradient of a mini-batch's mean loss.

    `form="squares"` gives `sum (g_s*w_s)^2`. `order=2` puts `g_s*w_s - 0.5*w_s*(H w)_s` in place of `g_s*w_s`, with the
    Hessian H of the same loss and w all parameters of the network. Averaged over mini-batches, or with `momentum` (0.9
    in the paper) a running average over them. Rows: one per layer that produces the channels; biases do not count.
    Higher = keep.

    Needs inputs and targets; costs one forward and backward pass (order 2, which differentiates twice: about six). It
    is defined per mini-batch: how the data is split matters. A bad choice at a minimum, where slopes are noise (take
    order 2 or `obd`), and right before a layer norm, where the loss does not change with the scale of all filters
    together.

    Raises `UnknownNameError` for another form, `InputError` for another order.

    Molchanov et al., Importance Estimation for Neural Network Pruning, 2019.
    """
    named("form", form, FORMS)
    check_order(order)
    key = f"taylor_weights/{form}/{order}/{momentum}"
    return context.once(key, lambda: _rows(context, form, order, momentum))[group.name]


def check_order(order: int) -> None:
    """Raises `InputError` unless it is 1 or 2."""
    if order not in (1, 2):
        raise InputError(explain("The order is 1 or 2", evidence=f"{order!r} given"))


def _rows(context: Context, form: str, order: int, momentum: float | None) -> dict[str, Tensor]:
    """`{group name: [producers, size]}`."""
    groups = context.groups.free
    leaves = list(dict.fromkeys(member.leaf for group in groups for member in context.producers(group)))
    batches = (
        {group.name: _scores(group, context, slopes, form) for group in groups}
        for _, slopes in leaf_gradients(context, leaves, order=order)
    )
    return over_batches(batches, momentum)


def _scores(group: ChannelGroup, context: Context, slopes: dict[str, Slope], form: str) -> Tensor:
    each, whole = FORMS[form]
    rows = []
    for member in context.producers(group):
        changes = each(context.matrix(member, change(slopes[member.leaf])).double()).sum(1).cpu()
        rows.append(whole(context.by_unit(group, member, changes).sum(1)))
    return torch.stack(rows)


def change(slope: Slope) -> Tensor:
    """How much the loss falls when each weight becomes zero."""
    first = slope.weight * slope.gradient
    return first if slope.curvature is None else first - slope.weight * slope.curvature / 2
