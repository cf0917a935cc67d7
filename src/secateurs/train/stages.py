"""What every long run of several trainings needs: a journal, a folder for each training, and one way to judge.

A run is resumed by running it again: trainings go on from their own checkpoints, metrics come from the journal, and
what is cheap is done once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.base.journal import Journal
from secateurs.train.checkpoint import digest
from secateurs.train.config import FineTune
from secateurs.train.distill import uses_teacher
from secateurs.train.evaluate import checked_metric
from secateurs.train.finetune import FineTuneResult, finetune

Evaluate = Callable[[nn.Module], float]


class Stages:
    """Trains and judges what comes of `model`; with a `folder`, so that a run that is killed goes on where it was."""

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        evaluate: Evaluate,
        folder: str | os.PathLike[str] | None,
        teacher: nn.Module | None = None,
    ) -> None:
        """`teacher` (default: `model`) is who every training learns from that distils.

        Raises `InputError` for an `evaluate` that is no function.
        """
        given: Any = evaluate
        if not callable(given):
            step = "give a function model -> float, higher is better, such as sec.accuracy(loader)"
            raise InputError(explain(f"evaluate={given!r} cannot be used", next_step=step))
        self.model, self.data, self.evaluate = model, data, evaluate
        self.teacher = model if teacher is None else teacher
        self.folder = None if folder is None else Path(folder)
        self.journal: Journal | None = None

    def identify(self, file: str, **run: Any) -> None:
        """Open the journal, if there is a folder. Raises `ArtifactError` if it belongs to another run."""
        if self.folder is not None:
            other = {} if self.teacher is self.model else {"teacher": _digest(self.teacher)}
            self.journal = Journal(self.folder / file, run={"weights": _digest(self.model), **other, **run})

    def once(self, step: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, or gave in an earlier call of the same run."""
        return compute() if self.journal is None else self.journal.once(step, compute)

    def metric(self, name: str, model: nn.Module) -> float:
        """The metric of the model, under this name."""
        return float(self.once(name, lambda: checked_metric(self.evaluate, model, name)))

    def train(self, place: str, model: nn.Module, config: FineTune, **more: Any) -> FineTuneResult:
        """Trained, with `more` arguments of `finetune`; a run of before gives its result at once."""
        watched = config.patience is not None or config.keep == "best"
        given = {"evaluate": self.evaluate if watched else None, **more}
        return finetune(
            model,
            self.data,
            config,
            teacher=self.teacher if uses_teacher(config.distil) else None,
            folder=None if self.folder is None else self.folder / place,
            **given,
        )


def _digest(model: nn.Module) -> str:
    return digest({name: item for name, item in model.state_dict().items() if isinstance(item, Tensor)})


__all__ = ["Evaluate", "Stages"]
