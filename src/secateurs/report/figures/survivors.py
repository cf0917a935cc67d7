"""Which inputs the first linear layer still looks at: kept weights per pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.report.figures.theme import BLUE, finish, panels, plotly


@dataclass(frozen=True)
class Survivors:
    """`counts[r, c]`: weights from pixel (r, c) that stay, of `outputs`; their sum is `kept`."""

    counts: NDArray[np.int64]
    outputs: int

    @property
    def kept(self) -> int:
        return int(self.counts.sum())

    @property
    def profile(self) -> NDArray[np.int64]:
        """The counts one after the other, as the columns of the weight lie: a band per line of the image."""
        return self.counts.reshape(-1)


def survivors(weight: Tensor, image: tuple[int, int]) -> Survivors:
    """Counts of what is not zero in a weight or mask `[outputs, h * w]` of a layer that reads images of `(h, w)`.

    With several channels, `[outputs, channels * h * w]`, the channels of a pixel count together. Raises `InputError`
    for a weight that does not read such images.
    """
    height, width = image
    if weight.dim() != 2 or height < 1 or width < 1 or weight.shape[1] % (height * width):
        raise InputError(
            explain(
                f"This weight does not read images of {height} x {width}",
                evidence=f"its shape is {tuple(weight.shape)}",
                next_step="give the weight of a linear layer on flattened images, and their height and width",
            )
        )
    kept = (weight.detach() != 0).cpu().reshape(weight.shape[0], -1, height, width)
    channels = kept.shape[1]
    return Survivors(kept.sum((0, 1)).numpy().astype(np.int64), weight.shape[0] * channels)


def draw_survivors(found: Survivors) -> Any:
    """The counts as an image, and below them as the bands that the weight's columns show.

    A Plotly figure. Raises `InputError` when Plotly is not installed.
    """
    rows, columns = found.counts.shape
    share = found.kept / (found.outputs * found.counts.size)
    titles = [f"weights kept per pixel, of {found.outputs} ({share:.1%} of all)", "the same, pixel after pixel"]
    figure = panels(2, 1, titles, row_heights=[0.72, 0.28], vertical_spacing=0.1)
    go = plotly()
    image = go.Heatmap(
        z=found.counts, zmin=0, colorscale="Viridis", colorbar={"title": "kept", "len": 0.72, "y": 0.66},
        hovertemplate="row %{y}, column %{x}: %{z}<extra></extra>",
    )  # fmt: skip
    figure.add_trace(image, row=1, col=1)
    figure.update_xaxes(constrain="domain", showgrid=False, row=1, col=1)
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain", showgrid=False, row=1, col=1)
    hover = "pixel %{x}: %{y}<extra></extra>"
    line = go.Scatter(
        y=found.profile, mode="lines", line={"color": BLUE, "width": 1}, fill="tozeroy", hovertemplate=hover
    )
    figure.add_trace(line, row=2, col=1)
    ticks = list(range(0, rows * columns + 1, columns * max(1, rows // 7)))
    figure.update_xaxes(title_text="pixel", tickvals=ticks, row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    return finish(figure, 820)


__all__ = ["Survivors", "draw_survivors", "survivors"]
