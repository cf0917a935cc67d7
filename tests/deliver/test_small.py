"""Files of a few kilobytes, where every fixed cost counts: the LeNets of the literature with random masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secateurs as sec

LENET_300_100 = ((300, 784), (100, 300), (10, 100))
LENET_5 = ((20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500))


def pruned(shapes: tuple[tuple[int, ...], ...], kept: tuple[int, ...]) -> nn.Module:
    """Weights of two humps, as pruning by magnitude leaves them, anywhere: no index is dearer."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for shape, count in zip(shapes, kept, strict=True):
        layer: nn.Module = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], 5)
        weights = torch.randn(shape, generator=generator) * 0.1
        weights = weights + 0.1 * weights.sign()
        chosen = torch.randperm(weights.numel(), generator=generator)[:count]
        mask = torch.zeros(weights.numel()).index_fill_(0, chosen, 1.0).view(shape)
        with torch.no_grad():
            layer.weight.copy_(weights * mask)
            layer.bias.copy_(torch.randn(shape[0], generator=generator) * 0.1)
        layers.append(layer)
    return nn.Sequential(*layers)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("shapes", "kept", "least"),
    [
        (LENET_300_100, (9273, 2512, 315), 60),
        (LENET_300_100, (3302, 1278, 170), 120),
        (LENET_5, (171, 676, 2942, 201), 250),
        (LENET_5, (102, 382, 1161, 105), 400),
    ],
    ids=["LeNet-300-100 1/22", "LeNet-300-100 1/56", "LeNet-5 1/108", "LeNet-5 1/246"],
)
def test_times_smaller_all_bytes_counted(
    shapes: tuple[tuple[int, ...], ...], kept: tuple[int, ...], least: int, tmp_path: Path
) -> None:
    model = pruned(shapes, kept)
    book = sec.pack(sec.share_weights(model, 4, codebook="float16"), tmp_path / "file", biases=8)
    floats = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert book.bytes == (tmp_path / "file").stat().st_size
    assert floats >= least * book.bytes
    parts = book.parts
    assert parts["header"] + parts["checksums"] + parts["tables"] + parts["padding"] < 340


def test_an_index_by_context_sees_where_weights_lie() -> None:
    """Kept pixels in the middle of 28 x 28 images, and dead rows: far fewer bytes than any form without contexts."""
    from secateurs.pack.coded import Coded, Shared
    from secateurs.pack.encode import encode

    generator = torch.Generator().manual_seed(0)
    far = ((torch.arange(28) - 13.5) ** 2)[:, None] + ((torch.arange(28) - 13.5) ** 2)[None, :]
    chance = 0.3 * torch.exp(-far / 30).reshape(1, -1) * (torch.rand(100, 1, generator=generator) < 0.5)
    kept = (torch.rand(100, 784, generator=generator) < chance).numpy()
    codes = torch.randint(0, 8, (int(kept.sum()),), generator=generator).numpy()
    tensor = Coded(kept.shape, Shared(codes, torch.arange(8).float().numpy()), kept)
    fast, thorough = encode(tensor), encode(tensor, thorough=True)
    assert thorough.record.encoding is not None and thorough.record.encoding.name == "context"
    index = [item.bytes - 3 * codes.size // 8 for item in (fast, thorough)]
    assert index[1] < 0.85 * index[0]
