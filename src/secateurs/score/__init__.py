"""How much does a channel matter, higher = keep: the criteria, and what they share."""

from secateurs.score import criteria
from secateurs.score.criterion import CRITERIA, Context, Criterion, criterion
from secateurs.score.score import score

__all__ = ["CRITERIA", "Context", "Criterion", "criteria", "criterion", "score"]
