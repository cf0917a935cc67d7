"""Layer-compensated pruning: one ranking over the network, with a latent bonus for each layer that a search finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateurs.base.errors import BudgetError, InputError, explain
from secateurs.capture.graph import Graph
from secateurs.choose.budget import Budget
from secateurs.choose.choose import choose
from secateurs.choose.plan import Plan
from secateurs.couple.group import Groups

Floats = NDArray[np.float64]


def layer_compensated(
    graph: Graph,
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget,
    fitness: Callable[[Plan], float],
    *,
    population: int = 64,
    tournament: int = 16,
    evaluations: int = 256,
    step: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> Plan:
    """The fittest plan within `budget` among global rankings of `score + b`, with one `b` for each group.

    `scores` are those of `score`, such as `"l2"` with the normaliser `none`; `fitness(plan)` is higher for better, such
    as `masked_accuracy` or the accuracy after a little training. Regularised evolution finds b: of a population that
    starts with `b = 0`, plain global ranking, the fittest of `tournament` members drawn at random has a child, in which
    b of one group moves by a normal number times `step` times the standard deviation of that group's scores; then the
    oldest member dies. `evaluations` plans are judged in all, the population among them. `options` are those of
    `choose` (`granularity`, `min_channels`, `floor`, `criterion`). Every plan keeps the budget.

    Costs `evaluations` calls of `fitness`, and as many global rankings. A bad choice where `fitness` is noisy, as on
    few samples (the search takes what was lucky), and where there are too many groups for the evaluations.

    Raises `BudgetError` when the budget can not be reached or leaves nothing to search for, because it fixes every
    group's width, and `InputError` for sizes that make no search.

    Chin, Zhang, Marculescu: Layer-compensated Pruning for Resource-constrained Convolutional Neural Networks, 2018.
    """
    if not 1 <= tournament <= population <= evaluations or not step > 0:
        raise InputError(
            explain(
                "These sizes make no search",
                evidence=f"{tournament=}, {population=}, {evaluations=}, {step=}",
                next_step="1 <= tournament <= population <= evaluations, and step above 0",
            )
        )
    if not set(budget.limits) - {"channels", "threshold"}:
        raise BudgetError(
            explain(
                "This budget leaves nothing to search for",
                evidence=str(budget),
                next_step="limit macs, params or bytes",
            )
        )
    names = [group.name for group in groups.free]
    spreads = np.array([float(scores[name].double().std(unbiased=False)) for name in names])

    def judged(bonus: Floats) -> tuple[float, Plan]:
        plan = choose(
            graph, groups, compensated(scores, dict(zip(names, bonus, strict=True))), budget, seed=seed, **options
        )
        return fitness(plan), plan

    best = evolve(judged, step * spreads, population, tournament, evaluations, np.random.default_rng(seed))
    return replace(best, search="layer_compensated")


def compensated(scores: Mapping[str, Tensor], bonus: Mapping[str, float]) -> dict[str, Tensor]:
    """The scores `[size]` of every group plus its bonus (0 if it has none), float64."""
    return {name: row.detach().to("cpu", torch.float64) + bonus.get(name, 0.0) for name, row in scores.items()}


def evolve(
    judged: Callable[[Floats], tuple[float, Plan]],
    scale: Floats,
    population: int,
    tournament: int,
    evaluations: int,
    generator: np.random.Generator,
) -> Plan:
    """The fittest plan of a regularised evolution over vectors like `scale`, one entry for each group.

    `judged(bonus)` gives fitness and plan. The first that is fittest wins, so that plain ranking stays unless beaten.
    """
    members: list[tuple[Floats, float]] = []
    best: tuple[float, Plan] | None = None
    for number in range(evaluations):
        if number == 0:
            bonus = np.zeros_like(scale)
        elif number < population:
            bonus = generator.normal(size=scale.size) * scale
        else:
            drawn = generator.choice(len(members), tournament, replace=False)
            bonus = max((members[index] for index in drawn), key=lambda member: member[1])[0].copy()
            group = generator.integers(scale.size)
            bonus[group] += generator.normal() * scale[group]
        found, plan = judged(bonus)
        members = [*members, (bonus, found)][-population:]
        if best is None or found > best[0]:
            best = (found, plan)
    assert best is not None
    return best[1]


__all__ = ["compensated", "evolve", "layer_compensated"]
