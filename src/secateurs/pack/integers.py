"""Linear integers: every weight is a small signed integer times the scale of its channel, symmetric around zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.base.registry import Registry
from secateurs.pack.chosen import Bits, chosen, dtype_name, nonzero, numbers, of_names, weighed
from secateurs.pack.coded import Bools, Coded, Codes, Floats, Scaled
from secateurs.pack.feedback import activity, checked_gram, fitted_scales, output_error, settled
from secateurs.pack.moments import moments_for
from secateurs.pack.quantised import Quantised

Doubles = NDArray[np.float64]
Rule = Callable[[Doubles, Doubles | None, int], Doubles]
"""`(rows [channels, n], importance, levels) -> scales [channels]`; the codes are then -levels..levels."""

SHRINKS = np.linspace(0.2, 1.25, 64)
"""Scales that are tried, in parts of the one that reaches the largest weight."""
ROUNDS = 20
BLOCK = 1 << 14
"""Weights whose scales are looked for at once: so few stay in the cache."""

SCALES: Registry[Rule] = Registry("choice of scale")


def quantise(
    tensor: Tensor,
    bits: int = 8,
    *,
    axis: int | None = 0,
    scale: str = "mse",
    importance: Tensor | None = None,
    gram: Tensor | None = None,
) -> Coded:
    """Integers of 2 to 8 bits, -(2^(bits-1) - 1)..2^(bits-1) - 1, times one scale per index along `axis` (None: one).

    `scale="max"` reaches the largest weight of a channel, so that no weight moves by more than half a step; `"mse"`
    gives the least `sum importance * (w - w')^2` that a search finds, never more than `"max"`. Zeros stay zero and are
    not kept. A channel of zeros has the scale 1.

    With `gram`, second moments of the layer's inputs from `input_moments`, weights are rounded with error feedback, so
    that the layer's *outputs* change least on such inputs; `axis` is then 0 or None. Raises `InputError`.
    """
    check_bits(bits)
    values = numbers(tensor)
    kept = nonzero(values)
    matter = weighed(importance, values.shape)
    moments = None if gram is None else checked_gram(gram, values.shape)
    if moments is not None and matter is None:
        matter = activity(moments, values.shape)
    scales = scales_of(values, bits, axis, scale, matter)
    codes = to_codes(values.astype(np.float64), per_entry(scales, values.shape, axis), levels(bits))
    if moments is not None:
        codes, scales = _with_feedback(values.astype(np.float64), kept, moments, codes, scales, bits, axis)
    content = Scaled((codes.reshape(-1) if kept is None else codes[kept]).astype(np.int8), scales, bits, axis)
    return Coded(values.shape, content, kept, dtype_name(tensor))


def quantise_weights(
    model: nn.Module,
    bits: Bits = 8,
    *,
    per: str = "channel",
    scale: str = "mse",
    importance: Mapping[str, Tensor] | None = None,
    moments: Mapping[str, Tensor] | None = None,
    data: Iterable[Any] | None = None,
    batches: int | None = None,
    seed: int = 0,
) -> Quantised:
    """The weight matrices and kernels as small integers: `w = s * q`, `|q| <= 2^(bits - 1) - 1`, zeros staying zero.

    `bits`: one number (2 to 8), or globs over parameter names and module paths (`{"conv*": 8, "fc": 4}`; the first
    match counts, None or no match leaves the tensor alone). `per`: one scale s for each `"channel"` (axis 0: outputs,
    except in transposed convolutions) or for the whole `"tensor"`. `scale`: `"mse"`, the least squared error, weighed
    by `importance` (by parameter name, such as from `fisher_importance`), or `"max"`, which reaches the largest weight.

    `data`, batches of inputs or `(inputs, target)`, of which the first `batches` are used, brings error feedback: what
    rounding one weight spoils in the layer's outputs on such inputs, the weights not yet rounded make good (GPTQ, arXiv
    2210.17323). `moments`, from `input_moments`, is the same, computed before. Nothing is trained, and the model is not
    changed.

    Raises `InputError`, `UnknownNameError`, and what `capture` raises.
    """
    return Quantised.of(model, coded_integers(model, bits, per, scale, importance, moments, data, batches, seed))


def coded_integers(
    model: nn.Module,
    bits: Bits,
    per: str = "channel",
    scale: str = "mse",
    importance: Mapping[str, Tensor] | None = None,
    moments: Mapping[str, Tensor] | None = None,
    data: Iterable[Any] | None = None,
    batches: int | None = None,
    seed: int = 0,
) -> dict[str, Coded]:
    """The codes that `quantise_weights` gives, without the model that computes with them."""
    if per not in ("channel", "tensor"):
        raise InputError(explain(f"There is no scale per {per!r}", next_step='write per="channel" or per="tensor"'))
    wanted = chosen(model, bits)
    matter = of_names(importance, wanted)
    grams = moments_for(model, moments, data, batches, seed)
    axis = 0 if per == "channel" else None
    return {
        name: quantise(model.get_parameter(name), number, axis=axis, scale=scale, importance=matter.get(name),
                       gram=grams.get(name))
        for name, number in wanted.items()
    }  # fmt: skip


def _with_feedback(
    values: Doubles, kept: Bools | None, gram: Doubles, codes: Codes, scales: Floats, bits: int, axis: int | None
) -> tuple[Codes, Floats]:
    """Codes settled one input after the other, and scales fitted to them; or what was given, if that is better."""
    if axis not in (0, None):
        raise InputError(explain(f"Error feedback goes by outputs, not along axis {axis}", next_step="take axis 0"))

    def nearest(column: Doubles, rows: slice) -> tuple[Codes, Doubles]:
        steps = scales.astype(np.float64)[rows if axis == 0 else slice(None)]
        found = to_codes(column, steps, levels(bits))
        return found, found * steps

    settled_codes = settled(values, kept, gram, nearest)
    settled_codes = settled_codes if kept is None else np.where(kept, settled_codes, 0)
    above, below = fitted_scales(values, settled_codes, gram)
    if axis is None:
        above, below = above.sum(keepdims=True), below.sum(keepdims=True)
    fitted = np.divide(above, below, out=scales.astype(np.float64), where=(below > 0) & (above > 0)).astype(np.float32)
    fitted = np.maximum(fitted, np.finfo(np.float32).tiny)

    def error(integers: Codes, factors: Floats) -> float:
        return output_error(integers * per_entry(factors, values.shape, axis) - values, gram)

    return min([(settled_codes, fitted), (settled_codes, scales), (codes, scales)], key=lambda pair: error(*pair))


def levels(bits: int) -> int:
    """The largest code of `bits` bits, symmetric: 127 of 8, 1 of 2."""
    return (1 << (bits - 1)) - 1


def check_bits(bits: int) -> None:
    """Raises `InputError` unless from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise InputError(explain(f"Integers cannot have {bits!r} bits", next_step="give from 2 to 8"))


