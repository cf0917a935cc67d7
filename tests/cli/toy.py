"""What the tests of the command line name by `toy:...`: networks, data and metrics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions and a linear layer on images [N, 1, 6, 6]."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.norm(self.first(x)).relu()).relu()
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def frozen() -> nn.Module:
    """A network in which nothing may be removed: its one layer makes the output."""
    return nn.Conv2d(1, 4, 3)


def loader() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 3) for _ in range(2)]


def bias(model: nn.Module) -> float:
    """A metric that needs no data."""
    return float(sum(parameter.detach().abs().mean() for parameter in model.parameters()))


def half(outputs: Tensor, target: Tensor) -> Tensor:
    """A loss of one's own."""
    return nn.functional.cross_entropy(outputs, target) / 2


def broken() -> nn.Module:
    raise RuntimeError("no weights here")


def chatty() -> nn.Module:
    print("chatting about weights")
    return Net()


def chatty_loader() -> list[tuple[Tensor, Tensor]]:
    print("chatting about data")
    return loader()


def chatty_bias(model: nn.Module) -> float:
    print("chatting about results")
    return bias(model)


number = 3
