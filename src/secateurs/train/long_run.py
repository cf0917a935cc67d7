"""What a method of several trainings needs at every step: where it leaves its traces, and how it trains and judges."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateurs.base.journal import Journal
from secateurs.choose import Plan
from secateurs.train.checkpoint import digest
from secateurs.train.config import FineTune
from secateurs.train.distill import uses_teacher
from secateurs.train.evaluate import checked_metric
from secateurs.train.finetune import FineTuneResult, finetune


class LongRun:
    """Trains and judges models on the way from `model`. With a `journal`, what was done is not done again.

    Trainings go on from checkpoints in folders beside the journal; other results are its lines.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        evaluate: Callable[[nn.Module], float] | None,
        journal: Path | None,
    ) -> None:
        self.model, self.data, self.evaluate = model, data, evaluate
        self._path = journal
        self._journal: Journal | None = None

    def identify(self, **run: Any) -> None:
        """Open the journal, if there is one. Raises `ArtifactError` if it belongs to another run."""
        if self._path is not None:
            tensors = {name: item for name, item in self.model.state_dict().items() if isinstance(item, Tensor)}
            self._journal = Journal(self._path, run={"weights": digest(tensors), **run})

    def once(self, step: str, compute: Callable[[], Any]) -> Any:
        """The result of a step, computed or read back."""
        return compute() if self._journal is None else self._journal.once(step, compute)

    def metric(self, name: str, model: nn.Module) -> float:
        """What `evaluate` says of a model. Raises `TrainError`."""
        evaluate = self.evaluate
        assert evaluate is not None
        return float(self.once(name, lambda: checked_metric(evaluate, model, name)))

    def plan(self, place: str, make: Callable[[], Plan]) -> Plan:
        """A plan, made or read back."""
        return Plan.from_json(self.once(f"{place}/plan", lambda: make().to_json()))

    def train(self, place: str, model: nn.Module, config: FineTune, **more: Any) -> FineTuneResult:
        """A training, with the original as teacher where there is to be one; one of before gives its result at once."""
        watched = config.patience is not None or config.keep == "best"
        return finetune(
            model,
            self.data,
            config,
            teacher=self.model if uses_teacher(config.distil) else None,
            evaluate=self.evaluate if watched else None,
            folder=None if self._path is None else self._path.parent / place,
            **more,
        )


__all__ = ["LongRun"]
