"""Equalisation: one score per unit from the scores of the layers that are coupled. Normalisation: layers on one scale.

Both work on rows `[members, units]`: one row per layer (or per place where activations are read), higher = keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import UnknownNameError, explain, nearest

Equalize = Callable[[Tensor], Tensor]
Normalize = Callable[[Tensor], Tensor]


def _arithmetic(rows: Tensor) -> Tensor:
    """Never outside what it is the mean of: rounding must not take a unit below a threshold that every layer meets."""
    return rows.mean(0).clamp(rows.amin(0), rows.amax(0))


def _geometric(rows: Tensor) -> Tensor:
    rows = rows.clamp_min(0)
    return rows.log().mean(0).exp().clamp(rows.amin(0), _arithmetic(rows))


EQUALIZATIONS: dict[str, Equalize] = {
    "arithmetic_mean": _arithmetic,
    "geometric_mean": _geometric,
    "keep_any": lambda rows: rows.amax(0),
    "keep_all": lambda rows: rows.amin(0),
    "sum": lambda rows: rows.sum(0),
    "max": lambda rows: rows.amax(0),
    "min": lambda rows: rows.amin(0),
    "mean": _arithmetic,
    "union": lambda rows: rows.amax(0),
    "intersection": lambda rows: rows.amin(0),
}
"""How the rows of coupled layers become one. `keep_any` (alias `union`, of the sets of *kept* channels): a unit is
worth what the layer that values it most thinks, so at any threshold it is kept if at least one layer keeps it.
`keep_all` (alias `intersection`, of the *kept* sets): it is kept only if every layer keeps it. `geometric_mean` is 0
where any layer gives 0 (or less). Of scores that are not negative, at any threshold `keep_all` keeps no unit that
`geometric_mean` does not, that none that `arithmetic_mean` does not, and that none that `keep_any` does not. `mean`,
`max` and `min` are short for the first, third and fourth."""

NORMALIZERS: dict[str, Normalize] = {
    "none": lambda rows: rows,
    "max": lambda rows: rows / rows.abs().amax(1, keepdim=True),
    "mean": lambda rows: rows / rows.abs().mean(1, keepdim=True),
    "l2": lambda rows: rows / rows.norm(dim=1, keepdim=True),
    "l2_scaled": lambda rows: rows / rows.norm(dim=1, keepdim=True) * rows.shape[1],
    "sum": lambda rows: rows / rows.abs().sum(1, keepdim=True),
}
"""What each layer's row is divided by: its largest magnitude, its mean magnitude, its L2 norm (`l2_scaled`: over the
number of units), the sum of its magnitudes. A row of zeros stays zero."""


def normalized(rows: Tensor, name: str) -> Tensor:
    """Rows `[members, units]` on one scale. Raises `UnknownNameError`."""
    scaled = named("normalizer", name, NORMALIZERS)(rows)
    return torch.where(torch.isfinite(scaled), scaled, torch.zeros_like(scaled))


def equalized(rows: Tensor, name: str) -> Tensor:
    """One score per unit, `[units]`, from rows `[members, units]`. Raises `UnknownNameError`."""
    result: Tensor = named("equalization", name, EQUALIZATIONS)(rows)
    return result


def named(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """`known[name]`. Raises `UnknownNameError` with the names that are close."""
    if name in known:
        return known[name]
    close = nearest(name, known)
    raise UnknownNameError(
        explain(
            f"There is no {kind} named {name!r}",
            evidence=f"known: {', '.join(sorted(known))}",
            next_step=f"did you mean {close[0]!r}?" if close else "",
        )
    )
