"""How much does a channel matter: one criterion per file, higher = keep."""

from secateurs.score import (
    apoz,
    bn_scale,
    fpgm,
    l1,
    l2,
    lasso,
    mean_activation,
    nisp,
    obd,
    oracle,
    random,
    taylor,
    taylor_gates,
    taylor_weights,
    thinet,
)
from secateurs.score.criterion import CRITERIA, Context, Criterion, criterion
from secateurs.score.score import score

__all__ = [
    "CRITERIA",
    "Context",
    "Criterion",
    "apoz",
    "bn_scale",
    "criterion",
    "fpgm",
    "l1",
    "l2",
    "lasso",
    "mean_activation",
    "nisp",
    "obd",
    "oracle",
    "random",
    "score",
    "taylor",
    "taylor_gates",
    "taylor_weights",
    "thinet",
]
