"""The plain-PyTorch stand-ins for torchvision's compiled operators, against slower or other ways to the same answer."""

import importlib.util

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.zoo import operators

needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")


def naive_nms(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -float(scores[i])):
        if all(overlap(boxes[index].tolist(), boxes[other].tolist()) <= threshold for other in kept):
            kept.append(index)
    return kept


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 10
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 6 + 0.1
    return torch.cat([corner, corner + size], 1)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 60])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_nms_agrees_with_the_quadratic_loop(count: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(count)
    boxes, scores = random_boxes(count, generator), torch.rand(count, generator=generator)
    assert operators.nms(boxes, scores, threshold).tolist() == naive_nms(boxes, scores, threshold)


@pytest.mark.parametrize("sampling_ratio", [-1, 0, 2, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_agrees_with_integrating_pixel_by_pixel(sampling_ratio: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 13, 17, generator=generator, dtype=torch.float64)
    boxes = random_boxes(9, generator) * 1.5
    rois = torch.cat([torch.randint(0, 2, (9, 1), generator=generator).double(), boxes], 1)
    found = operators.roi_align(images, rois, 0.7, 3, 4, sampling_ratio, aligned)
    assert torch.allclose(found, slow_roi_align(images, rois, 0.7, 3, 4, sampling_ratio, aligned), atol=1e-10)


def slow_roi_align(
    images: Tensor, rois: Tensor, scale: float, rows: int, columns: int, ratio: int, aligned: bool
) -> Tensor:
    result = images.new_zeros(len(rois), images.shape[1], rows, columns)
    for index, roi in enumerate(rois.tolist()):
        left, top, right, bottom = (value * scale - (0.5 if aligned else 0) for value in roi[1:])
        height, width = bottom - top, right - left
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        down = ratio if ratio > 0 else -int(-height // rows)
        across = ratio if ratio > 0 else -int(-width // columns)
        for row in range(rows):
            for column in range(columns):
                for i in range(down):
                    for j in range(across):
                        y = top + (row + (i + 0.5) / down) * height / rows
                        x = left + (column + (j + 0.5) / across) * width / columns
                        result[index, :, row, column] += bilinear(images[int(roi[0])], y, x) / (down * across)
    return result


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    height, width = image.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return image.new_zeros(image.shape[0])
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (left + 1 - x) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (left + 1 - x) + image[:, bottom, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def deform(images: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, *, groups: int = 1) -> Tensor:
    bias = torch.zeros(weight.shape[0], dtype=weight.dtype)
    used = mask if mask is not None else images.new_zeros(0)
    shifts = offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])
    return operators.deform_conv2d(
        images, weight, offset, used, bias, 2, 1, 1, 1, 1, 2, groups, shifts, mask is not None
    )


def test_deform_conv2d_without_offsets_is_a_convolution() -> None:
    images, weight = torch.randn(2, 8, 9, 10).double(), torch.randn(6, 4, 3, 3).double()
    expected = F.conv2d(images, weight, stride=(2, 1), padding=(1, 1), dilation=(1, 2), groups=2)
    offset = images.new_zeros(2, 2 * 2 * 9, *expected.shape[2:])
    assert torch.allclose(deform(images, offset, weight, groups=2), expected)


def test_deform_conv2d_with_whole_offsets_is_a_convolution_of_the_shifted_image() -> None:
    images, weight = torch.randn(1, 4, 9, 10).double(), torch.randn(5, 4, 3, 3).double()
    shifted = F.pad(images, (3, 0, 0, 2))[:, :, 2:, :-3]
    expected = F.conv2d(F.pad(shifted, (1, 1, 1, 1)), weight, stride=(2, 1), dilation=(1, 2))
    offset = images.new_zeros(1, 1, 9, 2, *expected.shape[2:])
    offset[:, :, :, 0], offset[:, :, :, 1] = 2, -3
    found = deform(images, offset.flatten(1, 3), weight)
    inside = (..., slice(1, -1), slice(4, -1))
    assert torch.allclose(found[inside], expected[inside])


def test_deform_conv2d_mask_weighs_every_tap() -> None:
    images, weight = torch.randn(1, 2, 5, 8).double(), torch.randn(3, 2, 3, 3).double()
    offset, mask = images.new_zeros(1, 18, 3, 6), torch.zeros(1, 9, 3, 6).double()
    mask[:, 4] = 2.0
    centre = torch.zeros_like(weight)
    centre[:, :, 1, 1] = 2 * weight[:, :, 1, 1]
    expected = F.conv2d(images, centre, stride=(2, 1), padding=(1, 1), dilation=(1, 2))
    assert torch.allclose(deform(images, offset, weight, mask), expected)


@needs_torchvision
def test_torchvision_imports_and_uses_an_nms_operator() -> None:
    operators.provide()
    operators.provide()
    from torchvision.ops import batched_nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [0, 0, 10, 10]])
    kept = batched_nms(boxes, torch.tensor([0.3, 0.9, 0.5]), torch.tensor([1, 1, 2]), 0.5)
    assert kept.tolist() == [1, 2]
