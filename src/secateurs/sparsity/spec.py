"""`Spec`: which masks are wanted, as plain data; and the masks, from weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.globs import fits
from secateurs.sparsity.distribution import DISTRIBUTIONS
from secateurs.sparsity.importance import GroupedWeight, Importance
from secateurs.sparsity.measured import Evidence, check_importance, scores_of
from secateurs.sparsity.pattern import Grouping, Pattern, parse_pattern
from secateurs.sparsity.select import best_of_blocks, largest
from secateurs.sparsity.threshold import Threshold
from secateurs.sparsity.weights import LayerWeight, check_finite

T = TypeVar("T")
Target = float | Threshold
ByLayer = Mapping[Any, T]
"""Values by parameter or module name, glob on these, or module class; see `by_layer`."""

Masks = dict[str, Tensor]
"""Bool tensors by parameter name, True = kept, each on the device of its parameter."""

SCOPES = ("layer", "global")
SHARE = "the share that becomes zero, from 0 to below 1, such as 0.9 for 90 %"


@dataclass(frozen=True)
class Spec:
    """What `masks` takes, checked. See there."""

    sparsity: Target | ByLayer[Target] | None
    pattern: str | Pattern = "weight"
    importance: str | Importance | None = None
    scope: str = "layer"
    distribution: str = "uniform"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", parse_pattern(self.pattern))
        object.__setattr__(self, "sparsity", plain_targets(self.sparsity))
        check_importance(self.measure, self.options)
        DISTRIBUTIONS[self.distribution]
        if self.scope not in SCOPES:
            raise _contradiction(f"scope={self.scope!r}", f"give one of {', '.join(SCOPES)}")
        if self.scope == "global" and (self.distribution != "uniform" or not _is_number(self.sparsity)):
            raise _contradiction("scope='global'", "give one sparsity, and no distribution: the ranking decides")
        if self.distribution != "uniform" and not _is_number(self.sparsity):
            raise _contradiction(f"distribution={self.distribution!r}", "give it one sparsity to share out")
        if self.form.decides != (self.sparsity is None):
            step = f"leave out `sparsity`: `{self.form}` fixes it" if self.form.decides else f"give `sparsity`, {SHARE}"
            raise _contradiction(f"sparsity={_short(self.sparsity)} with pattern={str(self.form)!r}", step)
        for target in self.sparsity.values() if isinstance(self.sparsity, Mapping) else [self.sparsity]:
            if not isinstance(target, (Threshold, type(None))) and not (_is_number(target) and 0 <= target < 1):
                raise _contradiction(f"sparsity={_short(target)}", f"give {SHARE}")

    @property
    def form(self) -> Pattern:
        """The pattern, read."""
        return parse_pattern(self.pattern)

    @property
    def measure(self) -> str | Importance:
        """The importance: the pattern's own if none is given; against a threshold, one on the scale of one weight."""
        own = self.form.importance
        return self.importance or ("mean" if self._has_threshold and own == "l1" else own)

    @property
    def _has_threshold(self) -> bool:
        given = self.sparsity.values() if isinstance(self.sparsity, Mapping) else [self.sparsity]
        return any(isinstance(target, Threshold) for target in given)

    def targets(self, weights: Mapping[str, LayerWeight]) -> dict[str, Target]:
        """What each layer is to reach; layers without a target are left out.

        Raises `UnknownNameError` for a target of no layer.
        """
        if isinstance(self.sparsity, Mapping):
            return by_layer(self.sparsity, weights, "sparsity")
        if isinstance(self.sparsity, Threshold) or self.sparsity is None:
            return dict.fromkeys(weights, self.sparsity or 0.0)
        shapes = {name: tuple(item.tensor.shape) for name, item in weights.items()}
        return {**DISTRIBUTIONS[self.distribution](shapes, self.sparsity)}


def masks_of(
    weights: Mapping[str, LayerWeight],
    spec: Spec,
    *,
    targets: Mapping[str, Target] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    within: Mapping[str, Tensor] | None = None,
    evidence: Evidence | None = None,
) -> Masks:
    """The masks of these weights. `targets` replaces those of the spec; with `scope="global"` all are the same."""
    targets = spec.targets(weights) if targets is None else targets
    alive = {name: mask.cpu() for name, mask in (within or {}).items()}
    grouped = {name: _grouped(weights[name], spec, alive.get(name)) for name in targets}
    scores = scores_of(grouped, spec.measure, options=spec.options, gradients=gradients, evidence=evidence)
    rated = {name: _Rated.of(item, scores[name], alive.get(name)) for name, item in grouped.items()}
    if spec.scope == "global":
        together = largest(torch.cat([item.scores for item in rated.values()]), _share(targets))
        parts = torch.split(together, [item.scores.numel() for item in rated.values()])
        kept = dict(zip(rated, parts, strict=True))
    else:
        kept = {name: item.choose(targets[name]) for name, item in rated.items()}
    return {name: item.mask(kept[name]).to(weights[name].tensor.device) for name, item in rated.items()}


@dataclass(frozen=True)
class _Rated:
    """A weight's groups with their scores; groups that are gone already score -inf."""

    weight: GroupedWeight
    scores: Tensor
    within: Tensor | None

    @staticmethod
    def of(weight: GroupedWeight, scores: Tensor, within: Tensor | None) -> _Rated:
        if within is not None:
            scores = torch.where(weight.grouping.kept(within), scores, -torch.inf)
        return _Rated(weight, scores, within)

    def choose(self, target: Target) -> Tensor:
        grouping = self.weight.grouping
        if grouping.blocks is not None:
            return best_of_blocks(self.scores, grouping.blocks, grouping.quota)
        if isinstance(target, Threshold):
            values = self.weight.values if self.within is None else self.weight.values[self.within.flatten()]
            return self.scores >= target.of(values)
        return largest(self.scores, target)

    def mask(self, kept: Tensor) -> Tensor:
        found = self.weight.grouping.spread(kept)
        return found if self.within is None else found & self.within


