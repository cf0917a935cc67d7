"""What a criterion is, what it may look at, and which there are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.registry import Registry
from secateurs.capture.program import BatchAxis
from secateurs.couple.group import ChannelGroup, Groups, Member
from secateurs.couple.sites import Site, consumption_sites
from secateurs.score.samples import Batch, Samples

T = TypeVar("T")
Rule = Callable[..., Tensor]
"""`(group, context, **options) -> Tensor`: scores `[size]`, or rows `[members, size]`; higher = keep."""
Charge = Callable[..., float]
"""`(group, context, **options) -> float`: what every unit of the group costs."""


@dataclass(frozen=True)
class Criterion:
    """A rule and what it takes.

    `needs`: nothing (`""`: weights are enough), `"data"` (inputs) or `"loss"` (inputs and targets). `normalizer` is the
    default that makes its scores comparable across groups. `charge` is what a unit's score loses once it is normalised
    and equalised; it is called with those of the options that it has.
    """

    name: str
    rule: Rule
    needs: str = ""
    normalizer: str = "mean"
    charge: Charge | None = None
    __doc__: str | None = field(default=None, repr=False)

    def __call__(self, group: ChannelGroup, context: Context, **options: Any) -> Tensor:
        return self.rule(group, context, **options)

    def charged(self, group: ChannelGroup, context: Context, options: Mapping[str, Any]) -> float:
        """What every unit of the group has to give for its cost."""
        if self.charge is None:
            return 0.0
        taken = inspect.signature(self.charge).parameters
        return self.charge(group, context, **{name: value for name, value in options.items() if name in taken})

    @cached_property
    def options(self) -> dict[str, Any]:
        """The keyword options with their defaults."""
        return options_of(self.rule)

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises `UnknownNameError` for an option that the criterion does not have, `InputError` for no number."""
        check_options(f"criterion {self.name!r}", self.options, options)


def options_of(rule: Callable[..., Any]) -> dict[str, Any]:
    """The keyword options of a rule, which come behind the two things that it looks at, with their defaults."""
    given = list(inspect.signature(rule).parameters.values())[2:]
    return {item.name: item.default for item in given if item.default is not item.empty}


