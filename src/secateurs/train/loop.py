"""`train_prune_loop`: train with a penalty, prune, evaluate, retrain; accept and cut deeper, or roll back.

The loop of NVIDIA's TLT / TAO pruning guide, open at both ends: a step is any `Budget`, so that it also does one-shot
and iterative structured pruning.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from secateurs.base.errors import BudgetError, InputError, explain
from secateurs.base.loss import Loss
from secateurs.capture.trace import capture, check_inputs
from secateurs.choose import Budget, Plan, choose, compose
from secateurs.choose.search import SEARCHES
from secateurs.choose.widths import Widths
from secateurs.cost import Cost, count
from secateurs.couple import couple
from secateurs.cut import cut_detailed
from secateurs.score import score
from secateurs.score.criterion import Criterion
from secateurs.score.equalize import EQUALIZATIONS, NORMALIZERS, named
from secateurs.score.score import as_criterion
from secateurs.train.config import FineTune, callable_name
from secateurs.train.recalibrate import recalibrate as refresh
from secateurs.train.reconstruct import reconstruct as refit
from secateurs.train.stages import Evaluate, Stages

JOURNAL = "loop.jsonl"
REFERENCES = ("original", "penalised")
COUNTED = ("macs", "params", "bytes")
ACCEPTED, ROLLED_BACK, NOTHING = "accepted", "rolled back", "nothing to remove"


@dataclass(frozen=True)
class Round:
    """One round: the step that was tried, what it left (of the model it cut), the metric after each part, the verdict.

    `units` counts the units removed in this round, `macs` and `params` what remains. `verdict` is `"accepted"`,
    `"rolled back"` (the metric ended below the reference minus the tolerance) or `"nothing to remove"`.
    """

    number: int
    step: str
    units: int
    macs: int
    params: int
    metric_cut: float | None
    metric: float | None
    verdict: str
    seconds: float


@dataclass(frozen=True)
class LoopResult:
    """The last accepted model, the plan that leads there from the original (None if nothing went), and the history.

    `baseline` is the metric of the original, `penalised` that after the training with the penalty, None without one.
    """

    model: nn.Module
    plan: Plan | None
    rounds: tuple[Round, ...]
    baseline: float
    penalised: float | None
    macs: int
    params: int

    def __str__(self) -> str:
        lines = [f"baseline {self.baseline:.4f}, {self.macs:,} MACs, {self.params:,} parameters"]
        if self.penalised is not None:
            lines.append(f"after training with the penalty {self.penalised:.4f}")
        wide = max([28, *(len(row.step) for row in self.rounds)])
        header = (
            f"{'round':>5}  {'step':<{wide}} {'units':>6}  {'MACs':>7}  {'params':>7}  {'cut':>7}  {'retrained':>9}"
        )
        lines.append(f"{header}  verdict")
        for row in self.rounds:
            cut, metric = (("-" if x is None else f"{x:.4f}") for x in (row.metric_cut, row.metric))
            lines.append(
                f"{row.number:>5}  {row.step:<{wide}} {row.units:>6}  {row.macs / self.macs:>7.1%}  "
                f"{row.params / self.params:>7.1%}  {cut:>7}  {metric:>9}  {row.verdict}"
            )
        return "\n".join(lines)


def train_prune_loop(
    model: nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    *,
    steps: Budget | Sequence[Budget],
    evaluate: Evaluate,
    retrain: FineTune | None = None,
    penalise: FineTune | None = None,
    teacher: nn.Module | None = None,
    tolerance: float = 0.01,
    reference: str = "original",
    rollbacks: int = 0,
    kwargs: Mapping[str, Any] | None = None,
    criterion: str | Callable[..., Tensor] = "l2",
    options: Mapping[str, Any] | None = None,
    loss: str | Loss = "cross_entropy",
    batches: int | None = None,
    normalizer: str | None = "max",
    equalization: str = "keep_any",
    search: str = "global",
    granularity: int = 8,
    min_channels: int = 16,
    floor: float = 0.0,
    exclude: Sequence[str | type] = (),
    unit: str = "heads",
    elementwise: str = "couple",
    reconstruct: int = 0,
    recalibrate: int = 0,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    on_round: Callable[[Round], None] | None = None,
) -> LoopResult:
    """Cut deeper, step by step, as long as retraining brings the metric back; the model itself is not changed.

    With `penalise` (a `FineTune` with a `Penalty`) the model is first trained so that small norms mean something. Then,
    for every budget in `steps` (what may remain of the *original*; thresholds rise, fractions fall; one step is
    one-shot pruning): score with `criterion` (`options`, `loss`, `batches`, `normalizer`, `equalization` as in `score`;
    `data` gives its batches), choose (`search`, `granularity`, `min_channels`, `floor` as in `choose`), cut and prove,
    refit what lost inputs by least squares on `reconstruct` batches (0 for none; see there), refresh batch norms on
    `recalibrate` batches (0 for none), `evaluate` (model -> float, higher is better), `retrain` (None for none) and
    evaluate again. A round is accepted if the metric is at least the original's minus `tolerance`
    (with `reference="penalised"`, that of the model trained with the penalty, which is fairer where the original has
    seen the validation data and forgets some of it); the next one starts from there. Else it is rolled back, and the
    loop ends with the last accepted model; with `rollbacks` above 0, that many times it first tries halfway between the
    last accepted step and the failed one. A step that removes nothing is noted and the next one is tried. Trainings
    that distil learn from `teacher`, all of them: by default from `model`.

    With a `folder`, a run that is killed goes on where it was when the same call is made again, and ends with the same
    result (on a CPU, to the bit). `on_round` is called after each round.

    Raises `InputError` for arguments that cannot be used and what `score`, `choose`, `cut` and `finetune` raise; a
    budget that cannot be reached ends the loop like a rollback if an earlier round was accepted.
    """
    listed = [steps] if isinstance(steps, Budget) else list(steps)
    args, keywords = check_inputs(model, example_inputs, kwargs)
    _check(listed, penalise, tolerance, rollbacks)
    _check_reference(reference, penalise)
    rule = as_criterion(criterion)
    rule.check(options or {})
    _check_names(normalizer, equalization, search)
    _check_counts(batches=batches, reconstruct=reconstruct, recalibrate=recalibrate)
    Widths(granularity, min_channels, floor)
    couple(capture(model, args, kwargs=keywords), exclude=exclude, unit=unit, elementwise=elementwise)
    loop = Stages(model, data, evaluate, folder, teacher)
    loop.identify(
        JOURNAL,
        steps=[dict(step.limits) for step in listed], criterion=_identity(criterion),
        options={name: _identity(value) for name, value in (options or {}).items()}, loss=_identity(loss),
        normalizer=normalizer, equalization=equalization, search=search, granularity=granularity,
        min_channels=min_channels, floor=floor,
        exclude=[str(item) for item in exclude], unit=unit, elementwise=elementwise, reconstruct=reconstruct,
        recalibrate=recalibrate, batches=batches, seed=seed, tolerance=tolerance, reference=reference,
        rollbacks=rollbacks,
        retrain=None if retrain is None else retrain.identity(),
        penalise=None if penalise is None else penalise.identity(),
    )  # fmt: skip
    baseline = loop.metric("baseline", model)
    whole = count(model, args, kwargs=keywords)
    current, plan, penalised = model, None, None
    if penalise is not None:
        current = loop.train("penalise", current, penalise).model
        penalised = loop.metric("penalised", current)
    least = (baseline if reference == "original" or penalised is None else penalised) - tolerance

    def choice(now: nn.Module, budget: Budget) -> Plan:
        graph = capture(now, args, kwargs=keywords)
        groups = couple(graph, exclude=exclude, unit=unit, elementwise=elementwise)
        scores = score(
            groups, now, criterion, data=data, loss=loss, batches=batches, options=options, equalization=equalization,
            normalizer=normalizer, seed=seed,
        )  # fmt: skip
        return choose(
            graph, groups, scores, budget, search=search, granularity=granularity, min_channels=min_channels,
            floor=floor, criterion=rule.name, seed=seed,
        )  # fmt: skip

    rounds: list[Round] = []
    accepted: Budget | None = None
    pending = list(listed)
    while pending:
        step = pending.pop(0)
        started, number = time.perf_counter(), len(rounds) + 1
        place = f"round-{number:02}"
        try:
            made = _planned(loop, place, partial(choice, current, _remaining(step, accepted, whole)))
        except BudgetError:
            if plan is None:
                raise
            break
        if made.empty:
            row = Round(number, str(step), 0, made.after["macs"], made.after["params"], None, None, NOTHING, 0.0)
            rounds.append(row)
            if on_round is not None:
                on_round(row)
            continue
        small = cut_detailed(current, made, args, keywords).model
        if reconstruct:
            small = refit(small, current, made, data, batches=reconstruct, target="sum", layers="all", seed=seed)
        if recalibrate:
            small = refresh(small, data, batches=recalibrate, seed=seed)
        after_cut = loop.metric(f"{place}/cut", small)
        if retrain is not None:
            small = loop.train(place, small, retrain).model
        metric = loop.metric(f"{place}/metric", small)
        good = metric >= least
        row = Round(
            number, str(step), sum(item.size - len(item.kept) for item in made.groups), made.after["macs"],
            made.after["params"], after_cut, metric, ACCEPTED if good else ROLLED_BACK, time.perf_counter() - started,
        )  # fmt: skip
        rounds.append(row)
        if on_round is not None:
            on_round(row)
        if good:
            current, accepted = small, step
            plan = made if plan is None else compose(plan, made)
        elif rollbacks > 0:
            rollbacks -= 1
            pending = [_between(accepted, step, whole)]
        else:
            break
    return LoopResult(current, plan, tuple(rounds), baseline, penalised, whole.macs, whole.params)


def steps(metric: str, to: float, rounds: int, *, start: float | None = None) -> list[Budget]:
    """`rounds` budgets on one metric, ending at `to`: fractions shrink by equal factors, thresholds grow equally.

    `start` is where the count begins, exclusive: 1.0 for fractions (`macs`, `params`, `bytes`, `channels`), 0.0 for
    `threshold`. `steps("macs", 0.25, 2)` gives `[Budget(macs=0.5), Budget(macs=0.25)]`. Raises `InputError`, or
    `UnknownNameError` for another metric.
    """
    begin = (0.0 if metric == "threshold" else 1.0) if start is None else start
    named("limit", metric, {field.name: field for field in fields(Budget)})
    whole = isinstance(rounds, int) and not isinstance(rounds, bool)
    if (
        not whole
        or rounds < 1
        or (metric != "threshold" and not 0 < to < begin <= 1)
        or (metric == "threshold" and not to > begin)
    ):
        raise InputError(
            explain(
                f"steps({metric!r}, {to!r}, {rounds!r}) cannot be used",
                evidence=f"it begins at {begin}",
                next_step="give at least one round and an end beyond the beginning (fractions fall, thresholds rise)",
            )
        )
    shares = [(index + 1) / rounds for index in range(rounds)]
    if metric == "threshold":
        return [Budget(threshold=begin + (to - begin) * share) for share in shares]
    return [Budget(**{metric: begin * math.exp(math.log(to / begin) * share)}) for share in shares]


def _planned(loop: Stages, place: str, make: Callable[[], Plan]) -> Plan:
    return Plan.from_json(loop.once(f"{place}/plan", lambda: make().to_json()))


def _remaining(step: Budget, accepted: Budget | None, whole: Any) -> Budget:
    """A budget on the original as one on what the accepted rounds left."""
    limits = dict(step.limits)
    absolute = step.absolute({"macs": whole.macs, "params": whole.params, "bytes": whole.bytes})
    limits.update({metric: max(2, int(limit)) for metric, limit in absolute.items()})
    if step.channels is not None and accepted is not None and accepted.channels is not None:
        limits["channels"] = min(1.0, step.channels / accepted.channels)
    return Budget(**limits)


def _between(accepted: Budget | None, failed: Budget, whole: Cost) -> Budget:
    """Halfway from the last accepted step (or from the whole model) to the failed one.

    Where one of them is a fraction and the other a count, between the counts.
    """
    start = {} if accepted is None else accepted.limits

    def halfway(metric: str, limit: float) -> float | int:
        begin = start.get(metric, 0.0 if metric == "threshold" else 1.0)
        if metric in COUNTED and (limit > 1 or begin > 1):
            size = getattr(whole, metric)
            return int(sum(size * share if share <= 1 else share for share in (begin, limit)) / 2)
        return (begin + limit) / 2

    return replace(failed, **{metric: halfway(metric, limit) for metric, limit in failed.limits.items()})


def _identity(given: Any) -> Any:
    """What was given, in a form that is the same in the next process."""
    if isinstance(given, Criterion):
        return f"{given.name} {callable_name(given.rule)}"
    return callable_name(given) if callable(given) else given if isinstance(given, str) else repr(given)


def _check(listed: Sequence[Any], penalise: FineTune | None, tolerance: float, rollbacks: int) -> None:
    if not listed or not all(isinstance(step, Budget) for step in listed):
        raise InputError(
            explain("The loop has no steps", next_step="give budgets, such as steps=[Budget(threshold=0.1)]")
        )
    if penalise is not None and penalise.penalty is None:
        raise InputError(
            explain("`penalise` has no penalty", next_step="pass FineTune(penalty=Penalty(...)) or leave it out")
        )
    if not (math.isfinite(tolerance) and tolerance >= 0) or rollbacks < 0:
        raise InputError(
            explain(
                f"tolerance={tolerance!r}, rollbacks={rollbacks!r} cannot be used",
                next_step="give finite numbers of at least 0",
            )
        )


def _check_names(normalizer: str | None, equalization: str, search: str) -> None:
    """What would otherwise be noticed after hours of training."""
    if normalizer is not None:
        named("normalizer", normalizer, NORMALIZERS)
    named("equalization", equalization, EQUALIZATIONS)
    named("search", search, {name: SEARCHES[name] for name in SEARCHES})


def _check_counts(**given: int | None) -> None:
    for name, number in given.items():
        least = 1 if name == "batches" else 0
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise InputError(
                explain(f"{name}={number!r} cannot be used", next_step=f"give an integer of at least {least}")
            )


def _check_reference(reference: str, penalise: FineTune | None) -> None:
    if reference not in REFERENCES or (reference == "penalised" and penalise is None):
        raise InputError(
            explain(
                f"reference={reference!r} cannot be used",
                evidence="there is no training with a penalty" if reference in REFERENCES else "",
                next_step=f"give {' or '.join(map(repr, REFERENCES))}, the latter together with `penalise`",
            )
        )


__all__ = ["LoopResult", "Round", "steps", "train_prune_loop"]
