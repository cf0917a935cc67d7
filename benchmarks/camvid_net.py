"""A small U-Net for two classes of pixels: encoder in the manner of MobileNetV2, decoder of transposed convolutions.

Sandler et al. 2018 (arXiv 1801.04381) for the inverted residuals, Ronneberger et al. 2015 (arXiv 1505.04597).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.camvid_data import IGNORED

STEM = 8
STAGES = ((16, 1, 1), (24, 2, 6), (48, 3, 6), (96, 2, 6))
"""Channels, blocks, expansion of each stage; every one begins by halving the image, as the stem does before."""


class Inverted(nn.Module):
    """Widen, filter each channel, narrow without activation; the input is added where the shape stays."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = block(channels, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = block(wide, wide, 3, stride=stride, groups=wide)
        self.project = nn.Sequential(nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def block(channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6())


class Up(nn.Module):
    """Twice the size by a transposed convolution, then the encoder's features of that size beside it."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU6())

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([self.up(x), skip], 1)


class UNet(nn.Module):
    """Images [N, 3, H, W], H and W divisible by 32, to one logit for each pixel, [N, 1, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, STEM, 3, stride=2)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        widths = [STEM, *(stage[0] for stage in STAGES)]
        for before, (out, blocks, expansion) in zip(widths[:-1], STAGES, strict=True):
            rest = [Inverted(out, out, 1, expansion) for _ in range(blocks - 1)]
            self.encoder.append(nn.Sequential(Inverted(before, out, 2, expansion), *rest))
        channels = widths[-1]
        for skip in reversed(widths[:-1]):
            self.decoder.append(Up(channels, skip))
            channels = 2 * skip
        self.head = nn.ConvTranspose2d(channels, 1, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for stage in self.encoder:
            features.append(stage(features[-1]))
        x = features.pop()
        for up in self.decoder:
            x = up(x, features.pop())
        logits: Tensor = self.head(x)
        return logits


def build(seed: int) -> nn.Module:
    """A new network, in the layout of `camvid_data.scaled`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over the pixels that have a label."""
    known = (target != IGNORED).float()
    each = F.binary_cross_entropy_with_logits(outputs, target.clamp(min=0), weight=known, reduction="sum")
    return each / known.sum().clamp(min=1)


__all__ = ["STAGES", "STEM", "UNet", "build", "loss"]
