"""Adjacent output channels that share their zeros."""

from dataclasses import dataclass
from typing import ClassVar

from secateurs.sparsity.pattern import Grouping, Pattern, check_size, pattern, tiles


@pattern("rows")
@dataclass(frozen=True)
class Rows(Pattern):
    """`k` adjacent output channels share one mask (per convolution group): one list of offsets serves `k` sums."""

    example: ClassVar[str] = "rows(4)"
    k: int

    def __post_init__(self) -> None:
        check_size(self, "k", self.k)

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        return tiles(shape, self.k, 1)
