"""`soft_prune`: train with soft filter pruning, then really remove what is zero."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateurs.base.errors import InputError, explain
from secateurs.capture.trace import capture, check_inputs
from secateurs.choose import Plan, plan
from secateurs.couple import couple
from secateurs.cut import CutResult, cut_detailed
from secateurs.cut.handover import HandOver, check_choice, hand_over
from secateurs.train.config import FineTune
from secateurs.train.finetune import FineTuneResult
from secateurs.train.finetune import finetune as train
from secateurs.train.recalibrate import recalibrate as refresh
from secateurs.train.soft import Filters, Soft


@dataclass(frozen=True)
class SoftPruning:
    """The smaller `model`, the `plan` that removed the zero filters, and how it came about.

    `trained` holds the network of full size with its zeros; `cutting` is its cut with the proof; `handed` says what
    became of the constants that zero filters still put out, None for `bias="drop"`.
    """

    model: nn.Module
    plan: Plan
    trained: FineTuneResult
    cutting: CutResult
    handed: HandOver | None

    def __str__(self) -> str:
        removed = sum(item.size - len(item.kept) for item in self.plan.groups)
        lines = [f"{removed} units were zero and are gone"]
        for what in ("macs", "params"):
            before, after = self.plan.before[what], self.plan.after[what]
            lines.append(f"{what:<6} {before:>14,} -> {after:>14,}  {after / before:.1%}")
        if self.handed is not None:
            how = (
                "exactly"
                if self.handed.exact
                else f"by {self.handed.padding!r}, outputs differ by {self.handed.worst:.2g}"
            )
            lines.append(f"{self.handed.handed} constants handed over {how}, {len(self.handed.dropped)} not")
        return "\n".join(lines)


def soft_prune(
    model: nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    *,
    fraction: float = 0.3,
    norm: str = "l2",
    every: int = 1,
    exclude: Sequence[str] = (),
    finetune: FineTune | None = None,
    teacher: nn.Module | None = None,
    kwargs: Mapping[str, Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    bias: str = "propagate",
    padding: str = "interior",
    recalibrate: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> SoftPruning:
    """Train a copy of `model` as `finetune` says, zeroing filters after every epoch (see `Soft`); cut the zero ones.

    A zero filter with a bias or a batch norm behind it is no silent one: it puts out a constant. With
    `bias="propagate"` its consumers take that constant over, so that the smaller network answers like the trained one:
    to rounding where no consumer pads with zeros, else as `padding` says (see `hand_over`). With `bias="drop"` it
    counts as 0, which `recalibrate` batches of `data` for the batch norms partly make up for.

    Where `finetune` distils, `teacher` is who it learns from: by default `model`.

    `evaluate` and `folder` (a run that is killed goes on to the same bits) are those of `finetune`. The model itself is
    not changed. He et al. 2018 (1808.06866).

    Raises `InputError` for arguments that cannot be used or when there is no filter to zero, and what `finetune`, `cut`
    and `hand_over` raise.
    """
    config = finetune or FineTune()
    if config.soft is not None:
        raise InputError(explain("Soft filter pruning is asked for twice", next_step="leave out FineTune(soft=...)"))
    if bias == "propagate_mean":
        raise InputError(
            explain("A zero filter puts out a constant, not a mean", next_step="use bias='propagate' or 'drop'")
        )
    check_choice(bias, padding, data)
    soft = Soft(fraction=fraction, norm=norm, every=every, exclude=exclude)
    args, keywords = check_inputs(model, example_inputs, kwargs)
    trained = train(model, data, replace(config, soft=soft), teacher=teacher, evaluate=evaluate, folder=folder)
    graph = capture(trained.model, args, kwargs=keywords)
    groups = couple(graph, exclude=soft.exclude)
    keep = {}
    for name, zeros in Filters(groups, soft).zeros(trained.model).items():
        size = groups[name].size
        keep[name] = [unit for unit in range(size) if unit not in zeros] or [0]
    decision = plan(graph, groups, keep, criterion=norm, search="soft", seed=config.seed)
    mapped = bias != "drop" and padding == "map"
    cutting = cut_detailed(trained.model, decision, args, keywords, groups=groups, form="graph" if mapped else "auto")
    small, handed = cutting.model, None
    if bias != "drop":
        handed = hand_over(
            cutting, trained.model, args, keywords, groups=groups, bias=bias, padding=padding, seed=config.seed
        )
        small = handed.model
    if recalibrate:
        small = refresh(small, data, batches=recalibrate, seed=config.seed)
    return SoftPruning(small, decision, trained, cutting, handed)
