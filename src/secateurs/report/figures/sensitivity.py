"""Sensitivity curves: the metric of every layer over the fraction that it alone has lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateurs.report.figures.theme import BLUE, GREY, INK, ORANGE, RED, finish, panels, plotly
from secateurs.report.sensitivity import CHANNEL, Sensitivity

COLOURS = (BLUE, ORANGE, RED, "#009E73", "#CC79A7", "#56B4E9", GREY, INK)
"""One after the other, then again with another dash."""

DASHES = ("solid", "dash", "dot")
LEGEND_LINE = 4
"""Names that fit side by side under the picture."""


@dataclass(frozen=True)
class Curve:
    """One layer: the fractions that were looked at, the metric at each, and the largest fraction within the tolerance.

    `largest` is None when there is no tolerance.
    """

    layer: str
    fractions: tuple[float, ...]
    metric: tuple[float, ...]
    largest: float | None


def curves(found: Sensitivity, tolerance: float | None = None) -> tuple[Curve, ...]:
    """What is drawn, most sensitive layers first (by the mean metric over what all of them were looked at)."""
    allowed = found.tolerance if tolerance is None else tolerance
    largest = found.largest(allowed) if allowed is not None else {}
    made = []
    for layer, row in found.metric.items():
        known = [(fraction, value) for fraction, value in zip(found.fractions, row, strict=True) if value is not None]
        made.append(
            Curve(
                layer.removesuffix(".weight"),
                tuple(fraction for fraction, _ in known),
                tuple(value for _, value in known),
                largest.get(layer),
            )
        )
    common = min((len(curve.metric) for curve in made), default=0)
    return tuple(sorted(made, key=lambda curve: sum(curve.metric[:common])))


def draw_sensitivity(found: Sensitivity, tolerance: float | None = None) -> Any:
    """A line per layer with the level of the tolerance, and beside them a bar of what each layer bears.

    A Plotly figure. Raises `InputError` as `Sensitivity.largest` does, and when Plotly is not installed.
    """
    lines = curves(found, tolerance)
    allowed = found.tolerance if tolerance is None else tolerance
    what = {CHANNEL: "channels", "weight": "weights"}.get(found.pattern, f"weights in {found.pattern}")
    titles = [f"metric when one layer alone loses {what}"]
    if allowed is not None:
        titles.append(f"largest fraction within {allowed:g}")
    widths = {} if allowed is None else {"column_widths": [0.64, 0.36], "horizontal_spacing": 0.16}
    figure = panels(1, len(titles), titles, **widths)
    go = plotly()
    for place, line in enumerate(lines):
        style = {
            "color": COLOURS[place % len(COLOURS)],
            "dash": DASHES[place // len(COLOURS) % len(DASHES)],
            "width": 2,
        }
        drawn = go.Scatter(
            x=line.fractions, y=line.metric, mode="lines+markers", name=line.layer, line=style, marker={"size": 5},
            hovertemplate=f"{line.layer}<br>%{{x:.0%}}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(drawn, row=1, col=1)
    figure.add_hline(y=found.baseline, line={"color": INK, "width": 1}, row=1, col=1)
    if allowed is not None:
        figure.add_hline(y=found.baseline - allowed, line={"color": INK, "width": 1.5, "dash": "dash"}, row=1, col=1)
        bars = go.Bar(
            y=[line.layer for line in lines], x=[line.largest for line in lines], orientation="h",
            marker={"color": [COLOURS[place % len(COLOURS)] for place in range(len(lines))]},
            text=[f"{line.largest:.0%}" for line in lines], textposition="auto", insidetextanchor="end",
            width=min(0.8, 0.15 * len(lines)), hovertemplate="%{y}: %{x:.0%}<extra></extra>", showlegend=False,
        )  # fmt: skip
        figure.add_trace(bars, row=1, col=2)
        figure.update_xaxes(tickformat=".0%", range=[0, 1], row=1, col=2)
        figure.update_yaxes(autorange="reversed", showgrid=False, dtick=1, row=1, col=2)
    figure.update_xaxes(title_text="fraction removed", tickformat=".0%", row=1, col=1)
    figure = finish(figure, max(460, 160 + 18 * len(lines)) + 22 * (len(lines) // LEGEND_LINE), legend=True)
    figure.update_layout(legend={"y": -0.16, "font": {"size": 12}}, margin={"b": 90 + 22 * (len(lines) // LEGEND_LINE)})
    return figure


__all__ = ["Curve", "curves", "draw_sensitivity"]
