"""Weight sharing: few distinct numbers stand for all weights of a tensor.

Han, Mao, Dally: Deep Compression, 2016 (arXiv 1510.00149).
"""

from __future__ import annotations

from math import log2

import numpy as np
import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.pack.bits import smallest
from secateurs.pack.chosen import dtype_name, nonzero, numbers, weighed
from secateurs.pack.coded import Bools, Coded, Codes, Floats, Shared
from secateurs.pack.dtypes import TABLES
from secateurs.pack.feedback import Doubles, activity, checked_gram, fitted_codebook, output_error, settled
from secateurs.pack.kmeans import cluster, nearest

ROUNDS = 4
"""Times that codes and codebook are fitted to each other with error feedback, at most."""


def share(
    tensor: Tensor,
    bits: int,
    *,
    start: str = "linear",
    importance: Tensor | None = None,
    gram: Tensor | None = None,
    codebook: str = "float32",
    seed: int = 0,
) -> Coded:
    """The non-zero weights clustered into at most `2^bits` numbers (1 to 16 bits); zeros stay zero, and are not kept.

    `start` of the k-means: `"linear"`, `"density"`, `"random"`, `"cube_root"`, `"optimal"` (see `cluster`). With
    `importance`, a tensor of the weights' shape >= 0, it minimises `sum importance * (w - w')^2`: with the Hessian's
    diagonal twice the change of the loss, to second order.

    With `gram`, second moments of the layer's inputs from `input_moments`, codes are then chosen anew with error
    feedback, and the codebook fitted to them, so that the layer's *outputs* change least on such inputs.
    `codebook="float16"` or `"bfloat16"` rounds the shared numbers, which then take half the bytes. Raises `InputError`.
    """
    if isinstance(bits, bool) or not 1 <= bits <= 16:
        raise InputError(explain(f"Weights cannot be shared in {bits!r} bits", next_step="give from 1 to 16"))
    values = numbers(tensor)
    kept = nonzero(values)
    matter = weighed(importance, values.shape)
    moments = None if gram is None else checked_gram(gram, values.shape)
    if moments is not None and matter is None:
        matter = activity(moments, values.shape)
    of_kept = values.reshape(-1) if kept is None else values[kept]
    if matter is not None:
        matter = matter.reshape(-1) if kept is None else matter[kept]
    shared = cluster(of_kept, 1 << bits, start=start, weights=matter, seed=seed)
    if moments is not None and len(shared.codebook):
        shared = _with_feedback(values, kept, moments, shared)
    content = Shared(shared.codes.astype(smallest(bits)), rounded(shared.codebook, codebook))
    return Coded(values.shape, content, kept, dtype_name(tensor))


def rounded(codebook: Floats, kind: str) -> Floats:
    """The numbers, float32, rounded to `kind`: one of `TABLES`. Raises `InputError` where it has no room for them."""
    if kind not in TABLES:
        raise InputError(explain(f"A codebook cannot be {kind!r}", next_step=f"take one of {', '.join(TABLES)}"))
    found = torch.from_numpy(codebook.copy()).to(getattr(torch, kind)).float()
    if not found.isfinite().all() or (codebook.any() and not found.any()):
        raise InputError(
            explain(
                f"{kind} has no room for these weights",
                evidence=f"the largest is {float(np.abs(codebook).max()):g}",
                next_step="take bfloat16 or float32",
            )
        )
    return found.numpy()


def _with_feedback(values: Floats, kept: Bools | None, gram: Doubles, shared: Shared) -> Shared:
    """Codes settled one input after the other, the codebook fitted to them, as long as that makes it better."""
    weights = values.astype(np.float64)

    def spread(content: Shared) -> Floats:
        return Coded(values.shape, content, kept).decode().astype(np.float32)

    best, least = shared, output_error(spread(shared) - weights, gram)
    for _ in range(ROUNDS):
        book = best.codebook.astype(np.float64)

        def closest(column: Doubles, rows: slice, book: Doubles = book) -> tuple[Codes, Doubles]:
            found = nearest(column, book)
            return found, book[found]

        codes = settled(weights, kept, gram, closest)
        fitted = fitted_codebook(weights, kept, codes, book, gram)
        order = np.argsort(fitted, kind="stable")
        ranks = np.argsort(order)[codes]
        found = Shared(ranks.reshape(-1) if kept is None else ranks[kept], fitted[order].astype(np.float32))
        error = output_error(spread(found) - weights, gram)
        if error >= least:
            break
        best, least = found, error
    return best


def rate_of_sharing(count: int, codes: int, bits: int = 32) -> float:
    """How many times smaller: `n*b / (n*log2(k) + k*b)` for n weights of b bits that share k numbers."""
    return count * bits / (count * log2(codes) + codes * bits)


__all__ = ["rate_of_sharing", "rounded", "share"]
