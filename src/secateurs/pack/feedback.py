"""Error feedback: what rounding one weight spoils, the weights that are not rounded yet make good.

Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, 2022 (arXiv 2210.17323), after LeCun, Denker, Solla: Optimal Brain Damage,
and Hassibi, Stork: Optimal Brain Surgeon, 1993. No training: only the second moments of what the layer reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.pack.coded import Bools, Codes

Doubles = NDArray[np.float64]
Round = Callable[[Doubles, slice], tuple[Codes, Doubles]]
"""`(numbers [rows], which rows) -> (codes, the numbers that they stand for)`."""

RIDGE = 0.01
"""Added to the diagonal of the moments, in parts of its mean: few samples do not decide everything."""


WORK = 3e11
"""Multiplications for which every output of a sparse layer gets an inverse of its own."""


def settled(weights: Doubles, kept: Bools | None, gram: Doubles, nearest: Round, ridge: float = RIDGE) -> Codes:
    """Codes for `weights` `[outputs, ...]`, rounded one input after the other, most active first.

    `gram` `[groups, n, n]` holds the second moments of the n inputs of an output; outputs are split evenly among the
    groups. After each input the later weights of the output move to where `(w - w')^T gram (w - w')` is least. Entries
    that are not kept stay zero; their codes mean nothing. Where there are too many outputs and inputs to invert the
    moments of each output's own inputs, entries that are not kept take part and are rounded to zero instead.
    """
    flat = weights.reshape(len(weights), -1)
    alive = np.ones(flat.shape, np.bool_) if kept is None else kept.reshape(flat.shape)
    codes = np.zeros(flat.shape, np.int64)
    for rows, moments in _by_group(len(flat), gram):
        held, mine = damped(moments, ridge), alive[rows]
        if mine.all() or float((mine.sum(1, dtype=np.float64) ** 3).sum()) > WORK:
            codes[rows] = _settle(flat[rows], mine, held, nearest, rows)
            continue
        for row in range(rows.start, rows.stop):
            own, one = np.flatnonzero(alive[row]), slice(row, row + 1)
            codes[one, own] = _settle(flat[one, own], alive[one, own], held[np.ix_(own, own)], nearest, one)
    return codes.reshape(weights.shape)


def _settle(weights: Doubles, alive: Bools, moments: Doubles, nearest: Round, rows: slice) -> Codes:
    order = np.argsort(-np.diagonal(moments), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(moments[np.ix_(order, order)])).T  # upper: inverse = factor^T factor
    left, live = weights[:, order].copy(), alive[:, order]
    codes = np.zeros(weights.shape, np.int64)
    for column, index in enumerate(order):
        found, values = nearest(left[:, column], rows)
        codes[:, index] = found
        wrong = left[:, column] - np.where(live[:, column], values, 0.0)
        left[:, column:] -= np.outer(wrong / factor[column, column], factor[column, column:])
    return codes


def fitted_scales(weights: Doubles, codes: Codes, gram: Doubles, ridge: float = RIDGE) -> tuple[Doubles, Doubles]:
    """Numerator and denominator `[outputs]` of the factor s of an output's codes (0 where not kept) of the least
    `(w - s*codes)^T gram (w - s*codes)`. Sums of both give the factor that several outputs have in common.
    """
    flat, integers = weights.reshape(len(weights), -1), codes.reshape(len(weights), -1).astype(np.float64)
    above, below = np.zeros(len(flat)), np.zeros(len(flat))
    for rows, moments in _by_group(len(flat), gram):
        carried = integers[rows] @ damped(moments, ridge)
        above[rows], below[rows] = (carried * flat[rows]).sum(1), (carried * integers[rows]).sum(1)
    return above, below


def fitted_codebook(
    weights: Doubles, kept: Bools | None, codes: Codes, before: Doubles, gram: Doubles, ridge: float = RIDGE
) -> Doubles:
    """The codebook `[k]` of the least `(w - c[codes])^T gram (w - c[codes])`; unused numbers as in `before`."""
    flat, labels = weights.reshape(len(weights), -1), codes.reshape(len(weights), -1)
    labels = labels if kept is None else np.where(kept.reshape(labels.shape), labels, -1)
    size = len(before)
    matrix, right = np.zeros((size, size)), np.zeros(size)
    for rows, moments in _by_group(len(flat), gram):
        held = damped(moments, ridge)
        mine = labels[rows] + 1
        right += np.bincount(mine.ravel(), (flat[rows] @ held).ravel(), size + 1)[1:]
        for code in range(size):
            carried = (labels[rows] == code).astype(np.float64) @ held
            matrix[code] += np.bincount(mine.ravel(), carried.ravel(), size + 1)[1:]
    used = np.diagonal(matrix) > 0
    found = before.astype(np.float64)
    found[used] = np.linalg.lstsq(matrix[np.ix_(used, used)], right[used], rcond=None)[0]
    return found


def output_error(change: Doubles, gram: Doubles, ridge: float = RIDGE) -> float:
    """`sum change^T gram change` over all outputs: how far they move, squared, on average (with the ridge)."""
    flat = change.reshape(len(change), -1)
    return sum(
        float((flat[rows] @ damped(moments, ridge) * flat[rows]).sum()) for rows, moments in _by_group(len(flat), gram)
    )


def activity(gram: Doubles, shape: tuple[int, ...]) -> Doubles:
    """The mean square of what each weight multiplies, in the shape of the weights."""
    each = np.repeat(np.diagonal(gram, axis1=1, axis2=2), shape[0] // len(gram), axis=0)
    return each.reshape(shape)


def damped(moments: Doubles, ridge: float) -> Doubles:
    """With the ridge, so that there is an inverse; inputs that were never active count as the ridge alone."""
    mean = float(np.diagonal(moments).mean())
    return moments + np.eye(len(moments)) * (ridge * mean if mean > 0 else 1.0)


def checked_gram(gram: Tensor | NDArray[Any], shape: tuple[int, ...]) -> Doubles:
    """`[groups, n, n]` in float64. Raises `InputError` unless it fits a weight `[outputs, ...]` of this shape."""
    found = np.asarray(gram.detach().cpu() if isinstance(gram, Tensor) else gram, dtype=np.float64)
    inputs = int(np.prod(shape[1:]))
    fits = found.ndim == 3 and found.shape[1:] == (inputs, inputs) and len(found) > 0 and shape[0] % len(found) == 0
    if not fits or not np.isfinite(found).all():
        raise InputError(
            explain(
                "The moments do not fit the weights",
                evidence=f"{found.shape} for weights {shape}" + ("" if not fits else ", not all finite"),
                next_step=f"give second moments of the inputs, [groups, {inputs}, {inputs}]; see `input_moments`",
            )
        )
    return found


def _by_group(outputs: int, gram: Doubles) -> list[tuple[slice, Doubles]]:
    each = outputs // len(gram)
    return [(slice(index * each, (index + 1) * each), moments) for index, moments in enumerate(gram)]


__all__ = ["activity", "checked_gram", "damped", "fitted_codebook", "fitted_scales", "output_error", "settled"]
