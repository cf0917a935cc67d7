"""Optimal brain surgeon: which weights of a layer go, and what the others become, so that its outputs change least.

Hassibi, Stork, 1993; by rows and greedily: Frantar, Alistarh: Optimal Brain Compression, 2022 (arXiv 2208.11580). The
error of one output is `(w - w*)^T H (w - w*)`, with H the second moments of what it reads. Removing the weights g and
moving the others to where that is least costs `w_g^T ([H^-1]_gg)^-1 w_g`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateurs.sparsity.pattern import Grouping
from secateurs.sparsity.select import best_of_blocks, largest, removed

WORK = 3e11
"""Multiplications up to which every output gets the inverse of its own moments; beyond, conjugate gradients."""

STEPS = 200
"""Conjugate gradients at most, per fit."""


@dataclass(frozen=True)
class Quadratic:
    """The error of a layer of n inputs: the sum over its outputs of `w^T H w - 2 right^T w`, and a constant.

    `hessian` `[groups, n, n]`, positive definite, for outputs that are split evenly among the groups; `right`
    `[outputs, n]`; both float64 on the CPU.
    """

    hessian: Tensor
    right: Tensor

    def around(self, weights: Tensor) -> Quadratic:
        """The same, of weights where this is one of how far they are from `weights` `[outputs, n]`."""
        held = weights.reshape(len(self.hessian), -1, weights.shape[1]) @ self.hessian
        return Quadratic(self.hessian, self.right + held.reshape(weights.shape))

    def error(self, weights: Tensor) -> Tensor:
        """`[outputs]`, without the constant: only differences mean something."""
        held = self.right.reshape(len(self.hessian), -1, weights.shape[1])
        mine = weights.reshape(held.shape)
        return ((mine @ self.hessian - 2 * held) * mine).sum(2).flatten()

    def by_group(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows of the weights, their moments, their right sides."""
        each = len(self.right) // len(self.hessian)
        for index, held in enumerate(self.hessian):
            rows = slice(index * each, (index + 1) * each)
            yield rows, held, self.right[rows]


def damped(moments: Tensor, ridge: float, scale: Tensor) -> Tensor:
    """Moments `[groups, n, n]` with `ridge` times `scale` `[groups]` on the diagonal, and what it takes to invert them.

    Inputs that were never active count as the ridge alone.
    """
    tiny = torch.finfo(torch.float64).eps * 8 * moments.shape[-1]
    least = torch.where(scale > 0, scale * max(ridge, tiny), 1.0)
    return moments + torch.diag_embed(least.unsqueeze(1).expand(-1, moments.shape[-1]))


def fitted(error: Quadratic, alive: Tensor) -> Tensor:
    """The weights `[outputs, n]` of the least error that are zero where `alive` is False."""
    return _fit(error, alive, None)[0]


