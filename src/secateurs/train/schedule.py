"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from secateurs.train.config import FineTune


def factor(config: FineTune, step: int, steps_per_epoch: int) -> float:
    """What the base learning rate is multiplied by at `step` (0 is the first).

    With `w` warm-up steps and `t` steps in all: `(step + 1) / (w + 1)` while `step < w`; then
    `(1 + cos(pi * (step - w) / (t - w))) / 2` for `"cosine"`, `gamma` to the number of milestones passed (fractions of
    `t`) for `"step"`, and 1 for `"constant"`. Cosine: Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    total = max(1, config.epochs * steps_per_epoch)
    warm = min(round(config.warmup * steps_per_epoch), total - 1)
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
    if config.schedule == "step":
        return config.gamma ** sum(step >= milestone * total for milestone in config.milestones)
    return 1.0
