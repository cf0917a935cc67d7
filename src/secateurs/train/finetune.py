"""`finetune`: train a copy of a model, to its end, however often it is interrupted."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateurs.base.batches import Batches, derive, device_of
from secateurs.base.errors import InputError, TrainError, explain
from secateurs.base.seeds import seeded
from secateurs.sparsity.masks import nothing_left
from secateurs.sparsity.sparsify import Sparsifier, sparsify
from secateurs.sparsity.spec import Masks
from secateurs.train.config import FineTune
from secateurs.train.distill import Distillation, uses_teacher
from secateurs.train.evaluate import accuracy
from secateurs.train.gates import GateState, NodeGates
from secateurs.train.optimizer import build_optimizer, carry_over
from secateurs.train.place import start_fabric, state_to
from secateurs.train.progress import EpochRow
from secateurs.train.recalibrate import recalibrate_
from secateurs.train.run import SNAPSHOT, Run
from secateurs.train.soft import Filters

__all__ = ["FineTune", "FineTuneResult", "finetune"]

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class FineTuneResult:
    """A trained copy of the model, one row per epoch, and the optimizer as it stands over the copy's parameters.

    `best_epoch` is the epoch (from 1) of the best metric, None without a metric; with `keep="best"` the model has the
    weights of that epoch. `stopped_early` says that patience ran out. `masks`, where zeros were held, are bool by
    parameter name, True = kept; the model is free of hooks and has its zeros, exactly +0.0. `gates` says which units
    `FineTune(gates=...)` closed; the weights that read those are zero in the model.

    `last` are parameters and buffers after the last step by name, where `keep="best"` gave others to the model;
    `snapshot` those after the step that was asked for.
    """

    model: nn.Module
    history: Sequence[EpochRow]
    optimizer: Optimizer
    best_epoch: int | None = None
    stopped_early: bool = False
    masks: Masks | None = None
    last: dict[str, Tensor] | None = None
    snapshot: dict[str, Tensor] | None = None
    gates: GateState | None = None

    def __str__(self) -> str:
        zeros = "" if self.masks is None else f"  {'zeros':>6}"
        lines = [f"{'epoch':>5}  {'loss':>9}  {'lr':>9}  {'metric':>8}  {'seconds':>7}{zeros}"]
        for row in self.history:
            metric = "-" if row.metric is None else f"{row.metric:.4f}"
            zeros = "" if row.sparsity is None else f"  {row.sparsity:>6.1%}"
            best = "  best" if row.epoch == self.best_epoch else ""
            lines.append(
                f"{row.epoch:>5}  {row.loss:>9.4f}  {row.lr:>9.2g}  {metric:>8}  {row.seconds:>7.1f}{zeros}{best}"
            )
        return "\n".join([*lines, "stopped early"] if self.stopped_early else lines)


def finetune(
    model: nn.Module,
    data: Iterable[Any],
    config: FineTune | None = None,
    *,
    teacher: nn.Module | None = None,
    evaluate: Evaluate | None = None,
    validation: Iterable[Any] | None = None,
    resume: bool = True,
    folder: str | os.PathLike[str] | None = None,
    optimizer: Optimizer | None = None,
    masks: Masks | None = None,
    snapshot: int | None = None,
) -> FineTuneResult:
    """Train a copy of `model` on `data`; the model itself, its modes and the process's random states stay as they are.

    `data` is a DataLoader or any iterable of `(inputs, target)` that can be read again and again; inputs are a tensor,
    a tuple of arguments or a dict of keyword arguments. A model in eval mode is trained with every module in train
    mode; one in train mode keeps the modes its modules have, so that layers set to eval stay frozen. The metric after
    each epoch is `evaluate(model)` (higher is better), or the top-1 accuracy on `validation`.

    `optimizer` continues one made for `model` (see `cut_optimizer`) on the copy: its settings replace the config's,
    and the schedule scales its learning rates. `teacher` is the network to learn from when `config.distil` is set;
    by default the model as it comes in, where it is this training that prunes it (`config.sparsity` without
    `hold_zeros`, `soft` or `gates`, and no `masks`). Only a copy of the teacher runs, in eval mode, without gradients.
    `masks` (bool by parameter name, True = kept) are held as they are, or, with `config.sparsity`, are where it begins;
    those of parameters that it leaves out are held as they are then, too.
    `snapshot` is a number of steps after which the weights are noted, to rewind to.

    With a `folder`, the run leaves checkpoints in it, and the same call after a crash or a `kill -9` goes on from the
    last one; on a CPU it ends with the very bits of an undisturbed run. A folder whose run has ended gives its result
    at once. `resume=False` starts over. Several processes must see the same folder.

    Raises `TrainError` when the data is empty, a batch does not fit, the loss or the metric is not finite, or the
    checkpoint belongs to another run; `InputError` for arguments that contradict each other.
    """
    config = config or FineTune()
    if teacher is None and _prunes(config, masks):
        teacher = model
    _check(model, config, teacher, evaluate, validation, masks)
    if validation is not None:
        evaluate = accuracy(validation)
    place = Path(folder) if folder is not None else None
    with seeded(derive(config.seed, "run")):
        result = _train(model, data, config, teacher, evaluate, resume, place, optimizer, masks, snapshot)
    for message in nothing_left(result.masks or {}) if config.sparsity is not None else []:
        warnings.warn(message, stacklevel=2)
    return result


def _train(
    model: nn.Module,
    data: Iterable[Any],
    config: FineTune,
    teacher: nn.Module | None,
    evaluate: Evaluate | None,
    resume: bool,
    folder: Path | None,
    optimizer: Optimizer | None,
    masks: Masks | None,
    snapshot: int | None,
) -> FineTuneResult:
    home = device_of(model)
    fabric = start_fabric(config, home)
    student = _copy(model)
    batches = Batches(data, limit=config.batches, seed=config.seed, rank=fabric.global_rank, world=fabric.world_size)
    distillation = None
    if config.distil is not None and teacher is not None and uses_teacher(config.distil):
        distillation = Distillation(student, teacher, config.distil, fabric.device, fabric.autocast)
    try:
        soft = None if config.soft is None else Filters.of(model, batches, config.soft)
        gates = None if config.gates is None else NodeGates.of(student, batches, config.gates)
        steps = _optimizer(config, optimizer, model, student)
        sparsifier = _sparsifier(config, student, batches, masks)
        run = Run(
            config, fabric, student, steps, batches, distillation, evaluate, folder, soft, sparsifier, snapshot, gates
        )  # fmt: skip
        run.identify(model, teacher if distillation is not None else None, masks)
        if not (resume and run.resume()):
            if config.recalibrate:
                recalibrate_(student, data, batches=config.recalibrate, seed=config.seed)
            run.begin()
        run.train()
        run.finish()
    finally:
        batches.close()
        if distillation is not None:
            distillation.close()
    return _result(run, model, home)


def _result(run: Run, model: nn.Module, home: torch.device) -> FineTuneResult:
    """The student back on the model's device, with the model's own modes, and its optimizer with it."""
    student = run.student.to(home)
    state_to(run.optimizer.state, home)
    for module, original in zip(student.modules(), model.modules(), strict=True):
        module.training = original.training
    progress = run.progress
    masks = None if run.masks is None else {name: mask.to(home) for name, mask in run.masks.items()}
    snapshot = {name.removeprefix(SNAPSHOT): tensor.to(home) for name, tensor in run.noted.items()} or None
    last = None if run.last is None else {name: tensor.to(home) for name, tensor in run.last.items()}
    gates = None if run.gates is None else run.gates.state()
    return FineTuneResult(
        student, tuple(progress.history), run.optimizer, progress.best_epoch, progress.stopped_early, masks, last,
        snapshot, gates,
    )  # fmt: skip


def _sparsifier(config: FineTune, student: nn.Module, batches: Batches, masks: Masks | None) -> Sparsifier | None:
    """What holds the zeros of the student, if there are any to hold."""
    seed = derive(config.seed, "sparsity")
    if config.sparsity is not None:
        return config.sparsity.attach(
            student, per_epoch=batches.length, epochs=config.epochs, within=masks, data=batches.whole, loss=config.loss,
            seed=seed,
        )  # fmt: skip
    return None if masks is None else sparsify(student, masks, seed=seed)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise TrainError(
            explain(
                "The model cannot be copied, and training would change the original",
                evidence=str(error),
                next_step="drop tensors that are results of a computation from the module's attributes",
            )
        ) from error


def _prunes(config: FineTune, masks: Masks | None) -> bool:
    """Does this training put the first zeros in place, so that the model it is given is the unpruned one?"""
    zeros = config.sparsity is not None and not config.sparsity.hold_zeros
    return masks is None and (zeros or config.soft is not None or config.gates is not None)


def _optimizer(config: FineTune, given: Optimizer | None, model: nn.Module, student: nn.Module) -> Optimizer:
    if given is not None:
        return carry_over(given, model, student, {})
    return build_optimizer(config, (parameter for parameter in student.parameters() if parameter.requires_grad))


def _check(
    model: nn.Module,
    config: FineTune,
    teacher: nn.Module | None,
    evaluate: Evaluate | None,
    validation: Iterable[Any] | None,
    masks: Masks | None,
) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(explain(f"The model is a {type(model).__name__}", next_step="pass a torch.nn.Module"))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            explain(
                "The model has no parameter to train", next_step="set `requires_grad_(True)` where you want training"
            )
        )
    if evaluate is not None and validation is not None:
        raise InputError(
            explain("Both `evaluate` and `validation` are given", next_step="pass one; `validation` means its accuracy")
        )
    metric = evaluate is not None or validation is not None
    for setting, used in (("patience", config.patience is not None), ('keep="best"', config.keep == "best")):
        if used and not metric:
            raise InputError(
                explain(f"FineTune({setting}) needs a metric", next_step="pass `evaluate=` or `validation=`")
            )
    if masks is not None and config.gates is not None:
        raise InputError(
            explain("Masks cannot be held together with gates", next_step="close units first, then prune weights")
        )
    if teacher is None and uses_teacher(config.distil):
        raise InputError(
            explain(
                "Distillation needs a teacher",
                evidence="this training does not prune the model, which may be cut already",
                next_step="pass `teacher=`, for example the model before the cut",
            )
        )
