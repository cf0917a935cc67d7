"""torchvision's own operators in plain PyTorch, for builds of torchvision whose compiled ones cannot be loaded.

`provide()` defines `torchvision::nms`, `roi_align` and `deform_conv2d` under their real schemas, so that a captured
graph names the operators that a complete build would name (`qnms`, which importing torchvision asks for, is declared
only). Forward only, CPU only. It does nothing where the compiled operators load.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "deform_conv2d": "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor",
}
_libraries: list[torch.library.Library] = []


def provide() -> bool:
    """Make `import torchvision` and its detection models work. True when the operators below were needed."""
    if _libraries:
        return True
    if _compiled_operators_load():
        return False
    library = torch.library.Library("torchvision", "DEF")
    _libraries.append(library)
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "CPU")
    importlib.import_module("torchvision")
    _announce()
    return True


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed; the zoo of the benchmarks needs it")
    for path in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(path))
        except OSError:
            continue
        return True
    return False


def _announce() -> None:
    """Tell torchvision that its operators exist; otherwise it refuses `nms` and compiles its own `roi_align`."""
    for name in ("torchvision.extension", "torchvision.ops.roi_align"):
        sys.modules[name]._has_ops = lambda: True  # type: ignore[attr-defined]
    for name, fake in FAKES.items():
        torch.library.register_fake(f"torchvision::{name}", fake, lib=_libraries[0])


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices [K] of the boxes [N, 4] that survive, best score first.

    A box goes when its intersection over union with a better box that survived is above the threshold.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    overlaps = _iou(boxes) > iou_threshold
    keep = torch.ones(len(boxes), dtype=torch.bool)
    for index in range(len(boxes)):
        if keep[index]:
            keep[index + 1 :] &= ~overlaps[index, index + 1 :]
    return order[keep]


def _iou(boxes: Tensor) -> Tensor:
    """Intersection over union of all pairs, [N, N]."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    top = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    bottom = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (bottom - top).clamp(min=0).prod(dim=2)
    return shared / (area[:, None] + area[None, :] - shared)


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average of bilinear samples per bin: [N, C, H, W] and rois [K, 5] (image, x1, y1, x2, y2) -> [K, C, PH, PW]."""
    pooled = [
        _align_one(input[int(roi[0])], roi[1:], spatial_scale, (pooled_height, pooled_width), sampling_ratio, aligned)
        for roi in rois
    ]
    return torch.stack(pooled) if pooled else input.new_zeros(0, input.shape[1], pooled_height, pooled_width)


def _align_one(
    image: Tensor, box: Tensor, scale: float, bins: tuple[int, int], sampling_ratio: int, aligned: bool
) -> Tensor:
    """One region of one image [C, H, W] -> [C, PH, PW]."""
    x1, y1, x2, y2 = (box * scale - (0.5 if aligned else 0.0)).tolist()
    least = float("-inf") if aligned else 1.0
    rows = _samples(y1, max(y2 - y1, least), bins[0], sampling_ratio)
    columns = _samples(x1, max(x2 - x1, least), bins[1], sampling_ratio)
    row_weights = _interpolation(rows.flatten(), image.shape[1]).to(image.dtype)
    column_weights = _interpolation(columns.flatten(), image.shape[2]).to(image.dtype)
    values = row_weights @ image @ column_weights.T
    return values.unflatten(2, columns.shape).unflatten(1, rows.shape).mean(dim=(2, 4))


def _samples(start: float, length: float, bins: int, sampling_ratio: int) -> Tensor:
    """Coordinates of the samples along one axis, [bins, samples per bin]."""
    count = sampling_ratio if sampling_ratio > 0 else max(1, -int(-length // bins))
    step = length / bins
    offsets = (torch.arange(count, dtype=torch.float64) + 0.5) * (step / count)
    return start + torch.arange(bins, dtype=torch.float64)[:, None] * step + offsets


def _interpolation(points: Tensor, size: int) -> Tensor:
    """Weights [points, size] of linear interpolation; points further than one pixel outside weigh nothing."""
    inside = ((points >= -1) & (points <= size)).to(points.dtype)
    points = points.clamp(0, size - 1)
    distance = (points[:, None] - torch.arange(size, dtype=points.dtype)).abs()
    return (1 - distance).clamp(min=0) * inside[:, None]


def deform_conv2d(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Tensor:
    """Convolution [N, C, H, W] -> [N, O, OH, OW] whose taps are moved by `offset` [N, 2*G*KH*KW, OH, OW]."""
    batch, channels, height, width = input.shape
    taps_h, taps_w = weight.shape[2:]
    taps = taps_h * taps_w
    out_h, out_w = offset.shape[2:]
    moved = offset.view(batch, offset_groups, taps, 2, out_h, out_w)
    tap_y = (torch.arange(taps_h) * dilation_h).repeat_interleave(taps_w).view(taps, 1, 1)
    tap_x = (torch.arange(taps_w) * dilation_w).repeat(taps_h).view(taps, 1, 1)
    y = moved[:, :, :, 0] + tap_y + (torch.arange(out_h) * stride_h - pad_h).view(1, out_h, 1)
    x = moved[:, :, :, 1] + tap_x + (torch.arange(out_w) * stride_w - pad_w).view(1, 1, out_w)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1).flatten(0, 1)
    columns = torch.nn.functional.grid_sample(
        input.reshape(batch * offset_groups, channels // offset_groups, height, width),
        grid.reshape(batch * offset_groups, taps * out_h, out_w, 2),
        align_corners=False,
    ).view(batch, offset_groups, channels // offset_groups, taps, out_h, out_w)
    if use_mask:
        columns = columns * mask.view(batch, offset_groups, 1, taps, out_h, out_w)
    columns = columns.reshape(batch, groups, channels // groups * taps, out_h * out_w)
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)
    return (filters @ columns).reshape(batch, -1, out_h, out_w) + bias.view(1, -1, 1, 1)


def _fake_roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return input.new_empty(rois.shape[0], input.shape[1], pooled_height, pooled_width)


def _fake_deform_conv2d(input: Tensor, weight: Tensor, offset: Tensor, *rest: object) -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[0], *offset.shape[2:])


KERNELS: dict[str, Callable[..., Tensor]] = {"nms": nms, "roi_align": roi_align, "deform_conv2d": deform_conv2d}
FAKES: dict[str, Callable[..., Tensor]] = {"roi_align": _fake_roi_align, "deform_conv2d": _fake_deform_conv2d}
