"""Whole filters."""

from dataclasses import dataclass

from secateurs.sparsity.pattern import Grouping, Pattern, leading, pattern


@pattern("filter")
@dataclass(frozen=True)
class Filter(Pattern):
    """`W[o, ...]` of a convolution: all that produces one output channel; its bias stays. A linear layer's weights
    stand alone, as in `kernel` and `vector`: a row less would silence a neuron, and in the last layer a class. Whole
    neurons go with `sec.prune`.

    3-D of Mao et al., Exploring the Regularity of Sparse Structure, 2017.
    """

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        return leading(shape, 2 if len(shape) > 3 else 3)
