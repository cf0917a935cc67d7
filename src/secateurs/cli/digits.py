"""The demo's data and network: scikit-learn's bundled handwritten digits, and a small residual CNN that reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from secateurs.base.errors import DeviceError, explain
from secateurs.base.seeds import seeded

SIZE = 16
"""Images are 8 x 8 and are enlarged to this many pixels a side."""


class Residual(nn.Module):
    """x + conv(conv(x)), with a 1x1 convolution on the short cut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Depthwise(nn.Module):
    """x + pointwise(depthwise(x)): one filter per channel, then a mix of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(y)) + x)


class Branches(nn.Module):
    """Two convolutions side by side whose channels are concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.wide = nn.Conv2d(inputs, outputs // 2, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(torch.cat([self.narrow(x), self.wide(x)], dim=1)))


class DigitNet(nn.Module):
    """Images [N, 1, 16, 16] -> logits [N, 10]; about 22 million multiply-accumulates an image."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block1 = Residual(width, width)
        self.block2 = Residual(width, 2 * width, stride=2)
        self.block3 = Depthwise(2 * width)
        self.block4 = Branches(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block4(self.block3(self.block2(self.block1(self.stem(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Digits:
    """The 1,797 images in a fixed random order, every fifth for testing: [N, 1, 16, 16] in [0, 1], labels [N]."""

    train: TensorDataset
    test: TensorDataset

    def loader(self, seed: int = 0, batch: int = 64) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled training batches; the order follows from the seed."""
        order = torch.Generator().manual_seed(seed)
        return DataLoader(self.train, batch, shuffle=True, generator=order)

    def accuracy(self, model: nn.Module) -> float:
        """Share of test images that `model` reads right."""
        images, labels = self.test.tensors
        model.eval()
        with torch.no_grad():
            return float((model(images).argmax(1) == labels).float().mean())


def load_digits() -> Digits:
    """The data, from scikit-learn's own files; nothing is downloaded. Raises `DeviceError` without scikit-learn."""
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError as error:
        raise DeviceError(
            explain("The demo needs scikit-learn", evidence=str(error), next_step="pip install 'secateurs[demo]'")
        ) from error
    data = bundled()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test = torch.arange(len(labels)) % 5 == 0
    train_rows, test_rows = order[~test], order[test]
    return Digits(
        TensorDataset(images[train_rows], labels[train_rows]), TensorDataset(images[test_rows], labels[test_rows])
    )


def new_network(seed: int = 0) -> DigitNet:
    """An untrained network; the same for the same seed."""
    with seeded(seed):
        return DigitNet()
