"""For tests of `Hold`: a small network, optimizers, a loop that knows nothing of masks, what its zeros have to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


MOMENTA = set(OPTIMIZERS) - {"rprop", "adamax"}
"""Others remember step sizes, or floors of them, which are not zero where the gradient always was."""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.deep, self.head = nn.Conv2d(6, 6, 3, groups=2), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(torch.relu(self.norm(self.conv(x)))).relu().flatten(1)
        result: Tensor = self.head(x)
        return result


def network(seed: int = 0) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    """An ordinary loop that knows nothing of masks."""
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int32)


def check_zeros(model: nn.Module, masks: dict[str, Tensor], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Value, gradient and memory, as it is saved, at masked places: every bit is zero."""
    if optimizer is not None:
        optimizer.state_dict()
    for name, parameter in model.named_parameters():
        if name in masks:
            gone = ~masks[name]
            assert gone.any()
            assert not bits(parameter)[gone].any(), name
            assert parameter.detach()[~gone].all(), f"{name}: kept weights train"
            if parameter.grad is not None:
                assert not bits(parameter.grad)[gone].any(), f"gradient of {name}"
            for key, item in (optimizer.state[parameter] if optimizer else {}).items():
                if isinstance(item, Tensor) and item.shape == gone.shape:
                    assert not item[gone].any(), f"{key} of {name}"


def check_values(model: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in masks:
            assert not bits(parameter)[~masks[name]].any()
