"""The weights of a layer before and after pruning: what is left is on both sides of a gap at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.report.figures.histograms import Histograms, histograms
from secateurs.report.figures.theme import BLUE, ORANGE, PALE, finish, panels, plotly

BINS = 81
"""Odd, so that on a symmetric scale one bin has zero in its middle."""


@dataclass(frozen=True)
class WeightHistograms:
    """Non-zero weights of one layer at several moments, in common bins; `zeros` by moment; `gap` as of `after`.

    `gap` is the smallest |w| above zero at the last moment: between minus and plus this there is no weight.
    """

    histograms: Histograms
    zeros: tuple[int, ...]
    gap: float


def weight_histograms(moments: Mapping[str, Tensor], bins: int = BINS) -> WeightHistograms:
    """Weights of one layer, all of one shape, by the name of the moment: `{"before": w, "pruned": w, "retrained": w}`.

    Raises `InputError` when there is none or they are of different sizes.
    """
    flat = {name: weight.detach().cpu().double().flatten() for name, weight in moments.items()}
    if len({weight.numel() for weight in flat.values()}) != 1:
        raise InputError(
            explain(
                "These are not the weights of one layer at several moments",
                evidence=", ".join(f"{name} {tuple(weight.shape)}" for name, weight in moments.items()) or "none given",
            )
        )
    top = max(float(weight.abs().max()) for weight in flat.values()) or 1.0
    edge = torch.tensor([-top, top], dtype=torch.float64)
    found = histograms({name: torch.cat([weight[weight != 0], edge]) for name, weight in flat.items()}, bins)
    found.counts[:, 0] -= 1  # the two that made the scale symmetric
    found.counts[:, -1] -= 1
    last = list(flat.values())[-1].abs()
    alive = last[last > 0]
    gap = float(alive.min()) if alive.numel() else top
    return WeightHistograms(found, tuple(int((weight == 0).sum()) for weight in flat.values()), gap)


def draw_weight_histograms(found: WeightHistograms, layer: str = "") -> Any:
    """One panel per moment, on one scale. Zeros are not drawn but counted in the titles, for they would hide the rest.

    A Plotly figure. Raises `InputError` when Plotly is not installed.
    """
    shown = found.histograms
    titles = [
        f"{name}: {int(counts.sum()):,} weights" + (f", {zeros:,} zeros" if zeros else "")
        for name, counts, zeros in zip(shown.names, shown.counts, found.zeros, strict=True)
    ]
    count = len(titles)
    figure = panels(count, 1, titles, shared_xaxes=True, vertical_spacing=0.3 / max(2, count))
    centres = (shown.edges[:-1] + shown.edges[1:]) / 2
    colours = (PALE, BLUE, ORANGE)
    for row, counts in enumerate(shown.counts, 1):
        bars = plotly().Bar(
            x=centres, y=counts, width=shown.edges[1] - shown.edges[0], hovertemplate="%{x:.3g}: %{y:,}<extra></extra>",
            marker={"color": colours[min(row, len(colours)) - 1], "line": {"width": 0.5, "color": "#777777"}},
        )  # fmt: skip
        figure.add_trace(bars, row=row, col=1)
    figure.update_xaxes(title_text=f"weight of {layer}" if layer else "weight", row=count, col=1)
    figure = finish(figure, 120 + 210 * count)
    figure.update_layout(bargap=0)
    return figure


__all__ = ["WeightHistograms", "draw_weight_histograms", "weight_histograms"]
