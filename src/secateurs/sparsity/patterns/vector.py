"""Rows of kernels."""

from dataclasses import dataclass

from secateurs.sparsity.pattern import Grouping, Pattern, leading, pattern


@pattern("vector")
@dataclass(frozen=True)
class Vector(Pattern):
    """`W[o, i, r, :]`: one row of one kernel; a linear layer's weights stand alone.

    1-D of Mao et al., Exploring the Regularity of Sparse Structure, 2017.
    """

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        return leading(shape, max(3, len(shape) - 1))
