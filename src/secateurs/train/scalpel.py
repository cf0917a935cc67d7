"""`scalpel`: the method that suits each layer on a class of hardware, carried out: fewer nodes, then SIMD groups.

Yu et al., Scalpel: customizing DNN pruning to the underlying hardware parallelism, 2017.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.threshold import Threshold
from secateurs.train.config import FineTune
from secateurs.train.iterative import IterativePruning, iterative_prune
from secateurs.train.node_prune import NodePruning, node_prune
from secateurs.train.scalpel_plan import ScalpelPlan, scalpel_plan
from secateurs.train.stages import Evaluate


@dataclass(frozen=True)
class Scalpel:
    """The `model`, the `plan` of methods, and what each method did: None where it had nothing to do."""

    model: nn.Module
    plan: ScalpelPlan
    nodes: NodePruning | None
    weights: IterativePruning | None

    def __str__(self) -> str:
        parts = [("nodes", self.nodes), ("SIMD groups", self.weights)]
        return "\n".join([str(self.plan), *(f"{name}: {part}" for name, part in parts if part is not None)])


def scalpel(
    model: nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    *,
    hardware: str | ScalpelPlan,
    evaluate: Evaluate,
    stages: FineTune | Sequence[FineTune] = (),
    finetune: FineTune | None = None,
    thresholds: Sequence[float] = (),
    retrain: FineTune | None = None,
    teacher: nn.Module | None = None,
    simd_width: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    exclude: Sequence[str | type] = (),
    folder: str | os.PathLike[str] | None = None,
) -> Scalpel:
    """Prune every layer as `scalpel_plan` says for this `hardware`, or as a plan of yours; the model is not changed.

    First nodes: `stages` and `finetune` are those of `node_prune`, on the groups that the plan names. Then, in what is
    left, SIMD groups: for each of the rising `thresholds`, groups of weights with a smaller RMS become zero for good,
    and `retrain` trains the rest (see `iterative_prune`). A method that the plan gives to no layer needs no arguments.
    `evaluate` is model -> float, higher is better. Trainings that distil learn from `teacher`, in both parts; by
    default from `model`, not from what the first part has made of it.

    With a `folder`, a run that is killed goes on when the same call is made again.

    Raises `InputError` when the plan needs stages or thresholds that are not given, and what the methods raise.
    """
    plan = hardware
    if not isinstance(plan, ScalpelPlan):
        plan = scalpel_plan(
            model, example_inputs, hardware=plan, simd_width=simd_width, kwargs=kwargs, exclude=exclude
        )  # fmt: skip
    listed = [stages] if isinstance(stages, FineTune) else list(stages)
    _check(plan, listed, thresholds)
    place = None if folder is None else Path(folder)
    nodes, weights, current, taught = None, None, model, model if teacher is None else teacher
    if plan.nodes:
        nodes = node_prune(
            current, example_inputs, data, stages=[_on(stage, plan) for stage in listed], finetune=finetune,
            teacher=taught, evaluate=evaluate, kwargs=kwargs, folder=None if place is None else place / "nodes",
        )  # fmt: skip
        current = nodes.model
    if plan.simd:
        weights = iterative_prune(
            current, data, sparsity=[Threshold("value", float(threshold)) for threshold in thresholds],
            pattern=f"simd({plan.simd_width})", only=plan.simd, retrain=retrain, teacher=taught, evaluate=evaluate,
            dropout=False, folder=None if place is None else place / "simd",
        )  # fmt: skip
        current = weights.model
    return Scalpel(current, plan, nodes, weights)


def _on(stage: FineTune, plan: ScalpelPlan) -> FineTune:
    """The stage on the groups of the plan. Group names may hold characters that globs read."""
    assert stage.gates is not None
    only = [name.replace("[", "[[]") for name in plan.nodes]
    return replace(stage, gates=replace(stage.gates, only=only))


def _check(plan: ScalpelPlan, stages: Sequence[FineTune], thresholds: Sequence[float]) -> None:
    if plan.nodes and (not stages or any(stage.gates is None for stage in stages)):
        raise _needs("stages", f"nodes go from {', '.join(plan.nodes[:3])}", "FineTune(epochs=..., gates=Gates(...))")
    if plan.simd and not thresholds:
        raise _needs("thresholds", f"weights go from {', '.join(plan.simd[:3])}", "0.04, 0.05, 0.06")
    if any(later <= earlier for earlier, later in pairwise(thresholds)):
        raise InputError(
            explain(f"thresholds={list(thresholds)!r} do not rise", next_step="give each round a larger one")
        )


def _needs(name: str, evidence: str, example: str) -> InputError:
    return InputError(explain(f"The plan needs `{name}`", evidence=evidence, next_step=f"pass {name}=[{example}, ...]"))


__all__ = ["Scalpel", "scalpel"]
