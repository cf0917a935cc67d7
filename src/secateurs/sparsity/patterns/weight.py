"""Single weights."""

from dataclasses import dataclass

from secateurs.sparsity.pattern import Grouping, Pattern, leading, pattern


@pattern("weight")
@dataclass(frozen=True)
class Weight(Pattern):
    """Every weight on its own: the most accurate pattern at a given density, and the hardest to make fast.

    0-D of Mao et al., Exploring the Regularity of Sparse Structure, 2017.
    """

    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        return leading(shape, len(shape))
