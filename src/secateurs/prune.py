"""`prune`: from a trained network and a budget to a smaller one with its proof, readable from top to bottom."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from secateurs.base.errors import BudgetError, InputError, explain
from secateurs.base.loss import Loss
from secateurs.base.seeds import check_seed
from secateurs.capture import capture
from secateurs.capture.refuse import refuse_meta
from secateurs.capture.trace import check_inputs
from secateurs.choose import choose
from secateurs.choose.budget import Budget
from secateurs.cost import count, count_graph
from secateurs.couple import couple
from secateurs.cut import cut_detailed
from secateurs.cut.handover import check_choice, hand_over
from secateurs.deliver.inputs import describe
from secateurs.deliver.request import request
from secateurs.device import Comparison, Device, compare, find_device
from secateurs.report.result import Frozen, Result, Stage
from secateurs.score import score
from secateurs.score.score import as_criterion
from secateurs.train.config import FineTune
from secateurs.train.distill import uses_teacher
from secateurs.train.evaluate import checked_metric
from secateurs.train.finetune import FineTuneResult
from secateurs.train.finetune import finetune as train
from secateurs.train.recalibrate import recalibrate as refresh
from secateurs.train.reconstruct import reconstruct as refit

Evaluate = Callable[[nn.Module], float]


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    budget: Budget,
    kwargs: Mapping[str, Any] | None = None,
    criterion: str | Callable[..., Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
    loss: str | Loss | None = None,
    score_batches: int = 16,
    equalization: str = "arithmetic_mean",
    normalizer: str | None = None,
    search: str = "global",
    granularity: int = 1,
    min_channels: int = 1,
    floor: float = 0.0,
    exclude: Sequence[str] = (),
    unit: str = "heads",
    elementwise: str = "couple",
    bias: str = "drop",
    padding: str = "interior",
    data: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    reconstruct: int = 0,
    recalibrate: int = 16,
    finetune: FineTune | None = None,
    device: str | Device | None = None,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    on_stage: Callable[[str], None] | None = None,
) -> Result:
    """The largest network that `choose` finds within `budget`, cut from `model`, proven, and trained again if asked.

    *What goes*: `criterion` with its `options`, `equalization` and `normalizer` are those of `score` (default: `"l2"`
    if the budget has a threshold, for norms of filters as in NVIDIA's toolkit, else `"l1"`); a criterion that looks at
    data sees the first `score_batches` batches of `data` (0 for all) and `loss` (default: that of `finetune`, else
    cross-entropy). `search`, `granularity`, `min_channels` and `floor` are those of `choose`;
    `exclude`, `unit` and `elementwise` those of `couple`.
    *What stays of it*: with `bias="propagate"` or `"propagate_mean"` the constants that removed channels put out are
    handed to their consumers, with `padding` as in `hand_over`; `"drop"` leaves them out.
    *What follows the cut*: with `data` (batches `(inputs, target)`), layers are refitted by least squares on
    `reconstruct` batches or, if that is 0, batch-norm statistics measured afresh on `recalibrate` batches (0 for
    none); with `finetune`, the network is trained; where the config distils, `model` is the teacher. With
    `evaluate` (model -> float, higher is better) the result tells what each step did to it.
    *Where it will run*: with `device`, before and after are measured there side by side.
    With a `folder`, training leaves checkpoints there, and the same call after a `kill -9` goes on from the last one.
    `on_stage` is called with the name of each stage as it begins. `model` is never changed.

    Raises `InputError` for arguments that cannot be used, and `CaptureError`, `BudgetError`, `ProofError`,
    `DeviceError` or `TrainError` from the stage that refused.
    """
    args, keywords = check_inputs(model, example_inputs, kwargs)
    refuse_meta(model, args, keywords)
    check_seed(seed)
    _check(budget, exclude, data, evaluate, finetune, device, reconstruct)
    check_choice(bias, padding, data)
    criterion = _default_criterion(budget) if criterion is None else criterion
    rule = as_criterion(criterion)
    story = _Story(on_stage, evaluate)
    story.judge("original", model)

    story.begin("capture")
    graph = capture(model, args, kwargs=keywords)
    story.begin("couple")
    groups = couple(graph, exclude=exclude, unit=unit, elementwise=elementwise)
    story.begin("score")
    scores = score(
        groups, model, criterion, data=data, loss=_loss(loss, finetune), batches=score_batches or None, options=options,
        equalization=equalization, normalizer=normalizer, seed=seed,
    )  # fmt: skip
    story.begin("choose")
    plan = choose(
        graph, groups, scores, budget, search=search, granularity=granularity, min_channels=min_channels, floor=floor,
        criterion=rule.name, seed=seed,
    )  # fmt: skip
    story.begin("cut")
    mapped = bias != "drop" and padding == "map"
    cutting = cut_detailed(model, plan, args, keywords, groups=groups, form="graph" if mapped else "auto")
    small = story.judge("cut", cutting.model)
    handed = None
    if bias != "drop":
        story.begin("hand over")
        handed = hand_over(
            cutting, model, args, keywords, groups=groups, bias=bias, padding=padding, data=data, seed=seed,
            batches=score_batches or None,
        )  # fmt: skip
        small = story.judge("handed over", handed.model)

    measured = None
    if device is not None:  # before training: shapes decide the time, and a runtime that refuses should do so now
        story.begin("measure")
        measured = _measure(model, small, args, keywords, device)
    if data is not None and reconstruct:
        story.begin("reconstruct")
        small = story.judge("reconstructed", refit(small, model, plan, data, batches=reconstruct, seed=seed))
    elif data is not None and recalibrate:
        story.begin("recalibrate")
        small = story.judge("recalibrated", refresh(small, data, batches=recalibrate, seed=seed))
    trained = None
    if data is not None and finetune is not None:
        story.begin("fine-tune")
        trained = _train(small, data, finetune, model, evaluate, folder)
        small = story.judge("fine-tuned", trained.model)

    story.begin("count")
    return Result(
        model=small,
        original=model,
        plan=plan,
        form=cutting.form,
        why_graph=cutting.why_graph,
        proof=cutting.proof,
        before=count_graph(graph),
        after=count(small, args, kwargs=keywords),
        budget=budget,
        graph=graph,
        accuracy=story.accuracy,
        handed=handed,
        measured=measured,
        frozen=tuple(Frozen(group.name, group.size, str(group.frozen)) for group in groups.frozen),
        history=story.stages(),
        training=tuple(trained.history) if trained is not None else (),
        inputs=_describe(args, keywords),
        recipe=request(
            model, args, keywords, data=data, evaluate=evaluate, budget=budget, criterion=criterion,
            options=options and dict(options), loss=loss, score_batches=score_batches, equalization=equalization,
            normalizer=normalizer, search=search, granularity=granularity, min_channels=min_channels, floor=floor,
            exclude=list(exclude), unit=unit, elementwise=elementwise, bias=bias, padding=padding,
            reconstruct=reconstruct, recalibrate=recalibrate, finetune=finetune, seed=seed,
            device=find_device(device).name if device is not None else None,
        ),
        seed=seed,
    )  # fmt: skip


class _Story:
    """What happened so far: stages with their times, and what `evaluate` said along the way."""

    def __init__(self, on_stage: Callable[[str], None] | None, evaluate: Evaluate | None) -> None:
        self.accuracy: dict[str, float] = {}
        self._on_stage = on_stage
        self._evaluate = evaluate
        self._begun: list[tuple[str, float]] = []

    def begin(self, stage: str) -> None:
        self._begun.append((stage, time.perf_counter()))
        if self._on_stage is not None:
            self._on_stage(stage)

    def judge(self, name: str, model: nn.Module) -> nn.Module:
        """`model`, after noting its metric under `name` if there is a metric."""
        if self._evaluate is not None:
            self.begin(f"evaluate {name}")
            self.accuracy[name] = checked_metric(self._evaluate, model, f"the {name} model")
        return model

    def stages(self) -> tuple[Stage, ...]:
        ends = [start for _, start in self._begun[1:]] + [time.perf_counter()]
        return tuple(Stage(name, end - start) for (name, start), end in zip(self._begun, ends, strict=True))


def _check(
    budget: Any, exclude: Any, data: Any, evaluate: Any, finetune: Any, device: str | Device | None, reconstruct: int
) -> None:
    """What can be refused before any work is done."""
    if not isinstance(budget, Budget):
        raise BudgetError(explain(f"{budget!r} is not a budget", next_step="pass a limit, such as Budget(macs=0.5)"))
    if isinstance(exclude, str):
        raise InputError(explain("`exclude` is a list of names", next_step=f"pass exclude=[{exclude!r}]"))
    if evaluate is not None and not callable(evaluate):
        raise InputError(
            explain(f"evaluate={evaluate!r} cannot be called", next_step="pass a function, (model) -> float")
        )
    if finetune is not None and not isinstance(finetune, FineTune):
        raise InputError(explain(f"finetune={finetune!r} cannot be used", next_step="pass FineTune(epochs=3) or such"))
    if finetune is not None and data is None:
        raise InputError(
            explain("Fine-tuning needs data", next_step="pass `data=` (--data), a loader of (inputs, target)")
        )
    if reconstruct and data is None:
        raise InputError(explain("Reconstruction needs data", next_step="pass `data=` (--data), batches of inputs"))
    if device is not None:
        find_device(device).require()


def _default_criterion(budget: Budget) -> str:
    """Thresholds are meant for norms of filters; without one, only the order counts."""
    return "l1" if budget.threshold is None else "l2"


def _loss(given: str | Loss | None, finetune: FineTune | None) -> str | Loss:
    """The loss that a criterion looks at: as asked, else what will be trained on."""
    if given is not None:
        return given
    return finetune.loss if finetune is not None else "cross_entropy"


def _measure(
    model: nn.Module, small: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], device: str | Device
) -> Comparison:
    both = compare({"before": model, "after": small}, args, kwargs=kwargs, device=device)
    return both.comparison("after", "before")


def _train(
    small: nn.Module,
    data: Iterable[Any],
    config: FineTune,
    original: nn.Module,
    evaluate: Evaluate | None,
    folder: str | os.PathLike[str] | None,
) -> FineTuneResult:
    teacher = original if uses_teacher(config.distil) else None
    return train(small, data, config, teacher=teacher, evaluate=evaluate, folder=folder)


def _describe(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The inputs as data, or None when they hold something that cannot be written down."""
    try:
        return describe((args, dict(kwargs)))
    except InputError:
        return None
