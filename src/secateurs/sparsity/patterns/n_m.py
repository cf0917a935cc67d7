"""N of every M weights stay."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.pattern import Grouping, Pattern, check_size, pattern

ALONG = ("input", "output")


@pattern("n:m")
@dataclass(frozen=True)
class NofM(Pattern):
    """Of every `m` consecutive input (or output) channels, at the same kernel position, the `n` best weights stay.

    Spelled `"2:4"` or `"2:4(output)"`. Blocks start anew in each convolution group; a last block of fewer than `m`
    channels counts as padded with zeros, so it keeps at most `n`. `"2:4"` is what sparse tensor cores run.
    """

    example: ClassVar[str] = "2:4"
    decides: ClassVar[bool] = True
    n: int
    m: int
    along: str = "input"

    def __post_init__(self) -> None:
        check_size(self, "n", self.n)
        check_size(self, "m", self.m, least=self.n)
        if self.along not in ALONG:
            raise InputError(
                explain(f"along={self.along!r} cannot be used", where="pattern `n:m`", next_step=f"give one of {ALONG}")
            )

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        count = torch.Size(shape).numel()
        axis = 2 if self.along == "input" else 1
        per_line = -(-shape[axis] // self.m)
        across = [1 if dim == axis else n for dim, n in enumerate(shape)]
        lines = torch.arange(prod(across)).reshape(across)
        place = torch.arange(shape[axis]).reshape([-1 if dim == axis else 1 for dim in range(len(shape))]) // self.m
        return Grouping(torch.arange(count).reshape(shape), count, (lines * per_line + place).flatten(), self.n)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" + ("" if self.along == "input" else f"({self.along})")
