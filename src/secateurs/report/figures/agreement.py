"""Two criteria for the same layer, such as L1 and APoZ: do they want the same channels gone?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.report.figures.theme import BLUE, GREY, ORANGE, finish, panels, plotly


@dataclass(frozen=True)
class Agreement:
    """Two rows of scores `[n]` of the same channels.

    `order`: channels by the first, highest first, ties as they lie. `correlation`: Spearman's, nan where one of them is
    constant. `common[k]`: share of the k lowest channels (k = 0..n, ties removing the lower number first) that both
    criteria have among theirs; 1 for k = 0. By chance it would be k / n.
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    order: NDArray[np.int64]
    correlation: float
    common: NDArray[np.float64]


def agreement(first: Tensor, second: Tensor) -> Agreement:
    """Compares two criteria on one layer, scores `[n]` each. Raises `InputError` when they differ in length."""
    a, b = (row.detach().cpu().double().numpy() for row in (first, second))
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise InputError(explain("These are not scores of the same channels", evidence=f"{a.shape} and {b.shape}"))
    lowest = [np.argsort(row, kind="stable") for row in (a, b)]
    place = [np.argsort(order, kind="stable") for order in lowest]
    both = np.bincount(np.maximum(*place), minlength=a.size).cumsum()
    common = np.concatenate([[1.0], both / np.arange(1, a.size + 1)])
    ranks = [rankdata(row) for row in (a, b)]
    flat = any(np.ptp(row) == 0 for row in ranks)
    correlation = float("nan") if flat else float(np.corrcoef(*ranks)[0, 1])
    return Agreement(a, b, np.argsort(-a, kind="stable"), correlation, common)


def trimmed(apoz: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Network trimming's rule for one layer: APoZ `[n]` above its mean by more than one (population) deviation.

    Hu et al., Network Trimming, 2016.
    """
    result: NDArray[np.bool_] = apoz > apoz.mean() + apoz.std()
    return result


def draw_l1_apoz(l1: Tensor, apoz: Tensor) -> Any:
    """L1 norms and APoZ (share of zeros, high = remove) of one layer's channels, `[n]` each: a Plotly figure.

    Left: both over the channels in the order of L1, with the level above which network trimming removes. Right: how
    many of the channels that each would remove are the same. Raises `InputError` as `agreement` does, and when Plotly
    is not installed.
    """
    found = agreement(l1, 1 - apoz)
    zeros = 1 - found.second
    level = float(zeros.mean() + zeros.std())
    count = len(zeros)
    shown = "undefined" if np.isnan(found.correlation) else f"{found.correlation:+.2f}"
    titles = ["channels in the order of L1", f"same channels removed (rank correlation {shown})"]
    figure = panels(1, 2, titles, horizontal_spacing=0.12, column_widths=[0.56, 0.44])
    go = plotly()
    top = float(found.first.max()) or 1.0
    hover = "channel %{text}: %{y:.1%}<extra></extra>"
    traces = [
        ("APoZ: share of zeros", zeros, {"mode": "markers", "marker": {"color": ORANGE, "size": 6}}),
        ("L1, largest = 100%", found.first / top, {"mode": "lines", "line": {"color": BLUE, "width": 3}}),
    ]
    for name, values, style in traces:
        figure.add_trace(
            go.Scatter(y=values[found.order], text=found.order, name=name, hovertemplate=hover, **style), row=1, col=1
        )
    figure.add_trace(
        go.Scatter(
            x=[0, count - 1],
            y=[level, level],
            mode="lines",
            line={"color": GREY, "dash": "dash"},
            name=f"trimming: {int(trimmed(zeros).sum())} channels above APoZ {level:.0%}",
            hoverinfo="skip",
        ),
        row=1,
        col=1,
    )
    share = np.arange(1, count + 1) / count
    both = go.Scatter(x=share, y=found.common[1:], mode="lines", line={"color": BLUE, "width": 3}, showlegend=False)
    chance = go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dot"}, name="by chance")
    for trace in (both, chance):
        figure.add_trace(trace, row=1, col=2)
    figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.05], row=1, col=1)
    figure.update_xaxes(title_text="rank by L1 (0 = largest)", row=1, col=1)
    figure.update_xaxes(title_text="share of the layer removed", tickformat=".0%", row=1, col=2)
    figure.update_yaxes(title_text="wanted by both", tickformat=".0%", range=[-0.03, 1.05], row=1, col=2)
    figure = finish(figure, 460, legend=True)
    figure.update_layout(legend={"y": -0.22}, margin={"b": 110})
    return figure


__all__ = ["Agreement", "agreement", "draw_l1_apoz", "trimmed"]
