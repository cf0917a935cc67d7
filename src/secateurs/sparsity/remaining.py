"""Pruning a share of what is left, and random masks of the same size: the steps of a lottery."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateurs.sparsity.select import removed
from secateurs.sparsity.spec import Masks


def prune_remaining(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], rates: Mapping[str, float], *, together: bool = False
) -> Masks:
    """Of every mask's n kept weights the `floor(rate * n + 0.5)` smallest go; of equals the one of lower index.

    `together` ranks the weights of all layers in one row; all rates are then the same.
    """
    if together:
        names = list(masks)
        row = {"": torch.cat([weights[name].detach().flatten().cpu() for name in names])}
        kept = {"": torch.cat([masks[name].flatten().cpu() for name in names])}
        (rate,) = {rates[name] for name in names}
        parts = torch.split(prune_remaining(row, kept, {"": rate})[""], [masks[name].numel() for name in names])
        return {
            name: part.reshape(masks[name].shape).to(masks[name].device)
            for name, part in zip(names, parts, strict=True)
        }
    found: Masks = {}
    for name, mask in masks.items():
        left = mask.flatten().cpu().clone()
        size = weights[name].detach().abs().flatten().to("cpu", torch.float64)
        order = torch.where(left, size, torch.inf).argsort(stable=True)
        left[order[: removed(rates[name], int(left.sum()))]] = False
        found[name] = left.reshape(mask.shape).to(mask.device)
    return found


def shuffled(masks: Mapping[str, Tensor], seed: int) -> Masks:
    """Masks that keep as many weights of every layer, at random places."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator).to(mask.device)].reshape(mask.shape)
        for name, mask in masks.items()
    }


__all__ = ["prune_remaining", "shuffled"]
