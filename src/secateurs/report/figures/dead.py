"""Dead filters: those with next to no weight that let next to nothing through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.report.figures.theme import BLUE, INK, RED, finish, panels, plotly

SHARE = 0.1
"""Below this share of the layer's largest, a norm or a mean activation counts as nothing."""


@dataclass(frozen=True)
class DeadFilters:
    """Euclidean `norms` of the filters and `activations` (mean |activation|, None without data), each `[n]`.

    `flagged`: norm below `share` of the largest and, with data, mean |activation| below `share` of the largest.
    """

    norms: NDArray[np.float64]
    activations: NDArray[np.float64] | None
    share: float
    flagged: NDArray[np.bool_]

    @property
    def numbers(self) -> list[int]:
        """The flagged filters."""
        return [int(number) for number in np.flatnonzero(self.flagged)]


def dead_filters(weight: Tensor, activations: Tensor | None = None, share: float = SHARE) -> DeadFilters:
    """Which filters of a weight `[n, ...]` are dead; `activations` `[n]` are means of |activation| over data.

    Without data a filter is judged by its norm alone. In a layer of zeros every filter is dead. Raises `InputError`
    when the two differ in length.
    """
    norms = weight.detach().cpu().double().flatten(1).norm(dim=1).numpy()
    flagged = _small(norms, share)
    if activations is None:
        return DeadFilters(norms, None, share, flagged)
    means = activations.detach().cpu().double().numpy()
    if means.shape != norms.shape:
        raise InputError(
            explain("Norms and activations are of different layers", evidence=f"{norms.shape} and {means.shape}")
        )
    return DeadFilters(norms, means, share, flagged & _small(means, share))


def _small(values: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    top = values.max(initial=0.0)
    result: NDArray[np.bool_] = (values < share * top) | (values == 0)
    return result


def draw_dead(dead: DeadFilters) -> Any:
    """Bars of the norms, and of the mean activations if known, over the filters' numbers; dead ones red, with a cross.

    A Plotly figure. Raises `InputError` when Plotly is not installed.
    """
    rows = [("norm of the filter", dead.norms)]
    if dead.activations is not None:
        rows.append(("mean |activation| over the data", dead.activations))
    figure = panels(len(rows), 1, [title for title, _ in rows], shared_xaxes=True, vertical_spacing=0.14)
    colours = [RED if flag else BLUE for flag in dead.flagged]
    for row, (_, values) in enumerate(rows, 1):
        hover = "filter %{x}: %{y:.3g}<extra></extra>"
        bars = plotly().Bar(y=values, marker={"color": colours, "line": {"width": 0}}, hovertemplate=hover)
        figure.add_trace(bars, row=row, col=1)
        cross = {"symbol": "x", "size": 9, "color": RED}
        marks = plotly().Scatter(
            x=dead.numbers, y=[0.05 * values.max(initial=0.0)] * len(dead.numbers), mode="markers", marker=cross
        )
        figure.add_trace(marks.update(hoverinfo="skip", cliponaxis=False), row=row, col=1)
        figure.add_hline(
            y=dead.share * values.max(initial=0.0),
            line={"color": INK, "width": 1.5, "dash": "dash"},
            row=row,
            col=1,
        )
        figure.update_yaxes(rangemode="tozero", nticks=5, row=row, col=1)
    figure.update_xaxes(title_text="filter", showgrid=False, row=len(rows), col=1)
    return finish(figure, 120 + 220 * len(rows))


__all__ = ["DeadFilters", "dead_filters", "draw_dead"]
