"""Every so-many-th tap of a kernel."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.pattern import Grouping, Pattern, check_size, pattern


@pattern("strided")
@dataclass(frozen=True)
class Strided(Pattern):
    """Of the flattened kernel the taps `start`, `start + stride`, ... stay, the same for all that read a channel.

    The columns of the other taps then vanish from the lowered (im2col) product as well. `"strided(*,2)"` leaves the
    start to the weights: every input channel takes the start in 0..stride-1 whose taps matter most. Linear layers have
    a kernel of one tap. Anwar, Hwang, Sung, Structured Pruning of Deep Convolutional Neural Networks, 2017.
    """

    example: ClassVar[str] = "strided(*,2)"
    decides: ClassVar[bool] = True
    start: int | str
    stride: int

    def __post_init__(self) -> None:
        check_size(self, "stride", self.stride)
        if self.start != "*":
            check_size(self, "start", self.start, least=0)

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        groups, outputs, inputs, taps = *shape[:3], prod(shape[3:])
        tap, channel = torch.arange(taps), torch.arange(groups * inputs)
        if self.start == "*":
            starts = min(self.stride, taps)
            ids = channel[:, None] * starts + tap % self.stride
            count = channel.numel() * starts
        else:
            kept = self._kept(tap)
            starts, ids = 1, torch.where(kept, channel[:, None], -1)
            count = channel.numel()
        by_input = ids.reshape(groups, 1, inputs, taps).expand(groups, outputs, inputs, taps).reshape(shape)
        return Grouping(by_input, count, torch.arange(count) // starts, 1)

    def _kept(self, tap: torch.Tensor) -> torch.Tensor:
        start = int(self.start)
        if start >= len(tap):
            raise InputError(
                explain(
                    f"start={start} lies behind a kernel of {len(tap)} taps",
                    where="pattern `strided`",
                    next_step="give a smaller start, or exclude layers with small kernels",
                )
            )
        return (tap >= start) & ((tap - start) % self.stride == 0)
