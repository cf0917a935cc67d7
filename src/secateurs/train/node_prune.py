"""`node_prune`: train with gates, remove what they closed, train with a higher price; then fine-tune what is left.

Yu et al., Scalpel: customizing DNN pruning to the underlying hardware parallelism, 2017.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateurs.base.errors import InputError, explain
from secateurs.capture.trace import capture, check_inputs
from secateurs.choose import Plan, compose
from secateurs.choose import plan as plan_of
from secateurs.cost import count
from secateurs.couple import couple
from secateurs.cut import CutResult, cut_detailed
from secateurs.cut.cut import alive_after
from secateurs.train.config import FineTune
from secateurs.train.dropout import dropout_shares, scale_dropout_
from secateurs.train.gates import GateState
from secateurs.train.stages import Evaluate, Stages

JOURNAL = "nodes.jsonl"


@dataclass(frozen=True)
class NodeStage:
    """One stage: the units that it removed, the widths that it left by group, the costs, and the metric after the cut.

    The cut follows the training at once and changes no output (`worst`: the proof's largest difference, relative, None
    if nothing was closed), so that the metric is that of both. `dropout` holds the new `p` of dropout modules.
    """

    number: int
    strength: float
    closed: int
    widths: Mapping[str, int]
    macs: int
    params: int
    metric: float
    worst: float | None
    dropout: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class NodePruning:
    """The smaller model, the plan that leads there from the original (None if nothing was closed), and the stages.

    `form` is `"native"`, or `"graph"` if some cut could not give back the caller's class (see `cut_detailed`).
    `baseline` is the metric of the original, `metric` that of the model. `missing` says which groups had no gates, and
    why; `macs` and `params` are the original's.
    """

    model: nn.Module
    plan: Plan | None
    stages: tuple[NodeStage, ...]
    baseline: float
    metric: float
    macs: int
    params: int
    missing: Mapping[str, str]
    form: str = "native"

    def __str__(self) -> str:
        lines = [f"baseline {self.baseline:.4f}, {self.macs:,} MACs, {self.params:,} parameters"]
        lines.append(f"{'stage':>5}  {'strength':>9}  {'closed':>6}  {'MACs':>7}  {'params':>7}  {'metric':>7}  widths")
        lines += [
            f"{row.number:>5}  {row.strength:>9.3g}  {row.closed:>6}  {row.macs / self.macs:>7.1%}  "
            f"{row.params / self.params:>7.1%}  {row.metric:>7.4f}  {'-'.join(map(str, row.widths.values()))}"
            for row in self.stages
        ]
        lines.append(f"after fine-tuning {self.metric:.4f}")
        return "\n".join([*lines, *(f"{name}: no gates: {why}" for name, why in self.missing.items())])


def node_prune(
    model: nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    *,
    stages: FineTune | Sequence[FineTune],
    evaluate: Evaluate,
    finetune: FineTune | None = None,
    teacher: nn.Module | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dropout: bool = True,
    folder: str | os.PathLike[str] | None = None,
    on_stage: Callable[[NodeStage], None] | None = None,
) -> NodePruning:
    """Let training close units that are not worth their price, and remove them; the model itself is not changed.

        stages = [sec.FineTune(epochs=30, lr=1e-3, gates=sec.Gates(strength=s)) for s in (2e-4, 3e-4, 1e-3)]
        sec.node_prune(model, x, loader, stages=stages, finetune=sec.FineTune(epochs=20, lr=0.1), evaluate=accuracy)

    Every stage is a training with `gates` (see `Gates`), usually of growing strength. After it the closed units are cut
    off for good, with the proof that this changes no output, and with `dropout` the `p` of dropout modules is scaled by
    the share of their channels that is left. The last training, `finetune` (None for none), has no gates. `evaluate`
    (model -> float, higher is better) is asked after every stage. Trainings that distil learn from `teacher`, all of
    them: by default from `model`.

    With a `folder`, a run that is killed goes on where it was when the same call is made again, and ends with the same
    result (on a CPU, to the bit). `on_stage` is called after each stage.

    Raises `InputError` for arguments that cannot be used, and what `finetune` and `cut` raise.
    """
    listed = [stages] if isinstance(stages, FineTune) else list(stages)
    args, keywords = check_inputs(model, example_inputs, kwargs)
    _check(listed, finetune)
    run = Stages(model, data, evaluate, folder, teacher)
    run.identify(
        JOURNAL, stages=[stage.identity() for stage in listed], dropout=dropout,
        finetune=None if finetune is None else finetune.identity(),
    )  # fmt: skip
    whole, baseline = count(model, args, kwargs=keywords), run.metric("baseline", model)
    current, plan, form, rows, missing = model, None, "native", [], {}
    for number, stage in enumerate(listed, 1):
        assert stage.gates is not None
        started, place = time.perf_counter(), f"stage-{number:02}"
        trained = run.train(place, current, stage)
        state, current, worst = trained.gates, trained.model, None
        rates: dict[str, float] = {}
        assert state is not None
        if state.closed:
            cutting, rates = _without_closed(current, args, keywords, state, stage, dropout)
            current, worst, form = cutting.model, cutting.proof.worst, "graph" if form == "graph" else cutting.form
            plan = cutting.plan if plan is None else compose(plan, cutting.plan)
        left, missing = count(current, args, kwargs=keywords), dict(state.missing)
        row = NodeStage(
            number, stage.gates.strength, state.closed, {name: len(units) for name, units in state.open.items()},
            left.macs, left.params, run.metric(place, current), worst, rates, time.perf_counter() - started,
        )  # fmt: skip
        rows.append(row)
        if on_stage is not None:
            on_stage(row)
    if finetune is not None:
        current = run.train("finetune", current, finetune).model
    metric = run.metric("metric", current)
    return NodePruning(current, plan, tuple(rows), baseline, metric, whole.macs, whole.params, missing, form)


def _without_closed(
    model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], state: GateState, stage: FineTune, dropout: bool
) -> tuple[CutResult, dict[str, float]]:
    """The cut that removes what the gates closed, and the dropout rates that changed with it."""
    assert stage.gates is not None
    graph = capture(model, args, kwargs=keywords)
    groups = couple(graph, exclude=stage.gates.exclude)
    made = plan_of(graph, groups, state.open, criterion="gates", search="node_prune", seed=stage.seed)
    cutting = cut_detailed(model, made, args, keywords, groups=groups)
    shares = dropout_shares(groups, alive_after(made, groups)) if dropout else {}
    return cutting, scale_dropout_(cutting.model, {path: share for path, share in shares.items() if share < 1})


def _check(stages: Sequence[Any], finetune: FineTune | None) -> None:
    bad = [number for number, stage in enumerate(stages) if not isinstance(stage, FineTune) or stage.gates is None]
    if not stages or bad:
        raise InputError(
            explain(
                "Every stage of node pruning is a training with gates",
                evidence=f"stage {bad[0]} is {stages[bad[0]]!r}" if bad else "no stage given",
                next_step="give stages=[FineTune(epochs=..., gates=Gates(strength=...)), ...]",
            )
        )
    if finetune is not None and finetune.gates is not None:
        raise InputError(
            explain("The last training has gates", next_step="make it a stage; what it closes would not be removed")
        )


__all__ = ["NodePruning", "NodeStage", "node_prune"]
