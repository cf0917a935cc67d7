"""The pretrained ImageNet networks of the benchmarks: their parts against slow, independent ways to the same."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.imagenet import Photos, Same, centred, class_names, mobilenet, photos, right, squeezenet, standardised
from benchmarks.zoo import operators


def by_tensorflows_rule(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """SAME as TensorFlow states it: ceil(n / stride) outputs; output i reads from `i * stride - before` on."""
    rows, columns = (-(-size // stride) for size in x.shape[2:])
    before = [
        max(0, (count - 1) * stride + 3 - size) // 2 for count, size in zip((rows, columns), x.shape[2:], strict=True)
    ]
    out = torch.zeros(x.shape[0], weight.shape[0], rows, columns, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            for r in range(3):
                for c in range(3):
                    y, z = i * stride - before[0] + r, j * stride - before[1] + c
                    if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
                        out[:, :, i, j] += x[:, :, y, z] @ weight[:, :, r, c].T
    return out


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 9)])
def test_same_padding_is_tensorflows(stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = Same(2, 3, stride).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(conv(x), by_tensorflows_rule(x, conv.weight, stride), atol=1e-12)


@pytest.mark.data
@pytest.mark.parametrize(
    ("build", "prepare", "parameters", "known"),
    [(mobilenet, centred, 2_585_560, 0.9), (squeezenet, standardised, 1_235_496, 0.6)],
)
def test_the_networks_know_the_photos(data: Path, build, prepare, parameters: int, known: float) -> None:
    pytest.importorskip("PIL")
    model = build(data)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    first, five = right(model, Photos(data, prepare, range(0, 1000, 50), size=20))
    assert five >= first >= known - 0.15


@pytest.mark.data
def test_squeezenet_is_torchvisions(data: Path) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    operators.provide()
    from torchvision import models

    model, theirs = squeezenet(data), models.squeezenet1_1().eval()
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(x), theirs(x), atol=1e-5)


@pytest.mark.data
def test_photos_are_bytes_of_the_centre(data: Path) -> None:
    pytest.importorskip("PIL")
    found = photos(data, [1, 817])
    assert found.shape == (2, 3, 224, 224) and found.dtype == torch.uint8
    assert class_names(data)[1] == "goldfish, Carassius auratus"
    red, blue = found[0, 0].float().mean(), found[0, 2].float().mean()
    assert red > blue + 20  # an orange fish
