"""Weight sharing: few distinct numbers stand for all weights of a tensor.

Han, Mao, Dally: Deep Compression, 2016 (arXiv 1510.00149).
"""

from __future__ import annotations

from math import log2

from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.pack.chosen import dtype_name, nonzero, numbers, weighed
from secateurs.pack.coded import Coded
from secateurs.pack.kmeans import cluster


def share(
    tensor: Tensor, bits: int, *, start: str = "linear", importance: Tensor | None = None, seed: int = 0
) -> Coded:
    """The non-zero weights clustered into at most `2^bits` numbers (1 to 16 bits); zeros stay zero, and are not kept.

    `start` of the k-means: `"linear"`, `"density"`, `"random"`, `"cube_root"`, `"optimal"` (see `cluster`). With
    `importance`, a tensor of the weights' shape >= 0, it minimises `sum importance * (w - w')^2`: with the Hessian's
    diagonal twice the change of the loss, to second order. Raises `InputError`.
    """
    if isinstance(bits, bool) or not 1 <= bits <= 16:
        raise InputError(explain(f"Weights cannot be shared in {bits!r} bits", next_step="give from 1 to 16"))
    values = numbers(tensor)
    kept = nonzero(values)
    matter = weighed(importance, values.shape)
    of_kept = values.reshape(-1) if kept is None else values[kept]
    if matter is not None:
        matter = matter.reshape(-1) if kept is None else matter[kept]
    shared = cluster(of_kept, 1 << bits, start=start, weights=matter, seed=seed)
    return Coded(values.shape, shared, kept, dtype_name(tensor))


def rate_of_sharing(count: int, codes: int, bits: int = 32) -> float:
    """How many times smaller: `n*b / (n*log2(k) + k*b)` for n weights of b bits that share k numbers."""
    return count * bits / (count * log2(codes) + codes * bits)


__all__ = ["rate_of_sharing", "share"]