def scales_of(values: Floats, bits: int, axis: int | None, rule: str, matter: Doubles | None) -> Floats:
    """The scale of every channel `[channels]` (`[1]` for axis None), by the rule of that name."""
    if axis is not None and not 0 <= axis < values.ndim:
        raise InputError(explain(f"There is no axis {axis} to scale along", evidence=f"shape {values.shape}"))
    choose = SCALES[rule]
    rows = _rows(values.astype(np.float64), axis)
    found = choose(rows, None if matter is None else _rows(matter, axis), levels(bits))
    tiny = np.finfo(np.float32).tiny
    return np.where(np.abs(rows).max(1, initial=0) > 0, np.maximum(found, tiny), 1.0).astype(np.float32)


def per_entry(scales: Floats, shape: tuple[int, ...], axis: int | None) -> Doubles:
    """The scales so that they broadcast against a tensor of this shape."""
    found: Doubles = scales.astype(np.float64)
    return found.reshape([-1 if dim == axis else 1 for dim in range(len(shape))]) if axis is not None else found


def to_codes(values: Doubles, steps: Doubles, most: int) -> Codes:
    """The nearest code, half to even, at most `most`."""
    found: Codes = np.clip(np.rint(values / steps), -most, most).astype(np.int64)
    return found


def _rows(values: Doubles, axis: int | None) -> Doubles:
    rows: Doubles = (
        values.reshape(1, -1)
        if axis is None
        else np.moveaxis(values, axis, 0).reshape(
            values.shape[axis], prod(values.shape[:axis] + values.shape[axis + 1 :])
        )
    )
    return rows


