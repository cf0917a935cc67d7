"""Small networks, each with one thing that a capture could get wrong, and inputs for them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.down, self.head = nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu_(self.down(x)) + nn.functional.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.conv(x).chunk(2, 1)
        a, b = torch.cat([b, a.sigmoid()], 1).split([2, 4], 1)
        return self.head(torch.cat([a, b], 1)), b.flatten(1).softmax(1)


class Nested(nn.Module):
    """Nested outputs, a keyword input, and a literal among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, batch: dict[str, Tensor], *, mask: Tensor, double: bool = False) -> dict[str, Any]:
        hidden = self.linear(batch["tokens"]) * mask
        return {"hidden": hidden, "pooled": [hidden.mean(1), (hidden.amax(1), None)], "doubled": double}


class Branches(nn.Module):
    """Takes one way or the other depending on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).relu() if x.sum() > 0 else self.down(x).tanh()


class Nonzero(nn.Module):
    """How many rows there are depends on the data, as in detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.linear(x)
        return rows[torch.nonzero(rows.sum(1) > 0).squeeze(1)]


@lru_cache
def position_table(length: int) -> Tensor:
    """A table that the model's code makes once and keeps."""
    return torch.arange(length, dtype=torch.float32) * 0.1


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + position_table(4))


class CachedInClass(Cached):
    """Keeps the table in a cache that belongs to the class."""

    @staticmethod
    @lru_cache
    def table(length: int) -> Tensor:
        return torch.arange(length, dtype=torch.float32) * 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.table(4))


class Counter(nn.Module):
    """Changes a buffer on every call, in eval mode as well."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


class Twice(nn.Module):
    """One module called twice; a second one tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(torch.relu(self.one(x)))))


class Token(nn.Module):
    """A learned token before the others."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.linear = nn.Parameter(torch.zeros(1, 1, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.cat([self.token.expand(x.shape[0], 1, 6), x], 1))


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)


EXPORTABLE = {
    "convolutions": (ConvNet, (1, 3, 8, 8)),
    "split": (Split, (1, 3, 4, 4)),
    "transformer": (transformer, (1, 5, 8)),
    "recurrent": (lambda: nn.GRU(4, 3, batch_first=True), (1, 5, 4)),
    "twice": (Twice, (1, 4)),
}
"""Networks that `torch.export` captures as well, with the shape of their input."""
