"""One training run: the step, the epoch, and where it stands on disk."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor, nn
from torch.optim import Optimizer

from secateurs.base.batches import Batches, derive, reseed, rows, split
from secateurs.base.errors import TrainError, explain
from secateurs.base.loss import Loss, describe, losses
from secateurs.base.seeds import seeded
from secateurs.sparsity.sparsify import Sparsifier
from secateurs.sparsity.spec import Masks
from secateurs.train import checkpoint
from secateurs.train.config import FineTune
from secateurs.train.distill import Distillation
from secateurs.train.evaluate import checked_metric
from secateurs.train.failure import brief
from secateurs.train.failure import run as forward_pass
from secateurs.train.gates import NodeGates
from secateurs.train.penalty import Penalty, balanced
from secateurs.train.place import average_, buffers_from_first, from_first, total
from secateurs.train.progress import EpochRow, Progress
from secateurs.train.schedule import factor
from secateurs.train.soft import Filters

BEST, BEST_MASK, SPARSITY, SNAPSHOT = "best/", "best mask/", "sparsity/", "snapshot/"
"""In a checkpoint: the best weights, their masks, the state of the sparsifier, and the weights to rewind to."""


class Run:
    """Trains `student` in place, step by step, from wherever `progress` stands.

    The order of the data depends on the seed and the epoch, the random draws of a step on the seed, the step and the
    process. So the position, the tensors of model and optimizer, and the sums of the current epoch are all that a
    checkpoint has to hold.
    """

    def __init__(
        self,
        config: FineTune,
        fabric: Fabric,
        student: nn.Module,
        optimizer: Optimizer,
        batches: Batches,
        distillation: Distillation | None,
        evaluate: Callable[[nn.Module], float] | None,
        folder: Path | None,
        soft: Filters | None = None,
        sparsifier: Sparsifier | None = None,
        snapshot: int | None = None,
        gates: NodeGates | None = None,
    ) -> None:
        self.soft, self.sparsifier, self.snapshot, self.gates = soft, sparsifier, snapshot, gates
        self.masks: Masks | None = None
        self.noted: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] | None = None
        self.config, self.fabric, self.student, self.optimizer = config, fabric, student, optimizer
        self.batches, self.distillation, self.evaluate, self.folder = batches, distillation, evaluate, folder
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self._identity: dict[str, Any] = {}
        self._loss: Loss = losses[config.loss] if isinstance(config.loss, str) else config.loss
        self._base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        if not student.training:
            student.train()
        self._modes = [(module, module.training) for module in student.modules()]
        self._wrapped, self._stepper = fabric.setup(student, optimizer)

    def identify(self, model: nn.Module, teacher: nn.Module | None, masks: Masks | None) -> None:
        """Note what makes this run this run, so that a checkpoint of another one is refused."""
        if self.folder is None:
            return
        start = checkpoint.model_tensors(model)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        momentum, counters = checkpoint.optimizer_parts(self.optimizer)
        identity = {
            "model tensors": checkpoint.shapes(start),
            "config": self.config.identity(),
            "batches per epoch": self.batches.length,
            "metric": self.evaluate is not None,
            "optimizer": {"class": type(self.optimizer).__name__, "groups": settings, "state": counters},
            "optimizer tensors": checkpoint.digest(momentum),
            "starting weights": checkpoint.digest(start),
            "teacher weights": checkpoint.digest(checkpoint.model_tensors(teacher)) if teacher is not None else None,
        }
        if masks is not None:
            identity["masks"] = checkpoint.digest(masks)
        if self.snapshot is not None:
            identity["snapshot"] = self.snapshot
        self._identity = json.loads(json.dumps(identity, default=str))

    def resume(self) -> bool:
        """Go to where the checkpoint stands. False if there is none. Raises `TrainError` if it is another run's."""
        stored = checkpoint.read(self.folder) if self.folder is not None else None
        everywhere = total(self.fabric, float(stored is not None))
        if stored is None or self.folder is None or everywhere < self.fabric.world_size:
            if everywhere:
                raise TrainError(
                    explain(
                        "Not every process sees the checkpoint",
                        where=str(self.folder),
                        evidence=f"{everywhere:.0f} of {self.fabric.world_size} processes found it",
                        next_step="use a folder on a file system that all hosts share",
                    )
                )
            return False
        tensors, record = stored
        checkpoint.check_same_run(self.folder, record["run"], self._identity)
        self.progress = Progress.from_json(record["progress"])
        checkpoint.load_model(self.student, tensors, "model/")
        checkpoint.load_optimizer(self.optimizer, tensors, record["optimizer"])
        if self.sparsifier is not None:
            mine = {name: tensor for name, tensor in tensors.items() if name.startswith(SPARSITY)}
            self.sparsifier.load_state_dict({name.removeprefix(SPARSITY): tensor for name, tensor in mine.items()})
        self.best = {name: tensor for name, tensor in tensors.items() if name.startswith((BEST, BEST_MASK))}
        self.noted = {name: tensor for name, tensor in tensors.items() if name.startswith(SNAPSHOT)}
        if self.gates is not None:
            self.gates.load(tensors, "gates/")
        return True

    def begin(self) -> None:
        """Start from nothing: a checkpoint of an earlier run in the folder is replaced."""
        self.progress.finished = self.config.epochs == 0
        penalty = self.config.penalty
        if penalty is not None and not self.progress.finished:
            self.progress.strength = self._strength(penalty)
        self._note()
        self._save()

    def train(self) -> None:
        """Train to the end, or to early stopping. Raises `TrainError`."""
        if self.progress.finished:
            return
        columns = (TextColumn("fine-tune {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self.config.progress or not self.fabric.is_global_zero
        with Bar(*columns, console=Console(stderr=True), disable=hidden) as bar:
            steps = self.config.epochs * self.batches.length
            task = bar.add_task("", total=steps, completed=self._step_number)
            while not self.progress.finished:
                self._epoch(lambda loss: bar.update(task, advance=1, description=self._describe(loss)))

    def finish(self) -> None:
        """Put the weights to return in place and take everything that only training needed off the model."""
        self._stepper.zero_grad(set_to_none=True)
        buffers_from_first(self.fabric, self.student)
        if self.sparsifier is not None:
            self.sparsifier.detach()
            self.masks = self.sparsifier.masks
        if self.config.keep == "best" and self.best:
            self.last = self._tensors("")
            checkpoint.load_model(self.student, self.best, BEST)
            if self.masks is not None:
                self.masks = {name: self.best[BEST_MASK + name].to(mask.device) for name, mask in self.masks.items()}
        if self.soft is not None:
            self.soft.zero(self.student)

    @property
    def _step_number(self) -> int:
        return self.progress.epoch * self.batches.length + self.progress.batch

    def _epoch(self, report: Callable[[float], None]) -> None:
        """The rest of the current epoch, its evaluation and its checkpoint."""
        progress = self.progress
        earlier, started = progress.seconds, time.perf_counter()
        for module, mode in self._modes:
            module.training = mode
        for batch in self.batches.epoch(progress.epoch, skip=progress.batch):
            lr = self._set_lr()
            loss, count = self._step(batch)
            progress.batch += 1
            self._note()
            progress.loss_sum += loss * count
            progress.rows += count
            progress.seconds = earlier + time.perf_counter() - started
            report(loss)
            every = self.config.checkpoint_steps
            if every and progress.batch < self.batches.length and self._step_number % every == 0:
                self._save()
        if self.soft is not None and self.soft.due(progress.epoch + 1):
            self.soft.zero(self.student)
        buffers_from_first(self.fabric, self.student)
        metric = self._metric()
        seconds = earlier + time.perf_counter() - started
        price = self._penalty()
        paid = None if price is None else float(price.detach())
        zeros = None if self.sparsifier is None else self.sparsifier.sparsity
        settled = self.sparsifier is None or self.sparsifier.settled()
        row = EpochRow(progress.epoch + 1, progress.loss_sum / progress.rows, lr, metric, seconds, paid, zeros)
        best = progress.close_epoch(row, self.config.patience, self.config.epochs, counts=settled)
        if best and self.config.keep == "best":
            self.best = self._tensors(BEST)
            if self.sparsifier is not None:
                self.best |= {BEST_MASK + name: mask.clone() for name, mask in self.sparsifier.masks.items()}
        if progress.finished or progress.epoch % self.config.checkpoint_epochs == 0:
            self._save()

    def _step(self, batch: Any) -> tuple[float, float]:
        """One update. Returns the mean loss over all processes' rows and how many rows there were."""
        place = f"epoch {self.progress.epoch + 1}, batch {self.progress.batch}"
        inputs, target = split(self.fabric.to_device(batch), place)
        seed = derive(self.config.seed, "step", self._step_number, self.fabric.global_rank)
        _seed_step(seed, self.fabric.device)
        outputs = forward_pass(self.student, inputs, place, through=self._wrapped)
        loss = self._loss_of(outputs, target, place)
        if self.distillation is not None:
            loss = self.distillation.loss(inputs, outputs, loss)
        own = rows(inputs)
        count = total(self.fabric, own)
        if self.fabric.world_size > 1:
            loss = loss * (own * self.fabric.world_size / count)
        value = total(self.fabric, float(loss.detach())) / self.fabric.world_size
        self._check_finite(value, place)
        price = self._penalty()
        loss = loss if price is None else loss + price
        self.fabric.backward(loss)
        if self.gates is not None:
            self.gates.learn(float(self.optimizer.param_groups[0]["lr"]))
        if self.config.clip_norm is not None:
            self.fabric.clip_gradients(self._wrapped, self._stepper, max_norm=self.config.clip_norm)
        self._stepper.step()
        if self.gates is not None:
            self.gates.settle()
        if self.sparsifier is not None:
            average_(self.fabric, self.sparsifier.watched.values())
            self.sparsifier.step()
        self._stepper.zero_grad(set_to_none=True)
        return value, count

    def _note(self) -> None:
        """Keep the weights of this step, if they are asked for."""
        if self.snapshot == self._step_number:
            self.noted = self._tensors(SNAPSHOT)

    def _strength(self, penalty: Penalty) -> float:
        """The penalty's weight; measured by the first process if it is to balance the loss."""
        if not isinstance(penalty.strength, str):
            return float(penalty.strength)
        with seeded(derive(self.config.seed, "balance")):
            measured = balanced(penalty, self.student, self.batches.whole, self._loss, self.config.seed)
        return from_first(self.fabric, measured)

    def _penalty(self) -> Tensor | None:
        """What is added to the loss at the student's present weights; the same in every process."""
        penalty, strength = self.config.penalty, self.progress.strength
        return None if penalty is None or strength is None else strength * penalty.value(self.student)

    def _loss_of(self, outputs: Any, target: Any, place: str) -> Tensor:
        try:
            loss = self._loss(outputs, target)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise TrainError(
                explain(
                    "The loss cannot be computed on this batch",
                    where=f"{place}, loss {self.config.loss!r}",
                    evidence=f"outputs {describe(outputs)}, target {describe(target)}; {brief(error)}",
                    next_step="check the target's shape and type, or pass a loss that fits the outputs",
                )
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TrainError(
                explain(
                    "The loss is not one number",
                    where=f"{place}, loss {self.config.loss!r}",
                    evidence=f"it is {describe(loss)}",
                    next_step="return the mean over the batch's rows",
                )
            )
        return loss

    def _check_finite(self, loss: float, place: str) -> None:
        if math.isfinite(loss):
            return
        lr = self.optimizer.param_groups[0]["lr"]
        raise TrainError(
            explain(
                "The loss is not finite",
                where=f"step {self._step_number} ({place})",
                evidence=f"loss {loss} at learning rate {lr:g}",
                next_step="lower `lr`, add `warmup` or `clip_norm`, or look for nan in the data",
            )
        )

    def _set_lr(self) -> float:
        scale = factor(self.config, self._step_number, self.batches.length)
        for group, base in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * scale
        return float(self.optimizer.param_groups[0]["lr"])

    def _metric(self) -> float | None:
        if self.evaluate is None:
            return None
        metric = checked_metric(self.evaluate, self.student, f"after epoch {self.progress.epoch + 1}")
        return from_first(self.fabric, metric)

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        return {prefix + name: value.detach().clone() for name, value in checkpoint.model_tensors(self.student).items()}

    def _save(self) -> None:
        if self.folder is None or not self.fabric.is_global_zero:
            return
        state, plain = checkpoint.optimizer_parts(self.optimizer)
        held = {} if self.sparsifier is None else self.sparsifier.state_dict()
        masks = {SPARSITY + name: tensor for name, tensor in held.items()}
        tensors = {**self._tensors("model/"), **state, **self.best, **masks, **self.noted}
        if self.gates is not None:
            tensors |= self.gates.tensors("gates/")
        record = {"run": self._identity, "progress": self.progress.to_json(), "optimizer": plain}
        checkpoint.write(self.folder, tensors, record)

    def _describe(self, loss: float) -> str:
        lr = self.optimizer.param_groups[0]["lr"]
        return f"epoch {self.progress.epoch + 1}/{self.config.epochs}  loss {loss:.4f}  lr {lr:.2g}"


def _seed_step(seed: int, device: torch.device) -> None:
    reseed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
