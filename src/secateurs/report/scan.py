"""`sensitivity`: prune each layer alone, look, put it back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.journal import Journal
from secateurs.base.listed import listed
from secateurs.base.reference import name_of
from secateurs.base.seeds import check_seed
from secateurs.choose.masked import Measure, hits
from secateurs.deliver.request import state_digest
from secateurs.report.scan_channels import ByChannels
from secateurs.report.scan_weights import ByData, ByEvaluation, Evaluate, Subject, Variant
from secateurs.report.sensitivity import CHANNEL, ROUNDING, Sensitivity
from secateurs.sparsity.importance import Importance
from secateurs.sparsity.pattern import PATTERNS, Pattern, parse_pattern

JOURNAL = "sensitivity.jsonl"
FRACTIONS = tuple(number / 20 for number in range(20))
"""0 to 0.95: of weights. Han et al., Learning both Weights and Connections, 2015."""

OF_CHANNELS = tuple(number / 10 for number in range(3, 9))
"""0.3 to 0.8: of channels. Xu, Park, Brick, Hybrid Pruning, 2018; the step is ours."""


def sensitivity(
    model: nn.Module,
    evaluate: Evaluate | None = None,
    *,
    pattern: str | Pattern = "weight",
    fractions: Sequence[float] | None = None,
    importance: str | Importance | None = None,
    exclude: Iterable[str | type] = (),
    only: Iterable[str | type] | None = None,
    tolerance: float | None = None,
    stop_at_drop: float | None = None,
    data: Iterable[Any] | None = None,
    measure: Measure = hits,
    batches: int | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Sensitivity:
    """The metric when each layer alone loses each of `fractions` of its weights, without retraining.

    `evaluate(model)` gives the metric, higher is better, of a copy in which one weight has its zeros; the model itself
    is not changed. Instead of it, `data` gives batches `(inputs, target)`, of which the first `batches` are used: the
    metric is then the sum of `measure(outputs, target)` by the number of samples (default: top-1 accuracy), and what
    lies before the layer runs once for all that branch off behind it, which takes about half the time.

    `pattern`, `importance`, `exclude` and `only` choose weights and groups of them as in `sec.masks`; `fractions` are
    0, 0.05, ..., 0.95 if not given. With `pattern="channel"` whole channels of coupled layers are silenced where they
    are read, behind batch norm and activation, as if they had been cut; lowest `importance` first, one of
    `sec.list("criteria")`, by default `"l1"`; fractions 0.3, 0.4, ..., 0.8; `data` is needed.

    `stop_at_drop` leaves a layer once its metric has fallen by more than this. `tolerance` is kept for
    `Sensitivity.largest`. With a `folder`, finished cells are journalled there, and the same call after a crash goes
    on. `on_stage` is told of each fraction as it begins.

    Han et al., Learning both Weights and Connections, 2015 (1506.02626); channels: Xu, Park, Brick, 2018. Raises
    `InputError` for arguments that cannot be used, `TrainError` for a metric that is no finite number.
    """
    whole = pattern == CHANNEL
    grid = _grid(fractions, OF_CHANNELS if whole else FRACTIONS)
    _check(evaluate, data, whole, tolerance, stop_at_drop)
    check_seed(seed)
    left_out = listed("exclude", exclude)
    subject: Subject
    if whole:
        subject = ByChannels(model, data or (), measure, batches, importance, left_out, only, seed)
    elif evaluate is not None:
        subject = ByEvaluation(model, _form(pattern), importance, left_out, only, evaluate)
    else:
        subject = ByData(model, _form(pattern), importance, left_out, only, data or (), measure, batches, seed)
    metric_name = f"{name_of(measure)} of data, {batches}" if evaluate is None else name_of(evaluate) or "evaluate"
    run = {
        "what": "sensitivity", "model": state_digest(model), "pattern": str(pattern), "importance": subject.importance,
        "fractions": list(grid), "layers": list(subject.sizes), "stop_at_drop": stop_at_drop, "seed": seed,
        "metric": metric_name,
    }  # fmt: skip
    journal = None if folder is None else Journal(Path(folder) / JOURNAL, run=run)
    baseline, metric = _scan(subject, grid, stop_at_drop, _Cells(journal), on_stage)
    return Sensitivity(
        str(pattern), grid, baseline, metric, dict(subject.sizes), subject.importance, tolerance, stop_at_drop, seed
    )


class _Cells:
    """What is known, in memory and, if there is one, in the journal."""

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal
        self.known: dict[str, float] = {} if journal is None else {step: journal[step] for step in journal}

    def add(self, step: str, value: float) -> float:
        self.known[step] = value
        if self.journal is not None:
            self.journal.append(step, value)
        return value


def _scan(
    subject: Subject,
    grid: Sequence[float],
    stop_at_drop: float | None,
    cells: _Cells,
    on_stage: Callable[[str], None] | None,
) -> tuple[float, dict[str, tuple[float | None, ...]]]:
    """Fraction by fraction, all layers that are still in it; what removes no more than before keeps its metric."""
    if on_stage is not None:
        on_stage("baseline")
    baseline = cells.known["baseline"] if "baseline" in cells.known else cells.add("baseline", subject.baseline())
    metric: dict[str, list[float | None]] = {layer: [] for layer in subject.sizes}
    before: dict[str, tuple[int, float]] = dict.fromkeys(metric, (0, baseline))
    for number, fraction in enumerate(grid, 1):
        alive = [name for name in metric if not _left(before[name][1], baseline, stop_at_drop)]
        if on_stage is not None and alive:
            on_stage(f"{100 * fraction:.3g}% ({number} of {len(grid)})")
        variants = subject.variants(alive, fraction)
        for name, value in _round(subject, variants, before, fraction, cells):
            before[name] = variants[name].gone, value
        for name, row in metric.items():
            row.append(before[name][1] if name in variants else None)
    return baseline, {name: tuple(row) for name, row in metric.items()}


def _round(
    subject: Subject,
    variants: Mapping[str, Variant],
    before: Mapping[str, tuple[int, float]],
    fraction: float,
    cells: _Cells,
) -> Iterator[tuple[str, float]]:
    """The value of every variant of one fraction that is not known from the fraction before."""
    fresh = {name: item for name, item in variants.items() if item.gone != before[name][0]}
    steps = {name: f"{name} {fraction!r}" for name in fresh}
    yield from [(name, cells.known[steps[name]]) for name in fresh if steps[name] in cells.known]
    wanted = {name: item for name, item in fresh.items() if steps[name] not in cells.known}
    for name, value in subject.values(wanted) if wanted else ():
        yield name, cells.add(steps[name], value)


def _left(value: float, baseline: float, stop_at_drop: float | None) -> bool:
    return stop_at_drop is not None and value < baseline - stop_at_drop - ROUNDING


def _form(pattern: str | Pattern) -> Pattern:
    if isinstance(pattern, str) and pattern not in PATTERNS and nearest(pattern, [*PATTERNS, CHANNEL])[:1] == [CHANNEL]:
        raise UnknownNameError(
            explain(f"There is no pattern named {pattern!r}", next_step=f"did you mean {CHANNEL!r}?")
        )
    form = parse_pattern(pattern)
    if form.decides:
        raise InputError(
            explain(
                f"There is nothing to scan with the pattern `{form}`",
                evidence="it fixes how many weights stay",
                next_step="take a pattern whose sparsity is free, such as 'weight' or 'rows(4)'",
            )
        )
    return form


def _grid(given: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
    grid = default if given is None else tuple(float(item) for item in given)
    if not grid or not all(0 <= item < 1 for item in grid) or list(grid) != sorted(set(grid)):
        raise InputError(
            explain(
                "These fractions cannot be used",
                evidence=str(list(grid)),
                next_step="give numbers from 0 to below 1, ascending, each once",
            )
        )
    return grid


def _check(evaluate: Any, data: Any, whole: bool, tolerance: float | None, stop_at_drop: float | None) -> None:
    if whole and (data is None or evaluate is not None):
        raise InputError(
            explain(
                "Channels are silenced while data runs through the captured network",
                where=f"pattern={CHANNEL!r}",
                next_step="pass `data=`, batches of (inputs, target), with a `measure` if need be, and no `evaluate`",
            )
        )
    if (evaluate is None) == (data is None):
        raise InputError(
            explain("The metric comes from one of `evaluate` and `data`", next_step="pass one of the two, and not both")
        )
    for name, value in (("tolerance", tolerance), ("stop_at_drop", stop_at_drop)):
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(explain(f"{name}={value!r} cannot be used", next_step="give a number of at least 0"))


__all__ = ["FRACTIONS", "JOURNAL", "OF_CHANNELS", "sensitivity"]
