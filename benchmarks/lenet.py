"""MNIST and LeNet-300-100, for every benchmark that needs them. The folder given by `--data` holds `mnist/`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import mnist_data

VALIDATION = 5000
"""The last training images, which no network is trained on."""


class Batches:
    """Batches of rows in an order drawn anew whenever they are read, from torch's random state."""

    def __init__(self, images: Tensor, labels: Tensor, size: int) -> None:
        self.images, self.labels, self.size = images, labels, size

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.labels))[: len(self) * self.size].split(self.size):
            yield self.images[rows], self.labels[rows]


def in_order(images: Tensor, labels: Tensor, size: int = 2500) -> list[tuple[Tensor, Tensor]]:
    """All rows, in batches."""
    return list(zip(images.split(size), labels.split(size), strict=True))


def splits(data: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training (55,000), validation (5,000) and test images (10,000) with their labels."""
    images, labels = _flat(data, "train")
    cut = len(labels) - VALIDATION
    return (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), _flat(data, "test")


def _flat(data: Path, part: str) -> tuple[Tensor, Tensor]:
    images, labels = mnist_data.pixels(data, part)
    return images.flatten(1), labels


def lenet_300_100(seed: int = 0, *, dropout: float = 0.0) -> nn.Sequential:
    """784-300-100-10 with ReLU; Glorot's normal initial weights, zero biases. 266,610 parameters."""
    rates = [nn.Dropout(dropout)] if dropout else []
    model = nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), *rates, nn.Linear(300, 100), nn.ReLU(), *rates, nn.Linear(100, 10)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        glorot(model)
    return model


def glorot(model: nn.Module) -> None:
    """New random weights in place."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
