"""CIFAR-10 and the ResNets made for it, for every benchmark that needs them.

The folder given by `--data` holds `cifar10/` (the binary distribution's batches, xz-compressed) and `cifar10_models/`
(`resnet20_cifar10.safetensors` and deeper ones). The networks are those of He, Zhang, Ren, Sun: Deep Residual Learning
for Image Recognition, 2015 (arXiv 1512.03385), with parameter-free shortcuts.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
TEST = "test_batch_first1000.bin.xz"


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: where the shape changes, every second pixel, zeros as new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.widens = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widens:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.widens, self.widens))
        return F.relu(y + x)


class ResNet(nn.Module):
    """Images [N, 3, 32, 32] -> logits [N, 10]: a stem, three stages of (depth - 2) / 6 blocks, a linear layer."""

    def __init__(self, depth: int = 20) -> None:
        super().__init__()
        self.blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def _stage(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        rest = (Block(outputs, outputs, 1) for _ in range(self.blocks - 1))
        return nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def pretrained(data: Path, depth: int = 20) -> ResNet:
    """The network with its published weights, in eval mode."""
    model = ResNet(depth)
    model.load_state_dict(load_file(data / "cifar10_models" / f"resnet{depth}_cifar10.safetensors"))
    return model.eval()


def normalised(images: Tensor) -> Tensor:
    """Bytes [N, 3, 32, 32] as the floats that the networks were trained on."""
    return (images.float() / 255 - MEAN) / STD


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] as bytes and labels [N] of one file of records: label, red, green and blue plane."""
    with lzma.open(path) as file:
        records = np.frombuffer(file.read(), np.uint8).reshape(-1, 3073)
    images, labels = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels)


def read_batches(data: Path, numbers: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Images as bytes and labels of these training files, one after the other."""
    parts = [read(data / "cifar10" / f"data_batch_{number}.bin.xz") for number in numbers]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return images, labels


def train_set(data: Path, count: int, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """The first `count` training images in batches (images, labels), normalised, not augmented."""
    images, labels = read_batches(data, range(1, 1 + -(-count // 10_000)))
    return list(zip(normalised(images[:count]).split(size), labels[:count].split(size), strict=True))


def held_out(data: Path, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """The 1,000 lossless test images in batches (images, labels), normalised."""
    images, labels = read(data / "cifar10" / TEST)
    return list(zip(normalised(images).split(size), labels.split(size), strict=True))
