"""How much to remove, and where: one search per file -> `Plan`."""

from secateurs.choose.budget import Budget
from secateurs.choose.choose import choose, plan
from secateurs.choose.compose import compose
from secateurs.choose.layer_compensated import layer_compensated
from secateurs.choose.masked import masked_accuracy
from secateurs.choose.plan import GroupDecision, Plan
from secateurs.choose.search import SEARCHES

__all__ = [
    "SEARCHES",
    "Budget",
    "GroupDecision",
    "Plan",
    "choose",
    "compose",
    "layer_compensated",
    "masked_accuracy",
    "plan",
]
