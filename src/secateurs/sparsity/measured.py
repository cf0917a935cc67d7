"""Importances that look at data: what samples say about every weight, in passes that serve all weights at once.

They are the criteria of `score` for single weights and groups of them; estimates and formulas are the same code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from secateurs.base.batches import derive
from secateurs.base.errors import InputError, explain
from secateurs.base.loss import Loss
from secateurs.base.seeds import seeded
from secateurs.score.criteria.taylor_weights import FORMS as OF_FILTERS
from secateurs.score.criteria.taylor_weights import change, check_order
from secateurs.score.criterion import Context, check_options, options_of
from secateurs.score.curvature import diagonal_of, fisher
from secateurs.score.equalize import named
from secateurs.score.gradients import Slope, leaf_gradients, mean_gradients, over_batches
from secateurs.score.on_data import context_on, leaves_of
from secateurs.sparsity.importance import (
    IMPORTANCES,
    GroupedWeight,
    Importance,
    Obd,
    check_scores,
    find_importance,
    taylor,
)

T = TypeVar("T")
Weights = Mapping[str, GroupedWeight]
Scores = dict[str, Tensor]
Rule = Callable[..., Scores]
"""`(weights, context, **options) -> {parameter name: [groups]}`; higher = keep."""

FORMS = {
    "group": OF_FILTERS["filter"],
    "squares": OF_FILTERS["squares"],
    "absolute": (lambda change: change, torch.abs),
}
"""What happens to the change of each weight before the sum over a group, and to the sum."""

PER = {"batch": False, "sample": True}


@dataclass(frozen=True)
class Evidence:
    """Where importances may look: the model, and `data`, batches (inputs, target), of which the first `batches`.

    `loss` is a name or a function `(outputs, target) -> scalar`, the mean over a batch; `seed` is for what is drawn.
    The model is looked at in eval mode and stays as it is; so do random states.
    """

    model: nn.Module
    data: Iterable[Any] | None = None
    loss: str | Loss = "cross_entropy"
    batches: int | None = None
    seed: int = 0

    def tell(self, ask: Callable[[Context], T]) -> T:
        """The answer, from the model as it is now. Raises `InputError` where other processes see other data."""
        assert self.data is not None
        with seeded(derive(self.seed, "importance")), torch.no_grad():
            data = _beside(self.data)
            return ask(context_on(self.model, data, loss=self.loss, batches=self.batches, seed=self.seed))

    def gradients(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The gradient of the mean loss over the data, flat, float64, on the CPU; zeros for what nothing reads."""

        def ask(context: Context) -> dict[str, Tensor]:
            return _flat(context, names, mean_gradients(context, _leaves(context, names)))

        return self.tell(ask)


@dataclass(frozen=True)
class Measured:
    """An importance that looks at data, at all weights together."""

    name: str
    rule: Rule

    def __call__(self, weight: GroupedWeight) -> Tensor:
        """Raises `InputError`: one weight alone has no data."""
        raise InputError(explain(f"The importance {self.name!r} needs data", where=f"`{weight.name}`"))

    @property
    def options(self) -> dict[str, Any]:
        """The keyword options with their defaults."""
        return options_of(self.rule)


def measured(name: str) -> Callable[[Rule], Rule]:
    """Decorator: registers an importance that looks at data; the rule stays an ordinary function."""

    def add(rule: Rule) -> Rule:
        IMPORTANCES.register(name)(Measured(name, rule))
        return rule

    return add


def needs_data(importance: str | Importance) -> bool:
    """Whether there is no score without data."""
    return isinstance(find_importance(importance), Measured)


def reads_data(importance: str | Importance) -> bool:
    """Whether data can change its scores; of a function of one's own nobody knows, so there it can."""
    found = find_importance(importance)
    blind = found is not taylor and (isinstance(found, Obd) or any(found is IMPORTANCES[name] for name in IMPORTANCES))
    return isinstance(found, Measured) or not blind


def check_read(importance: str | Importance, data: object) -> None:
    """Raises `InputError` for data that nothing reads."""
    if data is not None and not reads_data(importance):
        shown = repr(importance)
        raise InputError(
            explain(
                f"`data` is given, and the importance {shown} does not look at it",
                next_step="leave out `data`, or take an importance that does: 'taylor', 'taylor_weights', 'obd'",
            )
        )


def missing_data(importance: object) -> InputError:
    """What is raised when there is no data for an importance that needs some."""
    return InputError(
        explain(
            f"The importance {importance!r} needs data",
            evidence="it looks at the loss",
            next_step="pass `data=` (--data), batches of (inputs, target), or take one without data, such as 'l1'",
        )
    )


def check_importance(importance: str | Importance, options: Mapping[str, Any]) -> None:
    """Raises `UnknownNameError` for another name or option, `InputError` for what is no importance or no number."""
    found = find_importance(importance)
    known = found.options if isinstance(found, Measured) else {}
    shown = repr(importance) if isinstance(importance, str) else "of one's own"
    check_options(f"importance {shown}", known, options)


