"""How much to remove, and where: one search per file -> `Plan`."""

from secateurs.choose.budget import Budget
from secateurs.choose.choose import choose, plan
from secateurs.choose.compose import compose
from secateurs.choose.plan import GroupDecision, Plan
from secateurs.choose.search import SEARCHES

__all__ = ["SEARCHES", "Budget", "GroupDecision", "Plan", "choose", "compose", "plan"]
