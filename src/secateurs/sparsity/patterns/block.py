"""Rectangular blocks."""

from dataclasses import dataclass
from typing import ClassVar

from secateurs.sparsity.pattern import Grouping, Pattern, check_size, pattern, tiles


@pattern("block")
@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of `rows` output channels x `columns` weights of the matrix `[O, I * prod(K)]` (per convolution group)."""

    example: ClassVar[str] = "block(4,4)"
    rows: int
    columns: int

    def __post_init__(self) -> None:
        check_size(self, "rows", self.rows)
        check_size(self, "columns", self.columns)

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        return tiles(shape, self.rows, self.columns)
