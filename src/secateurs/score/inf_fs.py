"""Infinite feature selection: how much each response adds to all paths through all the others."""

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

SHARE, RADIUS = 0.5, 0.9


def inf_fs(responses: Tensor) -> Tensor:
    """Energies `[features]` of responses `[samples, features]`, float64; more = keep.

    Features are joined by `A_ij = a max(std_i, std_j) + (1 - a) (1 - |spearman_ij|)`, a = 0.5; the energy is the row
    sum of `(I - r A)^-1 - I`, the sum over paths of every length, with r = 0.9 over the spectral radius. A feature that
    never changes is uncorrelated with all others. Cubic in the number of features.

    Roffo et al., Infinite Feature Selection, 2015.
    """
    seen = responses.detach().to("cpu", torch.float64)
    spread = seen.std(0, unbiased=False)
    joined = SHARE * torch.maximum(spread, spread.unsqueeze(1)) + (1 - SHARE) * (1 - _spearman(seen).abs())
    radius = float(torch.linalg.eigvalsh(joined).abs().max())
    if radius == 0:
        return torch.ones_like(spread)
    one = torch.ones_like(spread)
    energy: Tensor = torch.linalg.solve(torch.diag(one) - RADIUS / radius * joined, one) - 1
    return energy


def _spearman(seen: Tensor) -> Tensor:
    """Rank correlations `[features, features]`; equal values share their mean rank."""
    ranks = torch.from_numpy(np.asarray(rankdata(seen.numpy(), axis=0), dtype=np.float64))
    ranks = ranks - ranks.mean(0)
    ranks = ranks / ranks.norm(dim=0).clamp_min(1e-300)
    correlations: Tensor = ranks.T @ ranks
    return correlations.clamp(-1, 1).fill_diagonal_(1)
