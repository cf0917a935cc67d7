"""Tiles of equal size side by side: the way in which filters and feature maps are shown."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray


def columns_of(count: int) -> int:
    """Columns of a grid of `count` tiles: `ceil(sqrt(count))`, so that it is about as wide as high."""
    return ceil(sqrt(count))


def mosaic(tiles: NDArray[Any], border: int, fill: float) -> NDArray[Any]:
    """Tiles `[n, h, w, ...]` as one array, in lines of `columns_of(n)` with `border` entries of `fill` around each.

    Tile k begins at row `border + (k // columns) * (h + border)` and column `border + (k % columns) * (w + border)`.
    """
    count, height, width = tiles.shape[:3]
    columns = columns_of(count)
    lines = -(-count // columns)
    size = (lines * (height + border) + border, columns * (width + border) + border)
    image = np.full((*size, *tiles.shape[3:]), fill, dtype=tiles.dtype)
    for number, tile in enumerate(tiles):
        top, left = corner(number, count, (height, width), border)
        image[top : top + height, left : left + width] = tile
    return image


def corner(number: int, count: int, size: tuple[int, int], border: int) -> tuple[int, int]:
    """Row and column at which tile `number` of `count` begins in the mosaic."""
    line, place = divmod(number, columns_of(count))
    return border + line * (size[0] + border), border + place * (size[1] + border)


__all__ = ["columns_of", "corner", "mosaic"]
