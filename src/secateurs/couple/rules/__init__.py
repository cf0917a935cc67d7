"""One small rule per operator: how ids pass through it, and what it ties.

A rule is a function `(coupler, node)` registered for operator names without overload (`"aten.conv2d"`). Adding an
operator is one function here; operators without a rule freeze whatever they touch.
"""

from secateurs.couple.rules import (
    attention,
    convolution,
    elementwise,
    indexing,
    movement,
    norm,
    product,
    recurrent,
    reduction,
    regions,
)
from secateurs.couple.rules.registry import RULES, Rule, apply_rule

__all__ = [
    "RULES",
    "Rule",
    "apply_rule",
    "attention",
    "convolution",
    "elementwise",
    "indexing",
    "movement",
    "norm",
    "product",
    "recurrent",
    "reduction",
    "regions",
]
