"""Which groups stay: exact counts, ties settled."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def removed(sparsity: float, count: int) -> int:
    """How many of `count` groups go: `floor(sparsity * count + 0.5)`."""
    return math.floor(sparsity * count + 0.5)


def largest(scores: Tensor, sparsity: float) -> Tensor:
    """Bool `[groups]`: all but the `removed(sparsity, groups)` lowest. Of equal scores the lower index goes first."""
    kept = torch.ones(scores.numel(), dtype=torch.bool)
    kept[scores.argsort(stable=True)[: removed(sparsity, scores.numel())]] = False
    return kept


def best_of_blocks(scores: Tensor, blocks: Tensor, quota: int) -> Tensor:
    """Bool `[groups]`: the `quota` highest of every block. Of equal scores the lower index goes first."""
    order = scores.argsort(stable=True).flip(0)
    order = order[blocks[order].argsort(stable=True)]
    sizes = torch.bincount(blocks)
    first = sizes.cumsum(0) - sizes
    rank = torch.arange(scores.numel()) - first[blocks[order]]
    kept = torch.empty(scores.numel(), dtype=torch.bool)
    kept[order] = rank < quota
    return kept


__all__ = ["best_of_blocks", "largest", "removed"]
