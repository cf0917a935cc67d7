"""Whole filters."""

from dataclasses import dataclass

from secateurs.sparsity.pattern import Grouping, Pattern, leading, pattern


@pattern("filter")
@dataclass(frozen=True)
class Filter(Pattern):
    """`W[o, ...]`: everything that produces one output channel or neuron; its bias stays.

    3-D of Mao et al., Exploring the Regularity of Sparse Structure, 2017.
    """

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        return leading(shape, 2)