@SCALES.register("max")
def reach_the_largest(rows: Doubles, matter: Doubles | None, most: int) -> Doubles:
    """The largest weight gets the largest code."""
    found: Doubles = np.abs(rows).max(axis=1, initial=0.0) / most
    return found


@SCALES.register("mse")
def least_squares(rows: Doubles, matter: Doubles | None, most: int) -> Doubles:
    """The best of many scales, each fitted to the codes of one between 0.2 and 1.25 of the widest; then codes and scale
    in turn, until they fit each other.
    """
    each = max(1, BLOCK // max(1, rows.shape[1]))
    parts = [
        _searched(rows[start : start + each], None if matter is None else matter[start : start + each], most)
        for start in range(0, len(rows), each)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _searched(rows: Doubles, matter: Doubles | None, most: int) -> Doubles:
    weighted = rows if matter is None else rows * matter
    widest = np.maximum(reach_the_largest(rows, None, most), np.finfo(np.float32).tiny)
    fitted, most_gain = widest.copy(), np.full(len(rows), -1.0)
    for shrink in SHRINKS:
        steps, gain = _fitted(widest * shrink, rows, weighted, matter, most)
        better = gain > most_gain
        fitted[better], most_gain[better] = steps[better], gain[better]
    best, least = widest.copy(), np.full(len(rows), np.inf)
    _keep_better(best, least, widest, rows, matter, most)
    _keep_better(best, least, fitted, rows, matter, most)
    for _ in range(ROUNDS):
        if not _keep_better(best, least, _fitted(best, rows, weighted, matter, most)[0], rows, matter, most):
            break
    return best


def _fitted(
    scales: Doubles, rows: Doubles, weighted: Doubles, matter: Doubles | None, most: int
) -> tuple[Doubles, Doubles]:
    """The scales of the least error for the codes that these scales give, and by how much they lower it below that of
    zeros: with `a = sum importance * q * w` and `b = sum importance * q^2`, a / b and a^2 / b.
    """
    codes = _nearest(rows, scales, most)
    above = np.einsum("ij,ij->i", codes, weighted)
    below = np.einsum("ij,ij->i", codes, codes) if matter is None else np.einsum("ij,ij,ij->i", matter, codes, codes)
    found: Doubles = np.divide(above, below, out=scales.copy(), where=below > 0)
    return found, np.where(below > 0, above * found, 0.0)


def _nearest(rows: Doubles, scales: Doubles, most: int) -> Doubles:
    """`to_codes`, one scale a row, as floating-point numbers."""
    found: Doubles = rows / scales[:, None]
    np.rint(found, out=found)
    return np.clip(found, -most, most, out=found)


def _keep_better(
    best: Doubles, least: Doubles, tried: Doubles, rows: Doubles, matter: Doubles | None, most: int
) -> bool:
    """Put the scales tried, in place, where their error is less; was it so anywhere?"""
    steps = np.maximum(tried.astype(np.float32).astype(np.float64), np.finfo(np.float32).tiny)  # as they will be stored
    wrong = _nearest(rows, steps, most)
    wrong *= steps[:, None]
    wrong -= rows
    error = np.einsum("ij,ij->i", wrong, wrong) if matter is None else np.einsum("ij,ij,ij->i", matter, wrong, wrong)
    better = error < least
    best[better], least[better] = steps[better], error[better]
    return bool(better.any())


__all__ = ["SCALES", "coded_integers", "quantise", "quantise_weights"]
