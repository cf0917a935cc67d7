"""The activation maps of a layer for one input: where each of its channels fires."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from secateurs.base.errors import InputError, explain
from secateurs.report.figures.theme import PALE, finish, panels, picture_axes, plotly
from secateurs.report.figures.tiles import columns_of, mosaic

MOST_MAPS = 256
MOST_CELLS = 300_000
"""A picture with more is too heavy to open: the first maps are shown, averaged over small blocks."""

SATURATES = 0.005
"""Share of the entries that is beyond the ends of the colour scale, so that a few peaks do not darken all others."""


@dataclass(frozen=True)
class MapGrid:
    """`maps` `[n, height, width]`, averaged over blocks of `block` x `block`, of the first n of `channels` channels.

    `low` and `high` are the ends of the common colour scale: 0 and the magnitude that a share of `SATURATES` of the
    entries exceeds, or symmetric about 0 when there are entries below it.
    """

    maps: NDArray[np.float32]
    channels: int
    block: int
    low: float
    high: float

    @property
    def columns(self) -> int:
        return columns_of(len(self.maps))


def activation_maps(values: Tensor, most: int = MOST_MAPS) -> MapGrid:
    """What a layer gave for one sample, `[channels, height, width]`, as maps on a common scale.

    Raises `InputError` for a tensor that holds no maps.
    """
    if values.dim() != 3 or not values.numel():
        raise InputError(
            explain(
                "These activations are no maps",
                evidence=f"the tensor is {list(values.shape)}",
                next_step="take one sample of a two-dimensional convolution",
            )
        )
    shown = values.detach().cpu().float()[:most]
    block = max(1, ceil(sqrt(shown.numel() / MOST_CELLS)))
    if block > 1:
        shown = F.avg_pool2d(shown, block, ceil_mode=True, count_include_pad=False)
    sizes = shown.abs().numpy()
    largest = float(np.quantile(sizes, 1 - SATURATES, method="higher")) or float(sizes.max())
    return MapGrid(shown.numpy(), len(values), block, -largest if bool((shown < 0).any()) else 0.0, largest)


def draw_maps(values: Tensor, image: Tensor | None = None) -> Any:
    """The maps `[channels, height, width]` of one sample, beside the `image` `[1 or 3, height, width]`, if given.

    A Plotly figure. Raises `InputError` as `activation_maps` does, and when Plotly is not installed.
    """
    grid = activation_maps(values)
    count, height, width = grid.maps.shape
    border = max(1, max(height, width) // 24)
    lines = -(-count // grid.columns)
    title = f"{count} channels" if count == grid.channels else f"the first {count} of {grid.channels} channels"
    if image is None:
        figure = panels(1, 1, [title])
    else:
        figure = panels(1, 2, ["input", title], column_widths=[0.26, 0.74], horizontal_spacing=0.06)
        figure.add_trace(plotly().Image(z=_visible(image), hoverinfo="skip"), row=1, col=1)
        figure.update_xaxes(visible=False, constrain="domain", row=1, col=1)
        figure.update_yaxes(visible=False, constrain="domain", constraintoward="top", row=1, col=1)
    column = 1 if image is None else 2
    trace = plotly().Heatmap(
        z=mosaic(grid.maps, border, np.nan),
        zmin=grid.low,
        zmax=grid.high,
        colorscale="Cividis" if grid.low == 0 else "RdBu_r",
        colorbar={"title": {"text": "activation", "side": "right"}, "thickness": 16},
        hovertemplate="%{z:.3g}<extra></extra>",
        hoverongaps=False,
    )
    figure.add_trace(trace, row=1, col=column)
    picture_axes(figure, 1, column, lines, grid.columns, (height + border, width + border))
    figure = finish(figure, 110 + 580 * lines // grid.columns)
    return figure.update_layout(plot_bgcolor="white" if grid.low == 0 else PALE)


def _visible(image: Tensor) -> NDArray[np.uint8]:
    """An image in whatever units the model takes, as bytes: its lowest entry black, its highest white."""
    pixels = image.detach().cpu().double()
    low, high = float(pixels.min()), float(pixels.max())
    share = (pixels - low) / ((high - low) or 1.0)
    return (share * 255).round().expand(3, -1, -1).permute(1, 2, 0).numpy().astype(np.uint8)


__all__ = ["MapGrid", "activation_maps", "draw_maps"]
