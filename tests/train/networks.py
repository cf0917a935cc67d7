"""Small networks and data sets for the tests of this folder."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


def plain(seed: int = 0, width: int = 6) -> nn.Sequential:
    """4 features, `width` hidden neurons, 3 classes; nothing random in it."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def convolutional(seed: int = 0, width: int = 6) -> nn.Sequential:
    """1x6x6 images, 3 classes, with batch norm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(width, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )


def points(count: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random points [count, 4] with classes that a linear layer can learn."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return inputs, inputs[:, :3].argmax(dim=1)


def images(count: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random images [count, 1, 6, 6] whose class is the brightest third."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 1, 6, 6, generator=generator)
    return inputs, inputs.reshape(count, 3, 12).mean(dim=2).argmax(dim=1)


def loader(data: tuple[Tensor, Tensor], *, batch_size: int = 8, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*data), batch_size=batch_size, shuffle=shuffle)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images with noise drawn from PyTorch's and a shift drawn from NumPy's random numbers."""

    def __init__(self, count: int = 40) -> None:
        self.inputs, self.targets = images(count)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        shift = int(np.random.randint(0, 3))
        image = self.inputs[index].roll(shift, dims=2)
        return image + 0.1 * torch.randn(image.shape), self.targets[index]


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
