"""How much does a channel matter: one criterion per file, higher = keep."""

from secateurs.score import l1, l2, random
from secateurs.score.criterion import CRITERIA, Context, Criterion, score

__all__ = ["CRITERIA", "Context", "Criterion", "l1", "l2", "random", "score"]
