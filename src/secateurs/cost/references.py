"""How often a sparse accelerator touches its partial sums, as Mao et al. 2017 (1705.08922) count it.

The accelerator multiplies every non-zero weight with every non-zero activation of the same input channel (as SCNN of
Parashar et al. 2017 does) and adds each product to a partial sum in memory. Products of one group of weights with one
group of activations that fall on the same output are added first, and touch it once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs.base.errors import InputError, explain


@dataclass(frozen=True)
class References:
    """References to partial sums: one per product (`fine`), and with products of a group `merged`."""

    fine: int
    merged: int

    @property
    def ratio(self) -> float:
        """What merging leaves of the references; 1 where there are none."""
        return self.merged / self.fine if self.fine else 1.0

    def __add__(self, other: References) -> References:
        """Of two layers together."""
        return References(self.fine + other.fine, self.merged + other.merged)


def memory_references(weight: Tensor, activation: Tensor, *, axes: int = 1, groups: int = 1) -> References:
    """References of one layer: `weight` `[O, I/groups, *K]` (or its mask) on `activation` `[N, I, *X]`, zeros skipped.

    A group is what lies along the last `axes` axes of the kernel: with 1 a row, which meets a row of activations; with
    2 a plane, which meets a plane. It touches as many partial sums as there are distinct sums of a place of a non-zero
    weight and one of a non-zero activation: a full row of S on a full one of L touches `L + S - 1` instead of `L * S`.
    As in the paper, strides and the image's border are left out. A linear layer has no kernel, so nothing merges.

    Raises `InputError` for shapes that do not fit.
    """
    rank = weight.dim() - 2
    fits = rank >= 0 and activation.dim() == weight.dim() and axes in (1, 2)
    if not (fits and activation.shape[1] == weight.shape[1] * groups):
        raise InputError(
            explain(
                "The weight and what it reads do not fit",
                evidence=f"weight {tuple(weight.shape)} of {groups} group(s), activation {tuple(activation.shape)}, "
                f"axes={axes}",
                next_step="give weight [O, I/groups, *K], activation [N, I, *X] and axes=1 or 2",
            )
        )
    kept, lit = (weight != 0).cpu(), (activation != 0).cpu()
    channels = weight.shape[1] * groups
    by_input = kept.reshape(groups, -1, *kept.shape[1:]).transpose(1, 2).flatten(0, 1)  # [I, O/groups, *K]
    weights, inputs = by_input.flatten(1).sum(1), lit.transpose(0, 1).flatten(1).sum(1)
    fine = int((weights * inputs).sum())
    axes = min(axes, rank)
    if not axes:
        return References(fine, fine)
    kernels = by_input.reshape(channels, -1, *kept.shape[weight.dim() - axes :])
    images = lit.transpose(0, 1).reshape(channels, -1, *lit.shape[lit.dim() - axes :])
    return References(fine, _merged(kernels, images))


def _merged(kernels: Tensor, images: Tensor) -> int:
    """Places that a kernel `[I, kernels, *K]` reaches on an image `[I, images, *X]`, over all pairs of one channel."""
    sizes = kernels.shape[2:]
    shapes, which = torch.unique(kernels.flatten(0, 1).flatten(1), dim=0, return_inverse=True)
    which = which.reshape(kernels.shape[:2])
    flat = images.flatten(0, 1).unsqueeze(1).float()
    spread = F.conv1d if len(sizes) == 1 else F.conv2d
    total = 0
    for number, shape in enumerate(shapes):
        if not bool(shape.any()):
            continue
        # A sum of places, not a difference: the kernel is turned round, and the image has room on both sides.
        turned = shape.reshape(1, 1, *sizes).flip(list(range(2, 2 + len(sizes)))).float()
        reached = spread(flat, turned, padding=[size - 1 for size in sizes]) > 0.5
        per_channel = reached.reshape(*images.shape[:2], -1).flatten(1).sum(1)
        total += int((per_channel * (which == number).sum(1)).sum())
    return total


__all__ = ["References", "memory_references"]
