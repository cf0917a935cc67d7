"""Whole kernels."""

from dataclasses import dataclass

from secateurs.sparsity.pattern import Grouping, Pattern, leading, pattern


@pattern("kernel")
@dataclass(frozen=True)
class Kernel(Pattern):
    """`W[o, i, ...]`: the kernel between one input and one output channel; a linear layer's weights stand alone.

    2-D of Mao et al., Exploring the Regularity of Sparse Structure, 2017.
    """

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        return leading(shape, 3)
