"""`choose`: groups + scores + budget -> `Plan`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np
from torch import Tensor

from secateurs.base.errors import BudgetError, InputError, PlanError, explain
from secateurs.capture.graph import Graph
from secateurs.choose.budget import Budget
from secateurs.choose.plan import GroupDecision, Plan
from secateurs.choose.search import SEARCHES, kept_at
from secateurs.choose.widths import Widths
from secateurs.cost.predict import CostModel
from secateurs.couple.group import Bools, ChannelGroup, Groups


def choose(
    graph: Graph,
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    search: str = "global",
    granularity: int = 1,
    min_channels: int = 1,
    floor: float = 0.0,
    criterion: str = "",
    seed: int = 0,
) -> Plan:
    """The largest network within `budget` that the search finds; the lowest-scored units go.

    `granularity`, `min_channels` (channels) and `floor` (fraction) bound every group's width, see `Widths`. With
    `Budget(channels=f)` exactly `floor((1-f)*n + 0.5)` of the n units of every group go, before rounding to
    `granularity`;
    any other limit is then met by the search within that. With `Budget(threshold=t)` the units that score `t` or more
    stay, at least the minimum, rounded *up* to `granularity`; the best ones fill what rounding adds.

    Raises `BudgetError` when the budget can not be reached (it states the minimum and what holds it), `InputError` when
    scores are missing or of the wrong size, `UnknownNameError` for an unknown search.
    """
    if graph.hash != groups.graph.hash:
        raise PlanError(
            explain("The groups belong to another graph", evidence=f"{groups.graph.hash[:12]} is not {graph.hash[:12]}")
        )
    rows = _check_scores(groups, scores)
    widths = Widths(granularity, min_channels, floor)
    if budget.channels is not None and budget.channels < floor:
        raise BudgetError(
            explain(
                "The budget contradicts the floor",
                evidence=f"at most {budget.channels} of every group may remain, at least {floor} of it must",
                next_step="lower floor, or give more channels",
            )
        )
    find = SEARCHES[search]
    if not groups.free:
        raise BudgetError(_nothing_free(groups))
    model = CostModel(groups)
    whole = np.ones(groups.units, dtype=np.bool_)
    limits = budget.absolute(model.counts(whole))
    order = {name: np.argsort(row, kind="stable") for name, row in rows.items()}

    def alive(keep: dict[str, int]) -> Bools:
        return groups.alive({name: order[name][order[name].size - units :].tolist() for name, units in keep.items()})

    def fits(keep: dict[str, int]) -> bool:
        state = alive(keep)
        return all(model.metric(metric, state) <= limit for metric, limit in limits.items())

    keep = {group.name: group.size for group in groups.free}
    if budget.channels is not None:
        keep = {group.name: kept_at(group.size, budget.channels, group, widths) for group in groups.free}
    if budget.threshold is not None:
        above = _above(groups, rows, budget.threshold, widths)
        keep = {name: min(units, above[name]) for name, units in keep.items()}
    if not fits(keep):
        smallest = {group.name: widths.least(group) for group in groups.free}
        if not fits(smallest):
            raise BudgetError(_unreachable(groups, model, limits, alive(smallest)))
        found = find(groups, rows, widths, fits)
        keep = {name: min(units, found[name]) for name, units in keep.items()}
    kept = {name: tuple(sorted(order[name][order[name].size - units :].tolist())) for name, units in keep.items()}
    return plan(
        graph, groups, kept, scores=rows, model=model, widths=widths,
        criterion=criterion, search=search, budget=str(budget), seed=seed,
    )  # fmt: skip


def _above(groups: Groups, rows: Mapping[str, np.ndarray], threshold: float, widths: Widths) -> dict[str, int]:
    """Units of every group that score at least the threshold, at widths that are allowed."""
    counts = {group.name: int((rows[group.name] >= threshold).sum()) for group in groups.free}
    empty = [name for name, count in counts.items() if not count]
    if empty and widths.min_channels == 1:
        best = max(empty, key=lambda name: float(rows[name].max()))
        raise BudgetError(
            explain(
                f"A threshold of {threshold:g} would leave nothing of {len(empty)} of {len(counts)} groups",
                where=f"group `{empty[0]}`",
                evidence=f"its best unit scores {rows[empty[0]].max():.4g}"
                + (f", that of `{best}` {rows[best].max():.4g}" if best != empty[0] else ""),
                next_step="lower the threshold, or say with min_channels how many channels every group keeps at least",
            )
        )
    return {group.name: widths.at_least(group, counts[group.name]) for group in groups.free}


def plan(
    graph: Graph,
    groups: Groups,
    keep: Mapping[str, Sequence[int]],
    *,
    scores: Mapping[str, np.ndarray] | None = None,
    model: CostModel | None = None,
    widths: Widths | None = None,
    criterion: str = "",
    search: str = "",
    budget: str = "",
    seed: int = 0,
) -> Plan:
    """The plan that keeps exactly these units of the named groups and everything else.

    Raises `UnknownNameError` for a group that does not exist and `PlanError` for a group that is frozen, would be left
    empty, or has no such unit.
    """
    for name, units in keep.items():
        _check_kept(groups[name], units)
    alive = groups.alive(keep)
    model = model or CostModel(groups)
    removed: dict[str, dict[int, tuple[int, ...]]] = {}
    for leaf in graph.leaves:
        for dim in range(len(leaf.shape)):
            owners = groups.axes.get((leaf.value, dim))
            gone = np.flatnonzero((owners >= 0) & ~alive[owners]) if owners is not None else np.zeros(0, dtype=np.int64)
            if gone.size:
                removed.setdefault(leaf.name, {})[dim] = tuple(gone.tolist())
    decisions = [_decision(group, keep.get(group.name), scores, widths) for group in groups]
    whole = np.ones(groups.units, dtype=np.bool_)
    return Plan(
        graph_hash=graph.hash, removed=removed, groups=tuple(decisions), before=model.cost(whole).to_dict(),
        after=model.cost(alive).to_dict(), criterion=criterion, search=search, budget=budget, seed=seed,
        unit=groups.unit,
    )  # fmt: skip


def _check_kept(group: ChannelGroup, units: Sequence[int]) -> None:
    problem = ""
    if group.frozen is not None and len(set(units)) < group.size:
        problem = f"it is frozen: {group.frozen}"
    elif not len(units):
        problem = "nothing of it would be left"
    elif min(units) < 0 or max(units) >= group.size:
        problem = f"it has units 0 to {group.size - 1}"
    if problem:
        raise PlanError(explain("This can not be planned", where=f"group `{group.name}`", evidence=problem))


def _decision(
    group: ChannelGroup, keep: Iterable[int] | None, scores: Mapping[str, np.ndarray] | None, widths: Widths | None
) -> GroupDecision:
    kept = tuple(sorted(keep)) if keep is not None else tuple(range(group.size))
    if group.frozen is not None:
        why = group.frozen
    elif len(kept) == group.size and widths is not None and widths.least(group) == group.size:
        channels = group.size * group.width
        why = f"kept whole: its granularity and the other limits on widths allow no fewer than its {channels} channels"
    elif len(kept) == group.size:
        why = "kept whole: within the budget as it is"
    else:
        why = f"kept the {len(kept)} best of {group.size}" if scores else f"kept {len(kept)} of {group.size} as asked"
        if widths is not None and len(kept) == widths.least(group):
            why += ", the least allowed"
        elif widths is not None and widths.step(group) > 1:
            why += f", in steps of {widths.step(group)}"
    if group.inexact_because is not None and group.frozen is None:
        why += f"; removing any changes the rest: {group.inexact_because}"
    row = () if scores is None or group.name not in scores else tuple(scores[group.name].tolist())
    return GroupDecision(group.name, group.size, kept, why, row, group.frozen is not None)


def _check_scores(groups: Groups, scores: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    rows: dict[str, np.ndarray] = {}
    for group in groups.free:
        row = scores.get(group.name)
        if row is None or tuple(row.shape) != (group.size,):
            shape = None if row is None else tuple(row.shape)
            raise InputError(
                explain(
                    "The scores do not fit the groups",
                    where=f"group `{group.name}`",
                    evidence=f"{group.size} units, scores of shape {shape}",
                    next_step="use the scores that sec.score gives for these groups",
                )
            )
        rows[group.name] = row.detach().to("cpu").double().numpy()
    return rows


def _nothing_free(groups: Groups) -> str:
    why = "; ".join(f"`{group.name}`: {group.frozen}" for group in groups.frozen[:5])
    return explain(
        "Nothing of this model can be removed", evidence=why or "it has no channels", next_step="see sec.couple(graph)"
    )


def _unreachable(groups: Groups, model: CostModel, limits: Mapping[str, float], least: Bools) -> str:
    missed = {m: (model.metric(m, least), limit) for m, limit in limits.items() if model.metric(m, least) > limit}
    whole = np.ones(groups.units, dtype=np.bool_)
    original = model.counts(whole)
    parts = [
        f"{metric}: at least {low:,} ({low / max(original[metric], 1):.1%} of the original), asked for {limit:,.0f}"
        for metric, (low, limit) in missed.items()
    ]
    if "macs" in missed:
        held = sorted(model.macs_by_node(least).items(), key=lambda item: -item[1])[:3]
        holders = "; ".join(f"{groups.graph.nodes[node].where} keeps {macs:,} MACs" for node, macs in held)
    else:
        sizes = {leaf.name: prod(groups.shape(leaf.value, least)) for leaf in groups.graph.leaves}
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
        holders = "; ".join(f"`{name}` keeps {size:,} values" for name, size in largest)
    frozen = "; ".join(f"`{group.name}` is frozen: {group.frozen}" for group in groups.frozen[:3])
    return explain(
        "The budget can not be reached",
        evidence="; ".join([*parts, holders, frozen]),
        next_step="raise the budget, lower granularity, min_channels or floor, or exclude less",
    )
