"""`compose`: two plans, made one after the other, as one plan for the original."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from secateurs.base.errors import PlanError, explain
from secateurs.choose.plan import GroupDecision, Plan

Removed = Mapping[str, Mapping[int, tuple[int, ...]]]


def compose(first: Plan, second: Plan) -> Plan:
    """The plan that removes at once, from the model `first` was made for, what `first` and then `second` remove.

    `second` was made for the model that `first` leaves. All indices of the result are the original's, so that it can be
    replayed on the original class: `cut(cut(model, first), second)` equals `cut(model, compose(first, second))` in
    every tensor. A unit's score is the last one that it was given.

    Raises `PlanError` when `second` was made for another model than `first` leaves, or when one plan removes whole
    attention heads and the other columns of them.
    """
    _check_order(first, second)
    return Plan(
        graph_hash=first.graph_hash,
        removed=_both_removed(first.removed, second.removed),
        groups=_both_decided(first.groups, second.groups),
        before=dict(first.before),
        after=dict(second.after),
        criterion=_in_turn(first.criterion, second.criterion),
        search=_in_turn(first.search, second.search),
        budget=_in_turn(first.budget, second.budget),
        seed=first.seed,
        unit=second.unit if first.empty else first.unit,
    )


def original_indices(later: Collection[int], removed: Collection[int]) -> tuple[int, ...]:
    """Where indices of an axis were before `removed` (original indices) went; ascending.

    >>> original_indices([0, 1, 2], removed=[1, 2])
    (0, 3, 4)
    """
    gone = np.array(sorted(removed), dtype=np.int64)
    asked = np.array(sorted(later), dtype=np.int64)
    passed = np.searchsorted(gone - np.arange(gone.size), asked, side="right")
    return tuple((asked + passed).tolist())


def _check_order(first: Plan, second: Plan) -> None:
    shared = sorted(first.after.keys() & second.before.keys())
    other = [metric for metric in shared if first.after[metric] != second.before[metric]]
    if other:
        raise PlanError(
            explain(
                "The second plan was not made for the model that the first one leaves",
                evidence=f"the first leaves {first.after[other[0]]:,} {other[0]}, "
                f"the second starts from {second.before[other[0]]:,}",
                next_step="give the plans in the order in which they were made, with nothing cut in between",
            )
        )
    if first.unit != second.unit and not first.empty and not second.empty:
        raise PlanError(
            explain(
                "These plans take attention apart in different ways and have no common units",
                evidence=f"unit={first.unit!r} in the first, unit={second.unit!r} in the second",
                next_step="apply them one after the other, or make the second with the first's unit",
            )
        )


def _both_removed(first: Removed, second: Removed) -> dict[str, dict[int, tuple[int, ...]]]:
    result = {leaf: dict(dims) for leaf, dims in first.items()}
    for leaf, dims in second.items():
        mine = result.setdefault(leaf, {})
        for dim, indices in dims.items():
            gone = mine.get(dim, ())
            mine[dim] = tuple(sorted((*gone, *original_indices(indices, gone))))
    return result


def _both_decided(first: tuple[GroupDecision, ...], second: tuple[GroupDecision, ...]) -> tuple[GroupDecision, ...]:
    later = {decision.name: decision for decision in second}
    left = {decision.name: len(decision.kept) for decision in first if not decision.frozen}
    for name, decision in later.items():
        if first and len(decision.kept) < decision.size != left.get(name):
            raise PlanError(
                explain(
                    "The second plan removes what is no unit of the original, which has no such group or one that is "
                    "frozen",
                    where=f"group `{name}`",
                    evidence=f"{decision.size} units in the second plan, {left.get(name, 'none')} left by the first",
                    next_step="apply the plans one after the other",
                )
            )
    return tuple(_decided(decision, later.get(decision.name)) for decision in first)


def _decided(first: GroupDecision, second: GroupDecision | None) -> GroupDecision:
    """One group's two decisions; a group that was left with nothing to choose from may be missing in the second."""
    if second is None or second.size != len(first.kept):
        return first
    shrank_first, shrank_then = len(first.kept) < first.size, len(second.kept) < second.size
    why = [first.why] * (shrank_first or not shrank_then) + [second.why] * shrank_then
    scores = list(first.scores)
    if scores and second.scores:
        for unit, score in zip(first.kept, second.scores, strict=True):
            scores[unit] = score
    return GroupDecision(
        name=first.name,
        size=first.size,
        kept=tuple(first.kept[unit] for unit in second.kept),
        why="; then ".join(why),
        scores=tuple(scores),
        frozen=first.frozen,
    )


def _in_turn(first: str, second: str) -> str:
    return first if first == second else ", then ".join(text for text in (first, second) if text)
