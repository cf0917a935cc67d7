"""How many bits for which tensor: the choice of least total error within a number of bytes.

One of several choices for each tensor: the multiple-choice knapsack. Solved exactly, by going through the tensors with
all choices so far of which none is better in both, and leaving out those that a bound from the convex hulls rules out
(Dyer, Kayal, Walker: A branch and bound algorithm for solving the multiple-choice knapsack problem, 1984).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from secateurs.base.errors import BudgetError, InputError, explain

Doubles = NDArray[np.float64]

STATES = 200_000
"""Partial choices kept at once; beyond that the least promising go, and the result says that it may not be the best."""


@dataclass(frozen=True)
class Candidate:
    """One way to code one tensor: what it is called (such as its bits), its error (lower = better) and its bytes."""

    bits: int
    error: float
    bytes: int


@dataclass(frozen=True)
class Allocation:
    """A candidate for every tensor, with the sums. No choice within the budget has an error below `bound`.

    `exact`: this is the best choice there is (to rounding).
    """

    choice: Mapping[str, Candidate]
    error: float
    bytes: int
    bound: float
    exact: bool

    @property
    def bits(self) -> dict[str, int]:
        """`{tensor name: bits}`."""
        return {name: candidate.bits for name, candidate in self.choice.items()}


def allocate(candidates: Mapping[str, Sequence[Candidate]], budget: int) -> Allocation:
    """The candidate of every tensor that together have the least error in at most `budget` bytes.

    Errors may have either sign. Raises `BudgetError` when not even the smallest candidates fit, which states the least
    that does, and `InputError` for a tensor without candidates or an error that is not finite.
    """
    lists = {name: _useful(name, listed) for name, listed in candidates.items()}
    smallest = {name: listed[0].bytes for name, listed in lists.items()}
    if sum(smallest.values()) > budget:
        raise BudgetError(
            explain(
                f"The tensors do not fit into {budget:,} bytes",
                evidence=f"the smallest candidates take {sum(smallest.values()):,}",
                next_step="give more bytes, or candidates of fewer bits",
            )
        )
    price, greedy = _relaxed(lists, budget)
    known = sum(item.error for item in greedy.values())
    order = sorted(lists, key=lambda name: _width(lists[name], price), reverse=True)
    picks, exact = _search([lists[name] for name in order], budget, price, known)
    found = {name: lists[name][pick] for name, pick in zip(order, picks, strict=False)}
    if not picks or sum(item.error for item in found.values()) > known:
        found = greedy
    choice = {name: found[name] for name in candidates}
    error = sum(item.error for item in choice.values())
    bound = min(_lagrangian(list(lists.values()), budget, price), error)
    return Allocation(choice, error, sum(item.bytes for item in choice.values()), error if exact else bound, exact)


def _useful(name: str, listed: Sequence[Candidate]) -> list[Candidate]:
    """By rising bytes and falling error: those to which no other is preferable in both."""
    if not listed or not all(isfinite(item.error) and item.bytes >= 0 for item in listed):
        raise InputError(
            explain(
                "A tensor has no candidates" if not listed else "A candidate has no finite error or no size",
                where=f"`{name}`",
            )
        )
    kept: list[Candidate] = []
    for item in sorted(listed, key=lambda item: (item.bytes, item.error)):
        if not kept or item.error < kept[-1].error:
            kept.append(item)
    return kept


def _relaxed(lists: Mapping[str, list[Candidate]], budget: int) -> tuple[float, dict[str, Candidate]]:
    """Error per byte at which the convex hulls use the budget up, and where the steps on them that fit lead."""
    steps = [
        ((old.error - new.error) / (new.bytes - old.bytes), name, new, old)
        for name, listed in lists.items()
        for old, new in _hull_steps(listed)
    ]
    left = budget - sum(listed[0].bytes for listed in lists.values())
    choice = {name: listed[0] for name, listed in lists.items()}
    price, blocked = 0.0, set()
    for gain, name, new, old in sorted(steps, key=lambda step: -step[0]):
        if name in blocked:
            continue
        if new.bytes - old.bytes <= left:
            left -= new.bytes - old.bytes
            choice[name] = new
        else:
            price = price or gain
            blocked.add(name)
    return price, choice


def _hull_steps(listed: list[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Neighbours on the lower convex hull of error over bytes."""
    hull: list[Candidate] = []
    for item in listed:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], item):
            hull.pop()
        hull.append(item)
    return list(pairwise(hull))


def _slope(one: Candidate, other: Candidate) -> float:
    return (other.error - one.error) / (other.bytes - one.bytes)


def _width(listed: list[Candidate], price: float) -> float:
    """How much is at stake at this price: where it is much, wrong choices are ruled out early."""
    totals = [item.error + price * item.bytes for item in listed]
    return max(totals) - min(totals)


def _lagrangian(lists: Sequence[list[Candidate]], budget: int, price: float) -> float:
    """No choice within the budget has less error."""
    return sum(min(item.error + price * item.bytes for item in listed) for listed in lists) - price * budget


def _search(lists: Sequence[list[Candidate]], budget: int, price: float, known: float) -> tuple[list[int], bool]:
    """The index chosen in each list (empty: lost on the way); and was nothing left out that could have been better?"""
    floor = np.cumsum([0, *(listed[0].bytes for listed in reversed(lists))])[::-1]
    rest = np.cumsum([0.0, *(_lagrangian([listed], 0, price) for listed in reversed(lists))])[::-1]
    slack = 1e-9 * (abs(known) + sum(abs(item.error) for listed in lists for item in listed))
    size, error = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    exact = True
    for position, listed in enumerate(lists, start=1):
        sizes = (size[:, None] + np.array([item.bytes for item in listed])).reshape(-1)
        errors = (error[:, None] + np.array([item.error for item in listed])).reshape(-1)
        bound = errors + rest[position] - price * (budget - sizes)
        allowed = np.flatnonzero((sizes + floor[position] <= budget) & (bound <= known + slack))
        if not len(allowed):
            return [], False
        allowed = allowed[np.lexsort((errors[allowed], sizes[allowed]))]
        running = np.minimum.accumulate(errors[allowed])
        allowed = allowed[np.concatenate([[True], running[1:] < running[:-1]])]
        if len(allowed) > STATES:
            exact = False
            allowed = np.sort(allowed[np.argsort(bound[allowed], kind="stable")[:STATES]])
        size, error = sizes[allowed], errors[allowed]
        trail.append((allowed // len(listed), allowed % len(listed)))
    picks: list[int] = []
    state = int(error.argmin())
    for parents, taken in reversed(trail):
        picks.append(int(taken[state]))
        state = int(parents[state])
    return picks[::-1], exact


__all__ = ["Allocation", "Candidate", "allocate"]
