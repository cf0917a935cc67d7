"""torchvision's operators on regions: channels pass, boxes are positions."""

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


@rule("torchvision.nms")
def suppressed(c: Coupler, node: Node) -> None:
    """Which boxes stay depends on all of them."""
    for number in node.inputs:
        c.freeze_all(number, f"{node.where} compares boxes")
    for out in node.outputs:
        c.put(out, ())
