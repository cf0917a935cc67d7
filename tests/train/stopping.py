"""A loss that stops the run again and again, as somebody with an eye on the clock would."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


class Interrupted(Exception):
    pass


class Stopping:
    """Cross entropy, but every second call raises `Interrupted`; `calls` counts both."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 2 == 0:
            raise Interrupted
        return functional.cross_entropy(outputs, target)
