"""Optimal brain damage: the change of the loss at a minimum, to second order, when weights become zero."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion
from secateurs.score.curvature import diagonal_of


@criterion("obd", needs="loss")
def obd(group: ChannelGroup, context: Context, *, diagonal: str = "fisher", probes: int = 32, draws: int = 0) -> Tensor:
    """`sum 0.5*h_s*w_s^2` over the weights s that produce unit k, h the diagonal of the Hessian of the mean loss.

    `diagonal` says how h is found and what that costs:

    - `"fisher"`: mean squared gradients of single samples. One forward and backward pass, at most a few times as dear.
    - `"gauss_newton"`: the outputs' slopes around the curvature of the loss, exact, whatever the labels are for
      cross-entropy. A backward pass for each output of a sample; or with `draws=n`, for cross-entropy only, n passes
      with labels drawn from the model's own softmax.
    - `"hutchinson"`: `probes` random vectors through the true Hessian, about twice a forward and backward pass each.
      It can be negative; a unit whose sum is negative scores 0.

    Rows: one per layer that produces the channels; biases do not count. Higher = keep. Needs inputs and targets.
    Independent of how the data is split into batches. A bad choice away from a minimum, since slopes are left out, and
    for units whose weights matter together, since cross terms are left out.

    Raises `UnknownNameError` for another diagonal and `InputError` for numbers of probes or draws that make no sense.

    LeCun, Denker, Solla, Optimal Brain Damage, 1990.
    """
    rows = context.once(f"obd/{diagonal}/{probes}/{draws}", lambda: _rows(context, diagonal, probes, draws))
    return rows[group.name]


def _rows(context: Context, diagonal: str, probes: int, draws: int) -> dict[str, Tensor]:
    """`{group name: [producers, size]}`."""
    groups = context.groups.free
    leaves = list(dict.fromkeys(member.leaf for group in groups for member in context.producers(group)))
    estimate = diagonal_of(context, leaves, diagonal, probes, draws)
    found: dict[str, Tensor] = {}
    for group in groups:
        rows = []
        for member in context.producers(group):
            weights = context.tensors[member.leaf].detach().double()
            saliency = context.matrix(member, estimate[member.leaf] * weights.square() / 2).sum(1).cpu()
            rows.append(context.by_unit(group, member, saliency).sum(1).clamp_min(0))
        found[group.name] = torch.stack(rows)
    return found
