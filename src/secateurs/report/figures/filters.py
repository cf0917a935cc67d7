"""The filters of a layer as small pictures: what it looks for, and which filters never learnt anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.report.figures.theme import RED, finish, panels, picture_axes, plotly
from secateurs.report.figures.tiles import columns_of, corner, mosaic

SCALES = ("common", "own")
PIXEL = 8
"""Image entries per weight, so that a border can be thinner than a weight."""


@dataclass(frozen=True)
class FilterGrid:
    """`tiles[k]` is filter k, bytes `[n, height, width, 3]`: 128 is 0, 255 and 1 are plus and minus its `scales[k]`."""

    tiles: NDArray[np.uint8]
    scales: NDArray[np.float64]

    @property
    def columns(self) -> int:
        return columns_of(len(self.tiles))


def filter_grid(weight: Tensor, scale: str = "common") -> FilterGrid:
    """A weight `[n, 3 or 1, height, width]` as tiles in colour or grey.

    `scale="common"` divides all filters by the largest |w| of the layer, so that weak ones look grey; `"own"` divides
    each by its own, so that the shape of weak ones shows, and with it the noise of those that learnt nothing. A filter
    of zeros is mid-grey in both. Raises `InputError` for a weight that is no picture.
    """
    if weight.dim() != 4 or weight.shape[1] not in (1, 3) or not weight.numel():
        raise InputError(
            explain(
                "These filters are no pictures",
                evidence=f"the weight is {list(weight.shape)}",
                next_step="take a layer that reads 1 or 3 channels: the first one, or a depthwise one",
            )
        )
    if scale not in SCALES:
        raise InputError(explain(f"There is no scale {scale!r}", next_step=f"take one of {', '.join(SCALES)}"))
    values = weight.detach().cpu().double().permute(0, 2, 3, 1).numpy()
    own = np.abs(values).max(axis=(1, 2, 3))
    scales = own if scale == "own" else np.full_like(own, own.max())
    share = values / np.where(scales > 0, scales, 1)[:, None, None, None]
    tiles = np.rint(128 + 127 * share).astype(np.uint8)
    return FilterGrid(np.ascontiguousarray(np.broadcast_to(tiles, (*tiles.shape[:3], 3))), scales)


def draw_filters(weight: Tensor, name: str = "", flagged: Sequence[int] = ()) -> Any:
    """Both scalings of a weight side by side, `flagged` filters framed in red: a Plotly figure.

    Raises `InputError` as `filter_grid` does, and when Plotly is not installed.
    """
    grids = [filter_grid(weight, scale) for scale in SCALES]
    top = f"{grids[0].scales.max():.2g}"
    figure = panels(1, 2, [f"one scale: white +{top}, black −{top}", "each filter on its own scale"])
    for column, grid in enumerate(grids, 1):
        _add(figure, grid, column, flagged)
    lines = -(-len(grids[0].tiles) // grids[0].columns)
    return finish(figure, 100 + 400 * lines // grids[0].columns)


def _add(figure: Any, grid: FilterGrid, column: int, flagged: Sequence[int]) -> None:
    count, height, width = grid.tiles.shape[:3]
    large = grid.tiles.repeat(PIXEL, 1).repeat(PIXEL, 2)
    border = max(2, PIXEL * max(height, width) // 12)
    image = mosaic(large, border, 255)
    figure.add_trace(plotly().Image(z=image, hoverinfo="skip"), row=1, col=column)
    size = (height * PIXEL, width * PIXEL)
    corners = [corner(number, count, size, border) for number in range(count)]
    figure.add_trace(
        plotly().Scatter(
            x=[left + size[1] / 2 for _, left in corners],
            y=[top + size[0] / 2 for top, _ in corners],
            mode="markers",
            marker={"size": 20, "opacity": 0},
            text=[f"filter {number}: largest |w| {scale:.3g}" for number, scale in enumerate(grid.scales)],
            hoverinfo="text",
        ),
        row=1,
        col=column,
    )
    for number in flagged:
        top, left = corners[number]
        edge = border / 2
        box = {"x0": left - edge, "x1": left + size[1] + edge, "y0": top - edge, "y1": top + size[0] + edge}
        figure.add_shape(type="rect", line={"color": RED, "width": 3}, row=1, col=column, **box)
    lines = -(-count // grid.columns)
    picture_axes(figure, 1, column, lines, grid.columns, (size[0] + border, size[1] + border))


__all__ = ["FilterGrid", "draw_filters", "filter_grid"]
