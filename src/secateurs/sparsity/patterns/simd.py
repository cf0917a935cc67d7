"""Adjacent weights that fill a SIMD register."""

from dataclasses import dataclass
from typing import ClassVar

from secateurs.sparsity.pattern import Grouping, Pattern, check_size, pattern, tiles


@pattern("simd")
@dataclass(frozen=True)
class Simd(Pattern):
    """`k` adjacent weights of a row of the matrix `[O, I * prod(K)]`, aligned; the row's last group may be shorter.

    A group's importance is its RMS by default, over the weights it really has. Yu et al., Scalpel, 2017.
    """

    example: ClassVar[str] = "simd(8)"
    importance: ClassVar[str] = "rms"
    k: int

    def __post_init__(self) -> None:
        check_size(self, "k", self.k)

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        return tiles(shape, 1, self.k)