def operate(
    error: Quadratic, grouping: Grouping, sparsity: float | None, *, rounds: int = 16, within: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A mask, bool `[outputs, n]`, that keeps whole groups, and the weights of the least error that have it.

    `grouping` is that of the weights as stored, outputs first. Of n groups `floor(sparsity * n + 0.5)` go, those dead
    in `within` first, in `rounds` steps of equal ratio: in each those that cost least, after which the others are
    fitted anew. With as many rounds as groups to remove it is the greedy order of the papers. Patterns that fix how
    many stay take no sparsity.
    """
    ids = grouping.ids.reshape(error.right.shape)
    alive = ids >= 0 if within is None else (ids >= 0) & within.reshape(ids.shape)
    for quota in _quotas(grouping, sparsity, rounds):
        scores = _fit(error, alive, Grouping(ids, grouping.count))[1]
        scores = torch.where(grouping.kept(alive.reshape(grouping.ids.shape)), scores, -torch.inf)
        if grouping.blocks is None:
            kept = largest(scores, (grouping.count - quota) / grouping.count)
        else:
            kept = best_of_blocks(scores, grouping.blocks, quota)
        alive = alive & grouping.spread(kept).reshape(ids.shape)
    return alive, fitted(error, alive)


def _quotas(grouping: Grouping, sparsity: float | None, rounds: int) -> list[int]:
    """How many groups (of every block) are left after each round, falling, equal in ratio."""
    if grouping.blocks is None:
        first, last = grouping.count, grouping.count - removed(sparsity or 0.0, grouping.count)
    else:
        first, last = int(torch.bincount(grouping.blocks).max()), grouping.quota
    if last >= first:
        return []
    if rounds >= first - last:
        return list(range(first - 1, last - 1, -1))
    steps = np.geomspace(first, max(last, 1), rounds + 1)[1:-1].round().astype(int).tolist()
    return sorted({*steps, last} - {first}, reverse=True)


def _fit(error: Quadratic, alive: Tensor, groups: Grouping | None) -> tuple[Tensor, Tensor]:
    """The fitted weights; and what each of the groups (of flat ids) costs to remove, `[groups]`, if they are given."""
    weights = torch.zeros_like(error.right)
    scores = weights.new_zeros(0 if groups is None else groups.count)
    alone = groups is None or _single(groups.ids)
    for rows, moments, right in error.by_group():
        mine, found = alive[rows], weights[rows]
        kinds, kind = torch.unique(mine, dim=0, return_inverse=True)
        if float((kinds.sum(1).double() ** 3).sum()) > WORK:
            found.copy_(_conjugate(moments, right, mine))
            if groups is not None:
                _charge(scores, found, torch.where(mine, groups.ids[rows], -1), _inverse(moments), alone)
            continue
        for number, support in enumerate(kinds):
            own, members = support.nonzero().flatten(), (kind == number).nonzero().flatten()
            if not len(own):
                continue
            inverse = _inverse(moments[own][:, own])
            best = right[members][:, own] @ inverse
            found[members[:, None], own] = best
            if groups is not None:
                _charge(scores, best, groups.ids[rows][members][:, own], inverse, alone)
    return weights, scores


def _inverse(moments: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(moments))


def _single(ids: Tensor) -> bool:
    """Has no row two weights of one group?"""
    ordered = torch.where(ids < 0, -torch.arange(1, ids.shape[1] + 1), ids).sort(1).values
    return not bool((ordered[:, 1:] == ordered[:, :-1]).any())


def _charge(scores: Tensor, weights: Tensor, ids: Tensor, inverse: Tensor, alone: bool) -> None:
    """Add to each group what its weights in these rows cost to remove. `weights` and `ids` `[rows, inputs]`."""
    if alone:
        costs = weights.square() / inverse.diagonal()
        scores.index_add_(0, ids.flatten().clamp(min=0), torch.where(ids >= 0, costs, 0.0).flatten())
        return
    for row, mine in zip(weights, ids, strict=True):
        order = mine.argsort(stable=True)
        order = order[mine[order] >= 0]
        names, sizes = torch.unique_consecutive(mine[order], return_counts=True)
        starts = sizes.cumsum(0) - sizes
        for size in sizes.unique().tolist():
            chosen = sizes == size
            places = order[starts[chosen][:, None] + torch.arange(size)]
            parts = row[places].unsqueeze(2)
            costs = (parts * torch.linalg.solve(inverse[places[:, :, None], places[:, None, :]], parts)).sum((1, 2))
            scores.index_add_(0, names[chosen], costs)


def _conjugate(moments: Tensor, right: Tensor, alive: Tensor) -> Tensor:
    """As the inverses give it, within 1e-8, for many large rows at once: preconditioned conjugate gradients."""
    scale = 1 / moments.diagonal()
    found, left = torch.zeros_like(right), torch.where(alive, right, 0.0)
    eased = left * scale
    way, power = eased, (left * eased).sum(1)
    enough = power * 1e-16
    for _ in range(STEPS):
        if bool((power <= enough).all()):
            break
        carried = torch.where(alive, way @ moments, 0.0)
        step = (power / (way * carried).sum(1).clamp(min=torch.finfo(torch.float64).tiny)).unsqueeze(1)
        found, left = found + step * way, left - step * carried
        eased = left * scale
        now = (left * eased).sum(1)
        way = eased + (now / power.clamp(min=torch.finfo(torch.float64).tiny)).unsqueeze(1) * way
        power = now
    return found


__all__ = ["Quadratic", "damped", "fitted", "operate"]