def scores_of(
    weights: Weights,
    importance: str | Importance,
    *,
    options: Mapping[str, Any] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    evidence: Evidence | None = None,
) -> Scores:
    """`{parameter name: one finite float64 per group}`. Gradients are those of the data, if there is data.

    Raises `InputError` for data that is missing or does not fit, and scores that cannot be used.
    """
    found = find_importance(importance)
    if isinstance(found, Measured):
        if evidence is None or evidence.data is None:
            raise missing_data(found.name)
        rule, given = found.rule, options or {}
        raw = evidence.tell(lambda context: rule(weights, context, **given))
    else:
        slopes = _slopes(weights, gradients or {}, evidence)
        seed = 0 if evidence is None else evidence.seed
        raw = {name: found(replace(item, slopes=slopes.get(name), seed=seed)) for name, item in weights.items()}
    return {name: check_scores(name, item.grouping.count, raw[name]) for name, item in weights.items()}


@measured("obd")
def obd(weights: Weights, context: Context, *, diagonal: str = "fisher", probes: int = 32, draws: int = 0) -> Scores:
    """`sum h * w^2 / 2` over each group, h the diagonal of the Hessian of the mean loss, measured now; see `Obd`.

    `diagonal`, `probes` and `draws` are those of the criterion `obd`: `"fisher"` (one forward and backward pass),
    `"gauss_newton"` or `"hutchinson"`. A group whose sum is negative scores 0. Needs inputs and targets; independent of
    how the data is split into batches. A bad choice away from a minimum.

    LeCun, Denker, Solla, Optimal Brain Damage, 1990.
    """
    found = _flat(context, weights, diagonal_of(context, _leaves(context, weights), diagonal, probes, draws))
    rule = Obd({name: item.reshape(weights[name].grouping.ids.shape) for name, item in found.items()})
    return {name: rule(item) for name, item in weights.items()}


@measured("taylor_weights")
def taylor_weights(
    weights: Weights,
    context: Context,
    *,
    form: str = "group",
    order: int = 1,
    momentum: float | None = None,
    per: str = "batch",
) -> Scores:
    """`(sum g * w)^2` over each group, g the gradient of a mini-batch's mean loss, averaged over mini-batches.

    `form="absolute"` gives `|sum g * w|`, `"squares"` gives `sum (g * w)^2`. With `per="sample"` every sample counts by
    its own loss, so that slopes of opposite signs do not cancel and the split into batches does not matter; a pass for
    each sample, or about one for all where the gradients' squares are enough. `order` and `momentum` are those of the
    criterion `taylor_weights`. Needs inputs and targets. A bad choice at a minimum, where slopes are noise.

    Molchanov et al., Importance Estimation for Neural Network Pruning, 2019.
    """
    named("form", form, FORMS)
    named("per", per, PER)
    check_order(order)
    leaves = _leaves(context, weights)
    alone = all(int(item.grouping.sizes.max()) == 1 for item in weights.values())
    if PER[per] and order == 1 and momentum is None and (form == "squares" or (form == "group" and alone)):
        squares = _flat(context, weights, fisher(context, leaves))
        return {name: item.total(squares[name] * item.values.square()) for name, item in weights.items()}
    each, whole = FORMS[form]

    def scores(slopes: Mapping[str, Slope]) -> Scores:
        first = _flat(context, weights, {name: item.gradient for name, item in slopes.items()})
        curved = {name: item.curvature for name, item in slopes.items() if item.curvature is not None}
        second = _flat(context, weights, curved) if order > 1 else {}
        changes = {name: change(Slope(item.values, first[name], second.get(name))) for name, item in weights.items()}
        return {name: whole(item.total(each(changes[name]))) for name, item in weights.items()}

    passes = leaf_gradients(context, leaves, order=order, each=PER[per])
    return over_batches((scores(slopes) for _, slopes in passes), momentum)


def _slopes(weights: Weights, gradients: Mapping[str, Tensor], evidence: Evidence | None) -> dict[str, Any]:
    """What is known of the gradients, flat, or functions that find out when somebody asks."""
    if evidence is None or evidence.data is None:
        return {
            name: gradients[name].detach().to("cpu", torch.float64).flatten() for name in weights if name in gradients
        }
    found = cache(lambda: evidence.gradients(weights))
    return {name: (lambda name=name: found()[name]) for name in weights}


def _leaves(context: Context, names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(leaves_of(context, names).values()))


def _flat(context: Context, names: Iterable[str], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was found of leaves, by the weights' names, flat, float64, on the CPU; zeros for weights nothing reads."""
    read = leaves_of(context, names)
    sizes = dict(context.model.named_parameters(remove_duplicate=False))
    return {
        name: found[read[name]].detach().to("cpu", torch.float64).flatten()
        if name in read
        else torch.zeros(sizes[name].numel(), dtype=torch.float64)
        for name in names
    }


def _beside(data: Iterable[Any]) -> Iterable[Any]:
    """The data, to be read while a training reads it. Raises `InputError` where other processes see other parts."""
    if not isinstance(data, DataLoader):
        return data
    if isinstance(data.sampler, DistributedSampler) and data.sampler.num_replicas > 1:
        raise InputError(
            explain(
                "Every process would see other samples, and their masks would differ",
                where="importance",
                evidence=f"a DistributedSampler for {data.sampler.num_replicas} processes",
                next_step="give a loader without it; `finetune` shares out every batch by itself",
            )
        )
    if not data.persistent_workers:
        return data
    twin = copy.copy(data)  # the workers of the original may be in the middle of an epoch
    twin._iterator = None
    return twin


__all__ = [
    "Evidence",
    "check_importance",
    "check_read",
    "measured",
    "missing_data",
    "needs_data",
    "reads_data",
    "scores_of",
]
