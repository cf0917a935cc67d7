"""LASSO channel selection: channels in the order in which a growing penalty drives their factors to zero."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateurs.couple.group import ChannelGroup
from secateurs.score.contributions import Sampled, order_scores, summed
from secateurs.score.criterion import Context, criterion

Floats = NDArray[np.float64]
STEPS = 60
"""Penalties that are tried, evenly spaced in their logarithm, down to a thousandth of the largest."""
LOWEST = 1e-3
CLOSE = 1e-8
"""Factors are solved until none of them moves by more than this, relative to the largest ..."""
SWEEPS = 1000
"""... or for this many sweeps."""
SAME = 1e-10
"""How little two directions differ, by the square of their cosine, to be one."""


@criterion("lasso", needs="data", normalizer="none")
def lasso(group: ChannelGroup, context: Context, *, positions: int = 10) -> Tensor:
    """The order in which units leave `min 1/(2N) ||Y - sum_c beta_c Z_c||^2 + lambda ||beta||_1` as lambda is raised.

    `Z_c [N, outputs]` is what unit c adds to the next layer's outputs, with its weights `W_c` scaled to norm one, at
    `positions` random places for each sample; Y is the sum over the units as they are. `beta` comes from coordinate
    descent. The n-th of C units to leave scores `n / C`, a unit that adds nothing 0; of two that add the same, one
    leaves at once. Rows: one per layer that reads the group (an operator other than a convolution or a linear layer
    counts as a plain sum over the units). A group that nothing reads scores 0. Higher = keep.

    Needs inputs, no labels; costs one forward pass, a gather of `positions` patches for each sample and layer, and the
    products of all patches of a layer with one another (`(channels * kernel)^2` multiplications for each patch).
    Independent of how the data is split into batches. A bad choice for a ranking over the whole network: orders say
    nothing about how groups compare.

    He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017.
    """
    found = context.once(f"lasso/{positions}", lambda: summed(context, positions, _products))[group.name]
    rows = [order_scores(leaving_order(each[:-1], each[-1]), each.diagonal()) for each in found]
    return torch.stack(rows) if rows else torch.zeros(group.size)


def _products(sampled: Sampled) -> Tensor:
    """`[size + 1, size]`: products of contributions, and below the number of patches times the weights' sizes."""
    return torch.cat([sampled.products(), len(sampled.patches) * sampled.sizes().unsqueeze(0)])


def leaving_order(products: Tensor, sizes: Tensor) -> Tensor:
    """Units in the order in which they leave, `[size]`, from products of contributions `[size, size]`.

    `sizes` `[size]` is the squared norm of each unit's weights, in any unit.
    """
    whole = products.numpy().astype(np.float64)
    norms = np.sqrt(sizes.numpy().astype(np.float64))
    norms = np.where(norms > 0, norms / max(norms.max(), 1e-300), 1)
    penalties, betas, slopes = path(whole / np.outer(norms, norms), whole.sum(1) / norms)
    active = betas != 0
    leaves = np.where(active.any(0), active.argmax(0), len(penalties))  # the largest penalty it survives; larger first
    last = np.abs(betas)[np.minimum(leaves, len(penalties) - 1), np.arange(len(norms))]
    return torch.from_numpy(np.lexsort((np.abs(slopes), last, -leaves)))


def path(products: Floats, wanted: Floats) -> tuple[Floats, Floats, Floats]:
    """Penalties from large to small, the factors `[penalties, size]` of each, and the last one's remaining slopes.

    Minimises `beta' products beta / 2 - wanted' beta + penalty * |beta|_1`, each time from the solution before.
    """
    top = max(float(np.abs(wanted).max()), 1e-300)
    penalties = top * np.logspace(0, np.log10(LOWEST), STEPS)
    beta, slope = np.zeros(len(wanted)), wanted.copy()
    betas, usable = [], _usable(products)
    for penalty in penalties:
        _descend(products, beta, slope, penalty, usable)
        betas.append(beta.copy())
    return penalties, np.array(betas), slope


def _usable(products: Floats) -> NDArray[np.bool_]:
    """Units that add anything, and of those that add the same up to a factor the one that adds most."""
    energy = products.diagonal()
    order = np.argsort(-energy, kind="stable")
    alike = np.triu((products**2 >= (1 - SAME) * np.outer(energy, energy))[np.ix_(order, order)], 1)
    usable = np.zeros(len(energy), dtype=np.bool_)
    usable[order] = (energy[order] > SAME * energy.max(initial=0)) & ~alike.any(0)
    return usable


def _descend(products: Floats, beta: Floats, slope: Floats, penalty: float, usable: NDArray[np.bool_]) -> None:
    """Coordinate descent to the minimum; `slope = wanted - products @ beta` is kept up. Both change in place.

    It goes over the factors that are not zero until they rest, then lets in those that the penalty no longer holds.
    """
    for _ in range(SWEEPS):
        inside = np.flatnonzero(usable & ((beta != 0) | (np.abs(slope) > penalty * (1 + 1e-9))))
        sweeps = 1
        while _sweep(products, beta, slope, penalty, inside) and sweeps < SWEEPS:
            sweeps += 1
        if sweeps == 1:
            return


def _sweep(products: Floats, beta: Floats, slope: Floats, penalty: float, units: NDArray[np.int64]) -> bool:
    """The best value of each factor in turn, the others held; True if one has moved more than a little."""
    moved = 0.0
    for unit in units:
        bend = products[unit, unit]
        target = slope[unit] + bend * beta[unit]
        new = np.sign(target) * max(abs(target) - penalty, 0.0) / bend
        change = new - beta[unit]
        if change:
            beta[unit] = new
            slope -= change * products[unit]
            moved = max(moved, abs(change))
    return moved > CLOSE * float(np.abs(beta).max(initial=0))
