"""`FineTune`: how to train, as plain data that a recipe can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.loss import losses
from secateurs.base.seeds import check_seed
from secateurs.sparsity.settings import Sparsity
from secateurs.train.distill import Distill
from secateurs.train.gates import Gates
from secateurs.train.penalty import Penalty
from secateurs.train.soft import Soft

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "step")
PRECISIONS = ("32-true", "bf16-mixed")
KEEP = ("best", "last")

_DECIDES_NOTHING = ("accelerator", "devices", "strategy", "nodes", "checkpoint_epochs", "checkpoint_steps", "progress")


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """How to train a cut model.

    *What is minimised.* `loss` is `"cross_entropy"`, `"binary_cross_entropy"`, `"mse"`, or a callable
    `(outputs, target) -> scalar` that averages over the batch's rows; `distil` adds a teacher's opinion, `penalty` a
    price on large weights, `soft` sets the smallest filters to zero after every epoch, from where they may return,
    `sparsity` puts zeros in place as its schedule says and holds them, and `gates` lets the training itself close units
    (see `Gates`; it goes with none of the three before).

    *How.* `optimizer` `"sgd"` (with `momentum`), `"adam"` or `"adamw"`, with `lr` and `weight_decay`; gradients longer
    than `clip_norm` (2-norm over all parameters) are shortened to it. `schedule` scales the learning rate at every
    step: `"cosine"` to zero, `"step"` by `gamma` at each of `milestones` (fractions of the training), `"constant"`;
    the first `warmup` epochs (a float) rise linearly. `recalibrate` batches refresh batch-norm statistics before the
    first step.

    *How long.* `epochs` passes of at most `batches` batches. With a metric (`evaluate` or `validation`), training
    stops after `patience` epochs without a new best one, and `keep="best"` gives back the weights that reached it.
    With `sparsity`, epochs before the final sparsity is reached count for neither.

    *Where.* `accelerator="model"` trains on the device that holds the model; other values, `devices`, `strategy`
    (`"auto"` or `"ddp"`), `nodes` and `precision` (`"32-true"` or `"bf16-mixed"`) are Lightning Fabric's. Under
    `torchrun`, `devices="auto"` takes what was launched. A batch is shared out among the processes, so the number of
    processes does not change what is computed, except that batch norm sees the share.

    *Safety.* A checkpoint is written every `checkpoint_epochs` epochs and, if given, every `checkpoint_steps` steps.
    `seed` fixes the order of the data and every random draw.

    Raises `UnknownNameError` for an unknown name and `InputError` for a number out of range.
    """

    epochs: int = 3
    optimizer: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    loss: str | Callable[..., Any] = "cross_entropy"
    distil: Distill | None = None
    penalty: Penalty | None = None
    soft: Soft | None = None
    sparsity: Sparsity | None = None
    gates: Gates | None = None
    batches: int | None = None
    patience: int | None = None
    keep: str = "last"
    recalibrate: int = 0
    precision: str = "32-true"
    accelerator: str = "model"
    devices: int | str = "auto"
    strategy: str = "auto"
    nodes: int = 1
    seed: int = 0
    checkpoint_epochs: int = 1
    checkpoint_steps: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        _known("optimizer", self.optimizer, OPTIMIZERS)
        _known("schedule", self.schedule, SCHEDULES)
        _known("precision", self.precision, PRECISIONS)
        _known("keep", self.keep, KEEP)
        if not callable(self.loss):
            _known("loss", self.loss, losses)
        for name in ("epochs", "recalibrate"):
            _whole(name, getattr(self, name), at_least=0)
        for name in ("batches", "patience", "checkpoint_steps"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), at_least=1)
        for name in ("nodes", "checkpoint_epochs"):
            _whole(name, getattr(self, name), at_least=1)
        for name in ("lr", "gamma"):
            _finite(name, getattr(self, name), above=0.0)
        for name in ("momentum", "weight_decay", "warmup"):
            _finite(name, getattr(self, name), at_least=0.0)
        if self.clip_norm is not None:
            _finite("clip_norm", self.clip_norm, above=0.0)
        for milestone in self.milestones:
            _finite("milestones", milestone, above=0.0, below=1.0)
        check_seed(self.seed)
        if self.soft is not None and self.sparsity is not None:
            raise InputError(
                explain("FineTune has both `soft` and `sparsity`", next_step="let one of them decide what becomes zero")
            )
        self._check_gates()

    def _check_gates(self) -> None:
        others = {
            "penalty": self.penalty is not None,
            "soft": self.soft is not None,
            "sparsity": self.sparsity is not None,
            'keep="best"': self.keep == "best",
        }
        if self.gates is not None and any(others.values()):
            raise InputError(
                explain(
                    f"Gates cannot be trained with {next(name for name, given in others.items() if given)}",
                    where="FineTune(gates=...)",
                    next_step="leave it out: gates follow the loss alone, and count as they stand at the end",
                )
            )

    def identity(self) -> dict[str, Any]:
        """What decides the trained weights, as JSON data: everything but where it runs and how it reports."""
        data = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _DECIDES_NOTHING}
        data["milestones"] = list(self.milestones)
        for part in ("distil", "penalty", "soft"):
            given = getattr(self, part)
            data[part] = given.identity() if given is not None else None
        del data["sparsity"], data["gates"]
        if self.sparsity is not None:
            data["sparsity"] = self.sparsity.identity()
        if self.gates is not None:
            data["gates"] = self.gates.identity()
        if not isinstance(self.loss, str):
            data["loss"] = callable_name(self.loss)
        return data


def callable_name(loss: Callable[..., Any]) -> str:
    """A name that is the same in the next process: without the address that Python shows by default."""
    if hasattr(loss, "__qualname__"):
        return f"{loss.__module__}:{loss.__qualname__}"
    kind = type(loss)
    described = any("__repr__" in vars(base) for base in kind.__mro__[:-1])
    return repr(loss) if described else f"{kind.__module__}:{kind.__qualname__}"


def _known(field: str, name: object, valid: Iterable[str]) -> None:
    names = sorted(valid)
    if isinstance(name, str) and name in names:
        return
    close = nearest(str(name), names)
    raise UnknownNameError(
        explain(
            f"There is no {field} named {name!r}",
            where=f"FineTune({field}=...)",
            evidence=f"known: {', '.join(names)}",
            next_step=f"did you mean {' or '.join(map(repr, close))}?" if close else "pick one of the known names",
        )
    )


def _whole(field: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(
            explain(f"FineTune({field}={value!r}) cannot be used", next_step=f"give an integer of at least {at_least}")
        )


def _finite(
    field: str, value: object, *, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and above < value < below and value >= at_least:  # type: ignore[operator]
        return
    low = f"above {above:g}" if above > -math.inf else f"of at least {at_least:g}"
    high = f" and below {below:g}" if below < math.inf else ""
    raise InputError(
        explain(f"FineTune({field}={value!r}) cannot be used", next_step=f"give a finite number {low}{high}")
    )
