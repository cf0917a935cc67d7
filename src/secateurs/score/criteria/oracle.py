"""The oracle: remove a channel and see what happens. Slow, and what every other criterion tries to predict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import UnknownNameError, explain
from secateurs.couple.group import ChannelGroup
from secateurs.score.criterion import Context, criterion
from secateurs.score.masking import MEMORY, Measure, masked_means
from secateurs.score.samples import Batch

CHANGES = ("loss_abs", "loss")


@criterion("oracle", needs="loss", normalizer="none")
def oracle(
    group: ChannelGroup,
    context: Context,
    *,
    change: str = "loss_abs",
    metric: Callable[[Any, Any], Any] | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """What zeroing unit k alone, wherever its consumers read it, does to the mean loss over the data.

    `change`: `"loss_abs"` |dL|, or `"loss"` the signed dL = loss without the unit - loss with it. With `metric`, a
    function `(outputs, target) -> scalar`, mean over the batch, higher is better: the drop of its mean instead. One row
    `[size]`. Higher = keep. Needs inputs and labels; costs as many evaluations of the data as there are units, each
    from the first place that reads the unit. `memory` limits the bytes of activations of one pass. A bad choice for
    more than a few thousand units, and for groups in which units only matter together: it removes them one by one.

    Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2017 (section 3.1).
    """
    if change not in CHANGES:
        raise UnknownNameError(explain(f"There is no change named {change!r}", evidence=f"known: {', '.join(CHANGES)}"))
    measure = _measured(metric) if metric is not None else None
    found = context.once(f"oracle/{metric!r}/{memory}", lambda: _changes(context, measure, memory))[group.name]
    if metric is not None:
        return -found
    return found.abs() if change == "loss_abs" else found


def _changes(context: Context, measure: Measure | None, memory: int) -> dict[str, Tensor]:
    """By group name `[size]`: the mean with each unit masked minus the mean with none."""
    units = [(group.name, unit) for group in context.groups.free for unit in range(group.size)]
    plain, masked = masked_means(context, [{name: [unit]} for name, unit in units], measure, memory=memory)
    parts = torch.split(masked - plain, [group.size for group in context.groups.free])
    return {group.name: part for group, part in zip(context.groups.free, parts, strict=True)}


def _measured(metric: Callable[[Any, Any], Any]) -> Measure:
    def measure(batch: Batch, output: Any) -> Tensor:
        return torch.as_tensor(metric(output, batch.target))

    return measure