def _grouped(weight: LayerWeight, spec: Spec, within: Tensor | None) -> GroupedWeight:
    """The weight, zero where it is not `within`, and its groups."""
    check_finite(weight)
    grouping: Grouping = spec.form.groups(tuple(weight.tensor.shape), weight.layout)
    flat = weight.tensor.detach().to("cpu", torch.float64).flatten()
    if within is not None:
        flat = torch.where(within.flatten(), flat, 0.0)
    return GroupedWeight(weight.name, flat, grouping)


def _share(targets: Mapping[str, Target]) -> float:
    (share,) = {item for item in targets.values() if not isinstance(item, Threshold)}
    return share


def by_layer(given: ByLayer[T], weights: Mapping[str, LayerWeight], where: str) -> dict[str, T]:
    """Values by parameter name; a key may name a module instead, be a glob on both, or a class of modules. Names
    overrule globs, globs classes, names of inner modules those of outer ones, and classes those that they derive from.
    A tied weight goes by each of its names.

    Raises `UnknownNameError` for a key of no layer and `InputError` for any other key, or where two classes that have
    nothing to do with each other both say something of one layer.
    """
    texts = [key for key in given if isinstance(key, str)]
    kinds = _by_class([key for key in given if not isinstance(key, str)], weights, where)
    found: dict[str, T] = {}
    own = {other: name for name, item in weights.items() for other in (name, *item.names)}
    for key in sorted(texts, key=lambda item: (item in own or not set(item) & set("*?["), item.count("."))):
        mine = [own[key]] if key in own else [name for other, name in own.items() if _under(other, key)]
        if not mine:
            close = nearest(key, weights)
            raise UnknownNameError(
                explain(
                    f"There is no weight named {key!r}",
                    where=where,
                    evidence=f"weights: {', '.join(list(weights)[:5])}",
                    next_step=f"did you mean {close[0]!r}?" if close else "",
                )
            )
        if key in own and any(given[other] != given[key] for other in texts if own.get(other) == own[key]):
            raise InputError(
                explain(
                    f"`{own[key]}` is given two values, under two of its names",
                    where=where,
                    evidence=f"one tied weight: {', '.join(other for other in texts if own.get(other) == own[key])}",
                    next_step="give one",
                )
            )
        found.update(dict.fromkeys(mine, given[key]))
    for name in kinds.keys() - found.keys():
        found[name] = given[_nearest_class(name, kinds[name], given, where)]
    return {name: found[name] for name in weights if name in found}


def _by_class(keys: list[Any], weights: Mapping[str, LayerWeight], where: str) -> dict[str, list[type]]:
    """By parameter name those of the classes to which a module that owns the parameter belongs."""
    matched: dict[str, list[type]] = {}
    for key in keys:
        if not isinstance(key, type):
            step = 'name parameters or modules, such as "fc*", or give classes, such as nn.Linear'
            raise InputError(explain(f"{key!r} names no layer", where=where, next_step=step))
        mine = [name for name, item in weights.items() if any(issubclass(kind, key) for kind in item.kinds)]
        if not mine:
            there = dict.fromkeys(kind.__name__ for item in weights.values() for kind in item.kinds)
            raise UnknownNameError(
                explain(f"No {key.__name__} has a weight here", where=where, evidence=f"there is {', '.join(there)}")
            )
        for name in mine:
            matched.setdefault(name, []).append(key)
    return matched


def _nearest_class(name: str, kinds: list[type], given: Mapping[Any, Any], where: str) -> type:
    """The class that the others derive from least. Raises `InputError` where two say different things."""
    lowest = [kind for kind in kinds if not any(other is not kind and issubclass(other, kind) for other in kinds)]
    if any(given[kind] != given[lowest[0]] for kind in lowest):
        raise InputError(
            explain(
                f"Two classes say different things of `{name}`",
                where=where,
                evidence=", ".join(f"{kind.__name__}: {given[kind]!r}" for kind in lowest),
                next_step="name the layer itself: names overrule classes",
            )
        )
    return lowest[0]


def _under(name: str, glob: str) -> bool:
    """Does the glob match the parameter or a module that holds it?"""
    steps = name.split(".")
    return any(fits(".".join(steps[: count + 1]), glob) for count in range(len(steps)))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def plain_targets(given: Any) -> Any:
    """The same with numbers of other kinds, as of numpy, as floats: what is stored is read by others."""
    if isinstance(given, Mapping):
        return {key: plain_targets(item) for key, item in given.items()}
    return float(given) if _is_number(given) and not isinstance(given, int) else given


def _short(value: object) -> str:
    """As it was given; only its type where that is long, as of data in the place of a number."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"<{type(value).__name__}>"


def _contradiction(what: str, next_step: str) -> InputError:
    return InputError(explain(f"{what} cannot be used", where="masks", next_step=next_step))


def with_tensors(weights: Mapping[str, LayerWeight], tensors: Mapping[str, Tensor]) -> dict[str, LayerWeight]:
    """The same layers with other values."""
    return {name: replace(item, tensor=tensors.get(name, item.tensor)) for name, item in weights.items()}


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """What is in `.grad` now, by parameter name."""
    return {name: item.grad for name, item in model.named_parameters() if item.grad is not None}


__all__ = ["ByLayer", "Masks", "Spec", "Target", "by_layer", "gradients_of", "masks_of", "with_tensors"]
