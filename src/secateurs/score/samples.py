"""The data that a criterion looks at: batches, one by one, each ready to run through the captured program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.base.batches import Batches, device_of, rows, to_device
from secateurs.base.errors import InputError, TrainError, explain
from secateurs.base.loss import Loss, describe, losses
from secateurs.capture.graph import Graph
from secateurs.capture.program import BatchAxis, Program, Programs, State
from secateurs.capture.rows import Rows, rows_of
from secateurs.couple.chance import draws_numbers


@dataclass(frozen=True)
class Batch:
    """One batch on its way through the network.

    `inputs` as the data gave them, `target` None if it gave none, `size` the number of samples, `given` the tensors
    among the inputs, in the order that the program takes them.
    """

    program: Program
    inputs: Any
    target: Any
    size: int
    given: tuple[Tensor, ...]
    where: str
    _programs: Programs
    _loss: Loss

    def begin(self) -> State:
        """The run before its first node."""
        return self.program.begin(self.given)

    def axes(self) -> dict[int, BatchAxis]:
        """Where the samples lie in each value. Raises `InputError` when the model is not made for any batch size."""
        return self._programs.batch_axes(self.inputs)

    def rows(self) -> Rows | None:
        """The program for any selection of the samples; None when they cannot be run apart from each other."""
        programs = self._programs
        if draws_numbers(programs.graph):
            return None
        return programs.once("rows", self.inputs, lambda: rows_of(programs, self.inputs))

    def on(self, tensors: dict[str, Tensor]) -> Program:
        """The same program on other tensors, such as leaves that require gradients."""
        return Program(self.program.graph, {**self.program.tensors, **tensors})

    def each(self) -> Iterator[Batch]:
        """The samples one by one, each as a batch of one."""
        for number in range(self.size):
            inputs, target = _sample(self.inputs, number, self.size), _sample(self.target, number, self.size)
            program, given = self._programs.program(inputs)
            where = f"sample {number} of {self.where}"
            yield replace(self, program=program, inputs=inputs, target=target, size=1, given=tuple(given), where=where)

    def with_target(self, target: Any) -> Batch:
        """The same batch with other labels."""
        return replace(self, target=target)

    def loss(self, state: State, program: Program | None = None) -> Tensor:
        """The mean loss over the batch, at the end of a run. Raises `InputError` when it is not a finite scalar."""
        return self.loss_of((program or self.program).output(state))

    def loss_of(self, output: Any) -> Tensor:
        """The mean loss over the batch when the model returns `output`. Raises `InputError` as `loss` does."""
        if self.target is None:
            raise InputError(
                explain(
                    "This criterion needs labels and the data has none",
                    where=self.where,
                    evidence=f"the batch is {describe(self.inputs)}",
                    next_step="yield (inputs, target), or take a criterion that needs no labels",
                )
            )
        try:
            loss = self._loss(output, self.target)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                explain(
                    f"The loss cannot be computed: {error}",
                    where=self.where,
                    evidence=f"output {describe(output)}, target {describe(self.target)}",
                    next_step="pass `loss=` a function (outputs, target) -> scalar that fits this model",
                )
            ) from error
        if not isinstance(loss, Tensor) or loss.dim() or not bool(torch.isfinite(loss)):
            shown = f"{float(loss.detach())}" if isinstance(loss, Tensor) and loss.numel() == 1 else describe(loss)
            raise InputError(
                explain(
                    "The loss is not one finite number",
                    where=self.where,
                    evidence=f"it is {shown}",
                    next_step="look for nan in the data and the weights, or for targets that no class has",
                )
            )
        return loss


class Samples:
    """Batches `(inputs, target)`, or inputs alone, of `data`: the first `limit`, always the same in the same order.

    `loss` is a registered name or a function `(outputs, target) -> scalar`, the mean over the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        data: Iterable[Any],
        *,
        loss: str | Loss = "cross_entropy",
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise InputError(
                explain(
                    f"{limit!r} is no number of batches to look at",
                    next_step="give an integer of at least 1, or None for all (`score_batches=0` in `prune`)",
                )
            )
        self._loss: Callable[[Any, Any], Tensor] = losses[loss] if isinstance(loss, str) else loss
        self._programs = Programs(model, graph)
        self._device = device_of(model)
        self._data, self._limit, self._seed = data, limit, seed

    def __iter__(self) -> Iterator[Batch]:
        """Every batch, on the model's device. Draws from the process's random states, which callers protect.

        Raises `InputError` when the model does not run on a batch as it does on the example inputs, or when there is no
        batch.
        """
        try:
            batches = Batches(self._data, limit=self._limit, seed=self._seed)
        except TrainError as error:
            raise InputError(str(error)) from error
        try:
            for number, raw in enumerate(batches.epoch(0)):
                yield self._batch(to_device(raw, self._device), f"batch {number}")
        finally:
            batches.close()

    def _batch(self, raw: Any, where: str) -> Batch:
        pair = isinstance(raw, (list, tuple)) and len(raw) == 2
        inputs, target = (raw[0], raw[1]) if pair else (raw, None)
        program, given = self._programs.program(inputs)
        return Batch(program, inputs, target, rows(inputs), tuple(given), where, self._programs, self._loss)


def _sample(tree: Any, number: int, size: int) -> Any:
    """One sample's rows of every tensor that has a row for each of the `size` samples."""

    def pick(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size
        return leaf[number : number + 1] if whole else leaf

    return pytree.tree_map(pick, tree)
