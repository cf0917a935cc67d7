"""What a run has done so far: the rows of its history and its position."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class EpochRow:
    """One epoch, counted from 1: mean training loss per row, last learning rate, metric after it, wall-clock seconds.

    `loss` is without the penalty; `penalty`, if there is one, is what was added to it after the last batch. `seconds`
    includes the evaluation. After a resume it is the time actually spent on the batches that count. `sparsity`, where
    masks are held, is the share of masked weights that is zero after the epoch.
    """

    epoch: int
    loss: float
    lr: float
    metric: float | None
    seconds: float
    penalty: float | None = None
    sparsity: float | None = None


@dataclass
class Progress:
    """The position in the run and what has been summed up so far; everything but the tensors of a checkpoint."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    best_metric: float | None = None
    best_epoch: int | None = None
    stopped_early: bool = False
    finished: bool = False
    strength: float | None = None
    history: list[EpochRow] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        return cls(**{**data, "history": [EpochRow(**row) for row in data["history"]]})

    def close_epoch(self, row: EpochRow, patience: int | None, epochs: int, *, counts: bool = True) -> bool:
        """Take in a finished epoch. Returns whether its metric is the best so far, of those epochs that count."""
        self.history.append(row)
        best = counts and row.metric is not None and (self.best_metric is None or row.metric > self.best_metric)
        if best:
            self.best_metric, self.best_epoch = row.metric, row.epoch
        self.epoch, self.batch, self.loss_sum, self.rows, self.seconds = row.epoch, 0, 0.0, 0.0, 0.0
        waited = row.epoch - (self.best_epoch or 0)
        self.stopped_early = counts and patience is not None and waited >= patience and row.epoch < epochs
        self.finished = self.stopped_early or row.epoch >= epochs
        return best
