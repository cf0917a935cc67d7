"""Histograms of the scores of every group: how alike its units are, and on what scale against other groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateurs.report.figures.theme import BLUE, finish, panels, plotly

BINS = 48
DECADES = 4
"""A logarithmic axis reaches this many powers of ten below the largest score; what is smaller is in its first bin."""


@dataclass(frozen=True)
class Histograms:
    """`counts[g, b]`: units of group `names[g]` with a score between `edges[b]` and `edges[b + 1]`.

    The bins are those of all groups together; every unit is in one.
    """

    names: tuple[str, ...]
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


def histograms(scores: Mapping[str, Tensor], bins: int = BINS, *, log: bool = False) -> Histograms:
    """Scores `{group: [units]}` in bins of equal width, or, with `log`, of equal ratio.

    A logarithmic axis holds what is 0 or below in its first bin.
    """
    rows = [row.detach().cpu().double().numpy() for row in scores.values()]
    every = np.concatenate(rows) if rows else np.zeros(1)
    low, high = float(every.min()), float(every.max())
    if log:
        high = high if high > 0 else 1.0
        positive = every[every > 0]
        low = max(float(positive.min()) if positive.size else high, high * 10.0**-DECADES)
        edges = np.geomspace(low if low < high else high / 10, high, bins + 1)
    else:
        low = min(0.0, low)
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts = [np.histogram(np.clip(row, edges[0], edges[-1]), edges)[0] for row in rows]
    return Histograms(tuple(scores), edges, np.array(counts, dtype=np.int64).reshape(len(rows), bins))


def draw_histograms(raw: Mapping[str, Tensor], scaled: Mapping[str, Tensor], criterion: str) -> Any:
    """One line per group: on the left its scores as they are (logarithmic), on the right as groups are compared.

    Where both are the same, because the criterion compares scores as they are, the right differs in its axis only.

    `raw` and `scaled` are `{group: [units]}` of the same groups. A Plotly figure. Raises `InputError` when Plotly
    is not installed.
    """
    same = all(torch.equal(row, scaled[name]) for name, row in raw.items())
    right = f"{criterion} as it is, linear axis" if same else f"{criterion} on the scale of its layer"
    titles = [f"{criterion} as it is", right]
    figure = panels(1, 2, titles, shared_yaxes=True, horizontal_spacing=0.04)
    for column, (scores, log) in enumerate(((raw, True), (scaled, False)), 1):
        found = histograms(scores, log=log)
        for place, name in enumerate(found.names):
            _ridge(figure, found, place, f"{name} ({int(found.counts[place].sum())})", column)
    count = len(raw)
    figure.update_xaxes(type="log", dtick=1, title_text="score (higher = keep)", row=1, col=1)
    figure.update_xaxes(title_text="score (higher = keep)" if same else "score, normalised", row=1, col=2)
    labels = [f"{name}" for name in raw]
    figure.update_yaxes(
        tickvals=list(range(0, -count, -1)), ticktext=labels, range=[-count + 0.8, 1.1], zeroline=False, ticks=""
    )
    figure = finish(figure, 150 + 40 * count)
    figure.update_layout(margin={"l": 30 + 8 * max((len(label) for label in labels), default=1)})
    return figure


def _ridge(figure: Any, found: Histograms, place: int, label: str, column: int) -> None:
    """The group's counts as steps on a line of its own, the highest 0.9 lines high."""
    counts = found.counts[place]
    heights = 0.9 * counts / max(1, counts.max()) - place
    figure.add_trace(
        plotly().Scatter(
            x=np.repeat(found.edges, 2),
            y=np.concatenate([[-place], np.repeat(heights, 2), [-place]]),
            mode="lines",
            line={"color": BLUE, "width": 1, "simplify": False},
            fill="toself",
            fillcolor="rgba(0, 114, 178, 0.45)",
            text=label,
            hoverinfo="text",
        ),
        row=1,
        col=column,
    )


__all__ = ["Histograms", "draw_histograms", "histograms"]
