"""The criteria: one file each, named as it is registered."""

from secateurs.score.criteria import (
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

__all__ = [
    "apoz", "bn_scale", "fpgm", "l1", "l2", "lasso", "mean_activation", "nisp", "obd", "oracle", "random", "taylor",
    "taylor_gates", "taylor_weights", "thinet",
]  # fmt: skip
