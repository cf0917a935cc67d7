"""`score`: one number per unit of every free group, by a named criterion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.errors import InputError, explain, nearest
from secateurs.base.errors import UnknownNameError as UnknownName
from secateurs.base.registry import Registry
from secateurs.couple.group import ChannelGroup, Groups, Member

Criterion = Callable[[ChannelGroup, "Context"], Tensor]
CRITERIA: Registry[Criterion] = Registry("criterion")


@dataclass(frozen=True)
class Context:
    """What a criterion may look at: the leaves by name, a seeded generator, and how member scores combine."""

    tensors: Mapping[str, Tensor]
    generator: torch.Generator
    combine: str = "mean"

    def weight(self, member: Member) -> Tensor:
        """The member's leaf as a matrix `[indices along the axis, everything else]`, at least float32."""
        tensor = self.tensors[member.leaf].detach()
        rows = tensor.movedim(member.dim, 0).reshape(tensor.shape[member.dim], -1)
        return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()

    def producers(self, group: ChannelGroup) -> list[Member]:
        """The weight matrices and kernels that produce the group's channels; if there are none, whatever holds it."""
        floating = [m for m in group.members if self.tensors[m.leaf].is_floating_point()]
        filters = [m for m in floating if m.role == "out" and self.tensors[m.leaf].dim() > 1]
        return filters or floating


COMBINE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda stacked: stacked.mean(0),
    "sum": lambda stacked: stacked.sum(0),
    "max": lambda stacked: stacked.amax(0),
    "min": lambda stacked: stacked.amin(0),
    "geometric_mean": lambda stacked: stacked.clamp_min(0).log().mean(0).exp(),
}
NORMALIZE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda scores: scores,
    "mean": lambda scores: scores / scores.mean(),
    "max": lambda scores: scores / scores.max(),
    "sum": lambda scores: scores / scores.sum(),
    "l2": lambda scores: scores / scores.norm(),
}


def score(
    groups: Groups,
    model: nn.Module,
    criterion: str | Criterion = "l1",
    *,
    combine: str = "mean",
    normalize: str = "mean",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Scores `{group name: Tensor[size]}` for every free group, float64; higher = keep.

    `criterion` is a registered name or a function `(group, context) -> Tensor[size]`. `combine` merges the scores of
    the layers that are coupled in a group (`mean`, `sum`, `max`, `min`, `geometric_mean`); `normalize` makes groups
    comparable with each other (`mean`: divide by the group's mean, `max`, `sum`, `l2`, `none`).

    Raises `UnknownNameError` for an unknown name and `InputError` for scores that are not finite or of the wrong size,
    or when `model` is not the one that `groups` were found in.
    """
    rule = CRITERIA[criterion] if isinstance(criterion, str) else criterion
    scale = _named("normalisation", normalize, NORMALIZE)
    _named("combination", combine, COMBINE)
    context = Context(_tensors_of(groups, model), torch.Generator().manual_seed(seed), combine)
    name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", repr(criterion))
    result: dict[str, Tensor] = {}
    with torch.no_grad():
        for group in groups.free:
            scaled = scale(_checked(rule(group, context), group, name))
            result[group.name] = scaled if bool(torch.isfinite(scaled).all()) else torch.zeros_like(scaled)
    return result


def _tensors_of(groups: Groups, model: nn.Module) -> dict[str, Tensor]:
    """The leaves that the groups speak of, by name. Raises `InputError` if this is another model."""
    tensors: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **groups.graph.constants,
    }
    for leaf in groups.graph.leaves:
        found = tuple(tensors[leaf.name].shape) if leaf.name in tensors else None
        if found != leaf.shape:
            raise InputError(
                explain(
                    "The groups belong to another model",
                    where=f"`{leaf.name}`",
                    evidence=f"shape {leaf.shape} in the groups, {found or 'nothing of that name'} in the model",
                    next_step="capture and couple this model",
                )
            )
    return tensors


def _checked(raw: Any, group: ChannelGroup, criterion: str) -> Tensor:
    """What a criterion gave, in float64. Raises `InputError` if these are no scores of this group."""
    evidence = f"it gave a {type(raw).__name__}"
    if isinstance(raw, Tensor):
        broken = int((~torch.isfinite(raw)).sum())
        if tuple(raw.shape) == (group.size,) and not broken:
            return raw.detach().to("cpu", torch.float64)
        evidence = f"shape {tuple(raw.shape)} for {group.size} units, {broken} not finite"
    raise InputError(
        explain(
            f"The criterion {criterion!r} gives no usable scores",
            where=f"group `{group.name}`",
            evidence=evidence,
            next_step="check the weights, or the criterion if it is your own",
        )
    )


def combined(
    group: ChannelGroup, context: Context, along: Callable[[Tensor], Tensor], merge: Callable[[Tensor], Tensor]
) -> Tensor:
    """Score every producer and combine them.

    `along` turns a matrix `[indices, rest]` into one number per index; `merge` turns the numbers `[size, positions]` of
    one unit's positions into one per unit.
    """
    rows: list[Tensor] = []
    for member in context.producers(group):
        numbers = along(context.weight(member)).to("cpu", torch.float64)
        order = torch.from_numpy(member.units.copy()).argsort(stable=True)
        mine = order[int((member.units < 0).sum()) :]
        rows.append(merge(numbers[mine].reshape(group.size, -1)))
    return COMBINE[context.combine](torch.stack(rows))


def _named(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name in known:
        return known[name]
    close = nearest(name, known)
    raise UnknownName(
        explain(
            f"There is no {kind} named {name!r}",
            evidence=f"known: {', '.join(sorted(known))}",
            next_step=f"did you mean {close[0]!r}?" if close else "",
        )
    )
