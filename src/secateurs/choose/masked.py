"""How good a plan is before anything is cut: the network with the removed channels multiplied by zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.base.seeds import seeded
from secateurs.capture.program import Read
from secateurs.choose.plan import Plan
from secateurs.couple.group import Groups
from secateurs.couple.sites import Site, consumption_sites
from secateurs.score.samples import Samples

Measure = Callable[[Any, Any], float]


def hits(outputs: Any, target: Any) -> float:
    """How many samples of a batch have their largest output at the target."""
    return float((outputs.argmax(1) == target).sum())


def masked_accuracy(
    groups: Groups,
    model: nn.Module,
    data: Iterable[Any],
    *,
    measure: Measure = hits,
    batches: int | None = None,
    seed: int = 0,
) -> Callable[[Plan], float]:
    """A function that gives the accuracy of a plan's network on `data`, batches `(inputs, target)`; higher is better.

    It is the sum of `measure(outputs, target)` over the first `batches` (default: all) by the number of samples. The
    model is not changed. Raises `InputError`, when called, for data that does not fit the model.
    """
    samples = Samples(model, groups.graph, data, limit=batches, seed=seed)
    sites = consumption_sites(groups)

    def accuracy(plan: Plan) -> float:
        silenced = _silenced(groups, sites, plan)
        total = count = 0.0
        with seeded(seed), torch.no_grad():
            for batch in samples:
                state = batch.program.run(batch.begin(), reads=silenced)
                total += measure(batch.program.output(state), batch.target)
                count += batch.size
        return total / count

    return accuracy


def _silenced(groups: Groups, sites: dict[str, tuple[Site, ...]], plan: Plan) -> dict[int, Read]:
    """`reads` for `Program.run` in which the units that the plan removes are zero for all who read them."""
    masks: dict[int, dict[int, Tensor]] = {}
    for decision in plan.groups:
        for site in sites.get(decision.name, ()) if len(decision.kept) < decision.size else ():
            stays = torch.from_numpy((site.units < 0) | np.isin(site.units, decision.kept))
            rank = len(groups.graph.values[site.value].shape)
            stays = stays.reshape([-1 if dim == site.dim else 1 for dim in range(rank)])
            mine = masks.setdefault(site.node, {})
            mine[site.value] = mine[site.value] & stays if site.value in mine else stays

    def read_by(mine: dict[int, Tensor]) -> Read:
        return lambda value, tensor: tensor * mine[value].to(tensor) if value in mine else tensor

    return {node: read_by(mine) for node, mine in masks.items()}


__all__ = ["hits", "masked_accuracy"]
