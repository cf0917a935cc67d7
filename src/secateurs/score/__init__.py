"""How much does a channel matter: one criterion per file, higher = keep."""

from secateurs.score import apoz, l1, l2, mean_activation, random
from secateurs.score.criterion import CRITERIA, Context, Criterion, criterion
from secateurs.score.score import score

__all__ = ["CRITERIA", "Context", "Criterion", "apoz", "criterion", "l1", "l2", "mean_activation", "random", "score"]