def check_options(what: str, known: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises `UnknownNameError` for an option that is not `known`, by name with its default, `InputError` for no
    number where there should be one.
    """
    for name in options:
        if name not in known:
            close = nearest(name, known)
            raise UnknownNameError(
                explain(
                    f"The {what} has no option {name!r}",
                    evidence=f"its options: {', '.join(known) or 'none'}",
                    next_step=f"did you mean {close[0]!r}?" if close else "",
                )
            )
        number = isinstance(known[name], (int, float)) and not isinstance(known[name], bool)
        if number and isinstance(options[name], (str, bool)):
            raise InputError(
                explain(
                    f"The option {name!r} of the {what} is a number",
                    evidence=f"{options[name]!r} given",
                    next_step=f"give a number, such as the default, {known[name]!r}",
                )
            )


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str, *, needs: str = "", normalizer: str = "mean", charge: Charge | None = None
) -> Callable[[Rule], Rule]:
    """Decorator: `@criterion("apoz", needs="data")` registers a rule; the rule stays an ordinary function."""

    def add(rule: Rule) -> Rule:
        CRITERIA.register(name)(Criterion(name, rule, needs, normalizer, charge, rule.__doc__))
        return rule

    return add


@dataclass(frozen=True)
class Tap:
    """A value that consumers of a group read: one feature map after batch norm, activation and pooling.

    `units[i]` is the unit of the group that owns index `i` along `dim`, or -1. `nodes` are the consumers.
    """

    value: int
    dim: int
    units: Tensor
    nodes: tuple[int, ...]

    def per_unit(self, entries: Tensor, size: int) -> Tensor:
        """Sums over the indices that each unit owns: `[..., indices]` -> `[..., size]`."""
        units = self.units.to(entries.device)
        mine = units >= 0
        result = entries.new_zeros((*entries.shape[:-1], size))
        return result.index_add_(entries.dim() - 1, units[mine], entries[..., mine])

    def by_channel(self, tensor: Tensor) -> Tensor:
        """The value as `[everything else, indices along dim]`."""
        return tensor.movedim(self.dim, -1).flatten(0, -2) if tensor.dim() > 1 else tensor.unsqueeze(0)

    def by_sample(self, tensor: Tensor, axis: BatchAxis) -> Tensor:
        """The value as `[samples, everything else, indices along dim]`."""
        moved = axis.by_sample(tensor).unsqueeze(1)  # [samples, 1, entries, the other dimensions]
        others = [dim for dim in range(tensor.dim()) if dim != axis.dim]
        place = 2 if self.dim == axis.dim else 3 + others.index(self.dim)
        return moved.movedim(place, -1).flatten(1, -2)


@dataclass
class Context:
    """What a criterion may look at: the groups, the leaves by name, the data, and a seeded generator."""

    groups: Groups
    model: nn.Module
    tensors: Mapping[str, Tensor]
    generator: torch.Generator
    samples: Samples | None = None
    seed: int = 0
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def weight(self, member: Member) -> Tensor:
        """The member's leaf as a matrix `[indices along the axis, everything else]`, at least float32."""
        return self.matrix(member, self.tensors[member.leaf].detach())

    def matrix(self, member: Member, tensor: Tensor) -> Tensor:
        """A tensor shaped like the member's leaf as `[indices along the axis, everything else]`, at least float32."""
        rows = tensor.movedim(member.dim, 0).reshape(tensor.shape[member.dim], -1)
        return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()

    def producers(self, group: ChannelGroup) -> list[Member]:
        """The weight matrices and kernels that produce the group's channels; if there are none, whatever holds it."""
        floating = [m for m in group.members if self.tensors[m.leaf].is_floating_point()]
        filters = [m for m in floating if m.role == "out" and self.tensors[m.leaf].dim() > 1]
        return filters or floating

    def consumers(self, group: ChannelGroup) -> list[Member]:
        """The weight matrices and kernels that read the group's channels."""
        return [m for m in group.members if m.role == "in" and self.tensors[m.leaf].dim() > 1]

    def by_unit(self, group: ChannelGroup, member: Member, numbers: Tensor) -> Tensor:
        """One number per index of the member's axis `[indices, ...]` as `[size, positions of a unit, ...]`."""
        order = torch.from_numpy(member.units.copy()).argsort(stable=True).to(numbers.device)
        mine = order[int((member.units < 0).sum()) :]
        return numbers[mine].reshape(group.size, -1, *numbers.shape[1:])

    def rows(self, group: ChannelGroup, along: Callable[[Tensor], Tensor], merge: Callable[[Tensor], Tensor]) -> Tensor:
        """Every producer's scores, `[members, size]`.

        `along` turns a matrix `[indices, rest]` into one number per index; `merge` turns the numbers `[size,
        positions]` of one unit's positions into one per unit.
        """
        found = [
            merge(self.by_unit(group, member, along(self.weight(member)).to("cpu", torch.float64)))
            for member in self.producers(group)
        ]
        return torch.stack(found)

    @cached_property
    def sites(self) -> dict[str, tuple[Site, ...]]:
        """Where each group's units are summed away, by group name."""
        return consumption_sites(self.groups)

    @cached_property
    def taps(self) -> dict[str, tuple[Tap, ...]]:
        """The values in which consumers read each group, by group name."""
        found: dict[str, tuple[Tap, ...]] = {}
        for name, sites in self.sites.items():
            merged: dict[tuple[int, int, bytes], list[Site]] = {}
            for site in (site for site in sites if not site.inside):
                merged.setdefault((site.value, site.dim, site.units.tobytes()), []).append(site)
            found[name] = tuple(
                Tap(mine[0].value, mine[0].dim, torch.from_numpy(mine[0].units), tuple(site.node for site in mine))
                for mine in merged.values()
            )
        return found

    def batches(self) -> Iterator[Batch]:
        """The batches of the data, the same ones each time.

        Raises `InputError` when no data was given.
        """
        if self.samples is None:
            raise InputError(
                explain("There is no data to look at", next_step="pass `data=`, batches of (inputs, target)")
            )
        return iter(self.samples)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """`make()`, computed at the first call with this key: what one pass over the data gives to all groups."""
        if key not in self._kept:
            self._kept[key] = make()
        result: T = self._kept[key]
        return result


__all__ = ["CRITERIA", "Batch", "Context", "Criterion", "Rule", "Tap", "check_options", "criterion", "options_of"]
