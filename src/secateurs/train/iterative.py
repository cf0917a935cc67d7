"""`iterative_prune`: prune the smallest weights and retrain the rest, round by round.

Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, 2015 (1506.02626).
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateurs.base.batches import Batches, device_of, split, to_device
from secateurs.base.errors import InputError, explain
from secateurs.sparsity.importance import Importance
from secateurs.sparsity.masks import density
from secateurs.sparsity.masks import masks as masks_for
from secateurs.sparsity.pattern import Pattern, parse_pattern
from secateurs.sparsity.schedules import Iterative
from secateurs.sparsity.settings import Sparsity
from secateurs.sparsity.sparsify import sparsify
from secateurs.sparsity.spec import ByLayer, Masks, Target
from secateurs.sparsity.threshold import Threshold
from secateurs.sparsity.weights import layer_weights
from secateurs.train.config import FineTune
from secateurs.train.dropouts import scale_dropout, weights_of_dropouts
from secateurs.train.frozen import trained_in_turn
from secateurs.train.stages import Evaluate, Stages

JOURNAL = "iterative.jsonl"


@dataclass(frozen=True)
class PruneRound:
    """One round: the share of zeros in the masked weights, how many stay, the metric before and after retraining."""

    number: int
    sparsity: float
    kept: int
    metric_pruned: float
    metric: float
    seconds: float


@dataclass(frozen=True)
class IterativePruning:
    """The pruned and retrained `model`, with exact zeros and free of hooks; its `masks`; and how it went.

    `baseline` is the metric of the original.
    """

    model: nn.Module
    masks: Masks
    rounds: tuple[PruneRound, ...]
    baseline: float

    @property
    def sparsity(self) -> float:
        """The share of masked weights that is zero."""
        return 1 - density(self.masks)

    def __str__(self) -> str:
        lines = [f"baseline {self.baseline:.4f}"]
        lines.append(f"{'round':>5}  {'zeros':>6}  {'kept':>9}  {'pruned':>7}  {'retrained':>9}")
        lines += [
            f"{row.number:>5}  {row.sparsity:>6.1%}  {row.kept:>9,}  {row.metric_pruned:>7.4f}  {row.metric:>9.4f}"
            for row in self.rounds
        ]
        return "\n".join(lines)


def iterative_prune(
    model: nn.Module,
    data: Iterable[Any],
    *,
    sparsity: Target | ByLayer[Target] | Sequence[Target | ByLayer[Target]],
    evaluate: Evaluate,
    rounds: int = 5,
    retrain: FineTune | None = None,
    final: FineTune | None = None,
    train_only: Sequence[Sequence[str]] = (),
    dropout: bool | Mapping[str, str] = True,
    pattern: str | Pattern = "weight",
    importance: str | Importance | None = None,
    scope: str = "layer",
    distribution: str = "uniform",
    exclude: Sequence[str | type] = (),
    only: Sequence[str | type] | None = None,
    folder: str | os.PathLike[str] | None = None,
    on_round: Callable[[PruneRound], None] | None = None,
) -> IterativePruning:
    """Prune a copy of `model` in `rounds` rounds, each followed by retraining; the model itself is not changed.

    After round r of R every layer is `1 - (1 - sparsity)^(r/R)` sparse: each round leaves the same share of what was
    left. `rounds=1` is one-shot pruning. A `Threshold` instead (`Threshold("std", q)`: q standard deviations) applies
    in every round to the weights that are left. A list says what every round is to reach (`rounds` is its length),
    such as thresholds that rise. `sparsity` may give either by layer; with `pattern`, `importance`,
    `scope`, `distribution`, `exclude` and `only` it is that of `masks`. What is zero before a round stays zero.

    Weights that stay go on from their values, trained as `retrain` says (`FineTune()` if it is None; `epochs=0` for no
    retraining), after the last round as `final` says, if it is given. L2 is `FineTune(weight_decay=...)`, L1 is
    `FineTune(penalty=Penalty(kind="l1", ...))`. A tenth of the original learning rate is a good start.

    `train_only` splits each retraining into phases: `[["conv*"], ["fc*"]]` trains the convolutions while all else is
    frozen, then the reverse. Globs on parameter or module names.

    `dropout`: each `nn.Dropout` in front of (else behind) a pruned linear layer drops with `D * sqrt(kept share)`, for
    a smaller layer needs less of it; the result keeps these rates. `{dropout module: linear layer}` says which belong
    together, `False` leaves them alone.

    `evaluate` is model -> float, higher is better. With a `folder`, a run that is killed goes on where it was when the
    same call is made again, on a CPU to the same bits. `on_round` is called after each round.

    Raises `InputError` for arguments that cannot be used and what `masks` and `finetune` raise.
    """
    between = retrain or FineTune()
    last = final or between
    _check(rounds, between, last)
    targets = _targets(sparsity, rounds, parse_pattern(pattern))
    rounds, last_target = len(targets), targets[-1] if isinstance(sparsity, Sequence) else sparsity
    given = Sparsity(
        last_target, pattern=pattern, importance=importance, scope=scope, distribution=distribution, exclude=exclude,
        only=only,
    )  # fmt: skip
    owners = weights_of_dropouts(model, _first_inputs(model, data), dropout)
    stages = Stages(model, data, evaluate, folder)
    stages.identify(
        JOURNAL, sparsity=given.identity(), targets=[repr(target) for target in targets], rounds=rounds,
        retrain=between.identity(), final=last.identity(), train_only=[list(part) for part in train_only],
        dropout=owners,
    )  # fmt: skip
    baseline = stages.metric("baseline", model)
    current, masks = copy.deepcopy(model), None
    history: list[PruneRound] = []
    for number in range(1, rounds + 1):
        started, place = time.perf_counter(), f"round-{number:02}"
        target = targets[number - 1]
        named = {name: getattr(given, name) for name in ("pattern", "importance", "scope", "distribution")}
        masks = masks_for(current, target, exclude=exclude, only=only, within=masks or _zeros(current, given), **named)
        sparsify(current, masks).detach()
        metric_pruned = stages.metric(f"{place}/pruned", current)
        scale_dropout(current, model, owners, masks)
        current = trained_in_turn(stages, place, current, last if number == rounds else between, train_only, masks)
        metric = stages.metric(f"{place}/metric", current)
        kept = sum(int(mask.sum()) for mask in masks.values())
        row = PruneRound(number, 1 - density(masks), kept, metric_pruned, metric, time.perf_counter() - started)
        history.append(row)
        if on_round is not None:
            on_round(row)
    assert masks is not None
    return IterativePruning(current, masks, tuple(history), baseline)


def _targets(sparsity: Any, rounds: int, pattern: Pattern) -> list[Any]:
    """What every round is to reach."""
    if pattern.decides:
        step = f'train with FineTune(sparsity=Sparsity(pattern="{pattern}")), or take a pattern such as "rows(4)"'
        raise InputError(explain(f"`{pattern}` cannot be reached in rounds: it fixes what stays", next_step=step))
    if isinstance(sparsity, (int, float, Threshold, Mapping)):
        return [_reached(sparsity, number, rounds) for number in range(1, rounds + 1)]
    if isinstance(sparsity, str) or not isinstance(sparsity, Sequence):
        step = "give the share that becomes zero, such as 0.9, or a Threshold, or either by layer or for every round"
        raise InputError(explain(f"sparsity={sparsity!r} cannot be used", next_step=step))
    if not sparsity or not all(isinstance(item, (float, Threshold, Mapping)) for item in sparsity):
        step = 'give one for every round, such as [Threshold("value", 0.04), Threshold("value", 0.05)]'
        raise InputError(explain(f"sparsity={sparsity!r} cannot be used", next_step=step))
    return list(sparsity)


def _reached(sparsity: Any, number: int, rounds: int) -> Any:
    """What a layer is to have reached after a round."""
    if isinstance(sparsity, Mapping):
        return {name: _reached(target, number, rounds) for name, target in sparsity.items()}
    if not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        return sparsity  # a threshold, or what `masks` refuses
    return Iterative(every=1, rounds=rounds, begin=1).at(number, float(sparsity))


def _zeros(model: nn.Module, given: Sparsity) -> Masks:
    """The weights that are not zero yet."""
    weights = layer_weights(model, exclude=given.exclude, only=given.only)
    return {name: item.tensor != 0 for name, item in weights.items()}


def _first_inputs(model: nn.Module, data: Iterable[Any]) -> Any:
    batches = Batches(data, limit=1)
    try:
        inputs, _ = split(to_device(next(iter(batches.epoch(0))), device_of(model)), "batch 0 (to see the layers)")
    finally:
        batches.close()
    return inputs


def _check(rounds: int, *configs: Any) -> None:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InputError(explain(f"rounds={rounds!r} cannot be used", next_step="give an integer of at least 1"))
    for given in configs:
        if not isinstance(given, FineTune):
            raise InputError(explain(f"retrain={given!r} cannot be used", next_step="give FineTune(epochs=..., ...)"))
    if any(config.sparsity is not None or config.soft is not None for config in configs):
        raise InputError(
            explain("The retraining has a sparsity of its own", next_step="leave it out: the rounds hold their masks")
        )


__all__ = ["IterativePruning", "PruneRound", "iterative_prune"]
