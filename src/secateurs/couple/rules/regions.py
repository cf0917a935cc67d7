"""Operators on regions: channels pass, boxes and sampling points are positions."""

from __future__ import annotations

from secateurs.capture.graph import Node
from secateurs.couple.coupler import Coupler, spread
from secateurs.couple.rules.registry import rule


@rule("torchvision.roi_align", "torchvision.roi_pool")
def pooled_regions(c: Coupler, node: Node) -> None:
    """`[N, C, H, W]` and boxes `[K, 5]` give `[K, C, h, w]`."""
    x, boxes = node.inputs[:2]
    ids = c.along(x, 1)
    for layer in c.others(x, [1]):
        c.freeze(layer, f"{node.where} samples positions of it")
    c.freeze_all(boxes, f"{node.where} takes boxes from it")
    for out in node.outputs:
        c.put(out, [spread(ids, 1, 4)] if ids is not None else [])


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def sampled(c: Coupler, node: Node) -> None:
    """`x[N, C, ..]` read at the points `grid[N, .., 2 or 3]`: channels pass."""
    x, grid = node.inputs[:2]
    ids = c.along(x, 1)
    for layer in c.others(x, [1]):
        c.freeze(layer, f"{node.where} samples positions of it")
    c.freeze_all(grid, f"{node.where} takes points from it")
    c.put(node.outputs[0], [spread(ids, 1, len(c.shape(x)))] if ids is not None else [])


@rule("torchvision.nms")
def suppressed(c: Coupler, node: Node) -> None:
    """Which boxes stay depends on all of them."""
    for number in node.inputs:
        c.freeze_all(number, f"{node.where} compares boxes")
    for out in node.outputs:
        c.put(out, ())
