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

from secateurs.base.batches import derive, device_of, first_inputs
from secateurs.base.errors import InputError, explain
from secateurs.cost.effective import captured_row, effective_of
from secateurs.sparsity.importance import Importance
from secateurs.sparsity.masks import density
from secateurs.sparsity.masks import masks as masks_for
from secateurs.sparsity.measured import reads_data
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

RETRAIN = FineTune(weight_decay=5e-4)
"""How weights that stay are trained unless told otherwise: with L2, which is better than L1 once weights are retrained
(Han et al. 2015, figure 5); the strength is that of the LeNet and AlexNet that the paper prunes, as Caffe trains them.
"""


@dataclass(frozen=True)
class PruneRound:
    """One round: the share of zeros in the masked weights, how many stay, the metric before and after retraining.

    `parameters` are all of the model that are not zero after it, biases and norms too; `macs` what one row of inputs
    costs without multiplications by zero weights (see `secateurs.cost.effective_macs`), None where that is not known.
    """

    number: int
    sparsity: float
    kept: int
    metric_pruned: float
    metric: float
    seconds: float
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class IterativePruning:
    """The pruned and retrained `model`, with exact zeros and free of hooks; its `masks`; and how it went.

    `baseline` is the metric of the original, `parameters` how many it has, `macs` what one row of inputs costs it by
    shape (None where it cannot be captured). `retrain` and `final` say how it was trained: seed, epochs, learning rate.
    """

    model: nn.Module
    masks: Masks
    rounds: tuple[PruneRound, ...]
    baseline: float
    parameters: int
    macs: int | None
    retrain: FineTune
    final: FineTune

    @property
    def sparsity(self) -> float:
        """The share of masked weights that is zero."""
        return 1 - density(self.masks)

    @property
    def compression(self) -> float:
        """Parameters before by those that are not zero now."""
        return self.parameters / max(1, self.rounds[-1].parameters)

    @property
    def speed_up(self) -> float | None:
        """MACs before by those of weights that are not zero: in theory, of a machine that skips zeros at no price."""
        left = self.rounds[-1].macs
        return None if self.macs is None or not left else self.macs / left

    def __str__(self) -> str:
        cost = "" if self.macs is None else f", {self.macs:,} MACs"
        lines = [f"baseline {self.baseline:.4f}, {self.parameters:,} parameters{cost}"]
        lines.append(f"{'round':>5}  {'zeros':>6}  {'kept':>9}  {'MACs':>13}  {'pruned':>7}  {'retrained':>9}")
        for row in self.rounds:
            macs = "-" if row.macs is None else f"{row.macs:,}"
            lines.append(
                f"{row.number:>5}  {row.sparsity:>6.1%}  {row.kept:>9,}  {macs:>13}  {row.metric_pruned:>7.4f}  "
                f"{row.metric:>9.4f}"
            )
        ahead = "" if self.speed_up is None else f", {self.speed_up:.2f} times fewer MACs"
        lines.append(f"{self.compression:.2f} times fewer parameters{ahead}")
        for name, config in (("retrained", self.retrain), ("at the end", self.final)):
            lines.append(f"{name}: {config.epochs} epochs, learning rate {config.lr:g}, seed {config.seed}")
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
    teacher: nn.Module | None = None,
    train_only: Sequence[Sequence[str]] = (),
    dropout: bool | Mapping[str, str] = True,
    pattern: str | Pattern = "weight",
    importance: str | Importance | None = None,
    scope: str = "layer",
    distribution: str = "uniform",
    exclude: Sequence[str | type] = (),
    only: Sequence[str | type] | None = None,
    options: Mapping[str, Any] | None = None,
    batches: int | None = 16,
    folder: str | os.PathLike[str] | None = None,
    on_round: Callable[[PruneRound], None] | None = None,
) -> IterativePruning:
    """Prune a copy of `model` in `rounds` rounds, each followed by retraining; the model itself is not changed.

    After round r of R every layer is `1 - (1 - sparsity)^(r/R)` sparse: each round leaves the same share of what was
    left. `rounds=1` is one-shot pruning. A `Threshold` instead (`Threshold("std", q)`: q standard deviations) applies
    in every round to the weights that are left. A list says what every round is to reach (`rounds` is its length),
    such as thresholds that rise. `sparsity` may give either by layer; with `pattern`, `importance`,
    `scope`, `distribution`, `exclude` and `only` it is that of `masks`. What is zero before a round stays zero from
    then on, in layers that it has a target for. An importance that looks at data, with `options`, sees the first
    `batches` batches of `data` (None: all) and the loss of `retrain`.

    Weights that stay go on from their values, trained as `retrain` says (`RETRAIN` if it is None: `FineTune` with an L2
    of `weight_decay=5e-4`; `epochs=0` for no retraining), after the last round as `final` says, if it is given. L1 is
    `FineTune(penalty=Penalty(kind="l1", ...))`: better right after pruning and, in the paper, worse once retrained. A
    tenth of the original learning rate is a good start. Where they distil, `teacher` teaches every round: by default
    `model`; pass the original if `model` has been cut before.

    `train_only` splits each retraining into phases: `[["conv*"], ["fc*"]]` trains the convolutions while all else is
    frozen, then the reverse. Globs on parameter or module names.

    `dropout`: each `nn.Dropout` in front of (else behind) a pruned linear layer drops with `D * sqrt(kept share)`, for
    a smaller layer needs less of it: D and the weights of which a share is kept, those that are not zero, are those of
    `model`. The result keeps these rates. `{dropout module: linear layer}` says which belong together, `False` leaves
    them alone.

    `evaluate` is model -> float, higher is better. With a `folder`, a run that is killed goes on where it was when the
    same call is made again, on a CPU to the same bits. `on_round` is called after each round.

    Raises `InputError` for arguments that cannot be used and what `masks` and `finetune` raise.
    """
    between = retrain or RETRAIN
    last = final or between
    _check(rounds, between, last)
    targets = _targets(sparsity, rounds, parse_pattern(pattern))
    rounds, last_target = len(targets), targets[-1] if isinstance(sparsity, Sequence) else sparsity
    given = Sparsity(
        last_target, pattern=pattern, importance=importance, scope=scope, distribution=distribution, exclude=exclude,
        only=only, options=options, batches=batches,
    )  # fmt: skip
    inputs = first_inputs(data, device_of(model), "to see the layers")
    read = data if reads_data(importance or parse_pattern(pattern).importance) else None
    owners = weights_of_dropouts(model, inputs, dropout)
    stages = Stages(model, data, evaluate, folder, teacher)
    stages.identify(
        JOURNAL, sparsity=given.identity(), targets=[repr(target) for target in targets], rounds=rounds,
        retrain=between.identity(), final=last.identity(), train_only=[list(part) for part in train_only],
        dropout=owners,
    )  # fmt: skip
    baseline = stages.metric("baseline", model)
    graph = captured_row(model, inputs)
    current, masks = copy.deepcopy(model), None
    history: list[PruneRound] = []
    for number in range(1, rounds + 1):
        started, place = time.perf_counter(), f"round-{number:02}"
        within = {**_zeros(current, given), **(masks or {})}
        found = masks_for(
            current, targets[number - 1], pattern=given.pattern, importance=importance, scope=scope,
            distribution=distribution, exclude=exclude, only=only, within=within, data=read, loss=between.loss,
            batches=batches, options=options, seed=derive(between.seed, "sparsity"),
        )  # fmt: skip
        masks = {**(masks or {}), **found}  # of layers that this round has no target for, too
        sparsify(current, masks).detach()
        metric_pruned = stages.metric(f"{place}/pruned", current)
        scale_dropout(current, model, owners, masks)
        current = trained_in_turn(stages, place, current, last if number == rounds else between, train_only, masks)
        metric = stages.metric(f"{place}/metric", current)
        row = PruneRound(
            number, 1 - density(masks), sum(int(mask.sum()) for mask in masks.values()), metric_pruned, metric,
            time.perf_counter() - started, sum(int(item.count_nonzero()) for item in current.parameters()),
            None if graph is None else effective_of(graph, current).total.effective,
        )  # fmt: skip
        history.append(row)
        if on_round is not None:
            on_round(row)
    assert masks is not None
    parameters, macs = sum(item.numel() for item in model.parameters()), None
    if graph is not None:
        macs = effective_of(graph, model).total.dense
    return IterativePruning(current, masks, tuple(history), baseline, parameters, macs, between, last)


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
