"""What every cell of the MNIST table does, as data, and what it must reach."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.mnist_compress import Sharing, Sparse
from benchmarks.mnist_train import Training

COPIES, TAUGHT = 6, 4
"""Copies of every training image, itself the first and the others distorted; how many of them a teacher speaks of."""

TEACHERS = (("lenet_5", 0), ("lenet_5", 1))
"""The dense augmented networks, by seed, whose mean logits teach."""

COLUMNS = {
    "augmented": "distorted copies, distilled from two dense LeNet-5",
    "plain": "the training images as they are, no teacher",
}


FURTHER = {90: 56, 120: 90, 135: 90, 150: 90, 220: 150}
"""LeNet-300-100 on its way to as few weights as it takes: one in so many, and where that stage begins."""

TOO_FEW = (220,)
"""What validation refused: made only where it is named."""


@dataclass(frozen=True)
class Stage:
    """One weight of `keep` is left, counted on the original; begins where the stage `start` ended.

    `widths`: hidden units to which the network is cut before, by the weights' size; None: as it is.
    """

    keep: int
    start: int | None
    sparse: Sparse
    sharing: Sharing
    widths: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Bar:
    """Error in per cent on the 10,000 test images, and how many times smaller the file must be (0: any size)."""

    error: float
    times: float = 0.0


BARS = {
    ("lenet_300_100", 22): Bar(1.15, 60),
    ("lenet_300_100", 56): Bar(1.50, 120),
    **{("lenet_300_100", keep): Bar(1.99) for keep in FURTHER},
    ("lenet_5", 108): Bar(0.72, 250),
    ("lenet_5", 246): Bar(0.95, 400),
}


def _stages(net: str, column: str) -> tuple[Stage, ...]:
    taught = column == "augmented"
    alpha = 0.9 if taught else 0.0
    sharing = Sharing(4, 4, Training(1, 5e-4, 128, alpha=alpha))
    if net == "lenet_300_100":
        first, then, last = (
            Sparse(Training(epochs if taught else epochs // 2, 2e-3, 128, alpha=alpha), every=100)
            for epochs in (30, 30, 20)
        )
        further = tuple(Stage(keep, start, last, sharing) for keep, start in FURTHER.items())
        return (Stage(22, None, first, sharing), Stage(56, 22, then, sharing), *further)
    sparse = Sparse(Training(12 if taught else 8, 3e-3, 128, alpha=alpha))
    return (Stage(108, None, sparse, sharing, (8, 24, 96)), Stage(246, 108, sparse, sharing))


DENSE = {"lenet_300_100": Training(8, 2e-3, 256), "lenet_5": Training(3, 2e-3, 128)}
STAGES = {(net, column): _stages(net, column) for net in DENSE for column in COLUMNS}


def stage(net: str, column: str, keep: int) -> Stage:
    return next(item for item in STAGES[net, column] if item.keep == keep)


def settings(net: str, column: str, keep: int | None) -> dict[str, Any]:
    """All that decides the result of a cell but its seed."""
    augmented = {"copies": COPIES} if column == "augmented" else {}
    if keep is None:
        return {**augmented, "training": asdict(DENSE[net])}
    mine = stage(net, column, keep)
    taught = {"taught": TAUGHT, "teachers": [[*item, settings(item[0], column, None)] for item in TEACHERS]}
    teacher = taught if mine.sparse.training.alpha else {}
    return {**augmented, **teacher, "stage": asdict(mine), "before": settings(net, column, mine.start)}


def epochs(net: str, column: str, keep: int | None) -> int:
    """Passes over the training images from the beginning, those of the dense twin included."""
    if keep is None:
        return DENSE[net].epochs
    mine = stage(net, column, keep)
    return mine.sparse.training.epochs + epochs(net, column, mine.start)
