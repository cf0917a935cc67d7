"""Soft filter pruning: after every epoch the smallest filters are set to zero, and trained on all the same.

He, Kang, Dong, Fu, Yang: Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, 2018 (1808.06866).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import Batches
from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.couple.group import ChannelGroup, Groups, Member
from secateurs.couple.rules.registry import base_name
from secateurs.score import score
from secateurs.train.coupled import coupled_on

NORMS = ("l1", "l2")
LAYERS = frozenset(
    f"aten.{name}"
    for name in ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
                 "conv_transpose3d", "linear")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Soft:
    """After every `every`-th epoch, and at the end, `floor(fraction * size + 0.5)` filters of each group are zeroed.

    The ones that go have the smallest `norm` (`"l1"` or `"l2"`). Their weights become 0 and are trained like all
    others, so they may come back; biases, batch norms and the optimizer's memory stay as they are. Layers that are
    coupled (a residual stage, a depthwise convolution and what feeds it) zero the same units: each layer's norms are
    divided by their mean over its filters, and the mean over the layers decides. At least one unit stays.

    A group takes part if something of it could be removed and all that produces it are weights of convolutions and
    linear layers; embeddings and weights that are computed (weight norm) keep their group out. `exclude` keeps out
    what matches, as in `couple`.

    Costs one look at the weights for each of these epochs. A bad choice for a training of few epochs, in which filters
    have no time to come back, and where layers differ in how much they can lose: all lose the same share.

    Raises `UnknownNameError` for an unknown norm and `InputError` for a number out of range.
    """

    fraction: float = 0.3
    norm: str = "l2"
    every: int = 1
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            close = nearest(str(self.norm), NORMS)
            raise UnknownNameError(
                explain(
                    f"There is no norm named {self.norm!r}",
                    where="Soft(norm=...)",
                    evidence=f"known: {', '.join(NORMS)}",
                    next_step=f"did you mean {close[0]!r}?" if close else "pick one of the known names",
                )
            )
        number = isinstance(self.fraction, (int, float)) and not isinstance(self.fraction, bool)
        if not number or not 0 < self.fraction < 1:
            raise _unusable("fraction", self.fraction, "give the share of filters to zero, above 0 and below 1")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise _unusable("every", self.every, "give a number of epochs, at least 1")
        if isinstance(self.exclude, str):
            raise _unusable("exclude", self.exclude, f"give a list: exclude=[{self.exclude!r}]")
        object.__setattr__(self, "exclude", tuple(self.exclude))

    def identity(self) -> dict[str, Any]:
        """The settings as JSON data."""
        return {**asdict(self), "exclude": list(self.exclude)}

    def count(self, size: int) -> int:
        """How many of `size` units are zero after an epoch."""
        return min(int(self.fraction * size + 0.5), size - 1)


class Filters:
    """The filters of one network by group; which of them are zero follows from the weights alone."""

    def __init__(self, groups: Groups, config: Soft) -> None:
        self.groups, self.config = groups, config
        derived = _not_from_layers(groups)
        self.producers = {
            group.name: found for group in groups.free if (found := _producers(groups, group, derived)) is not None
        }
        if not any(config.count(groups[name].size) for name in self.producers):
            raise InputError(
                explain(
                    "There is no filter to set to zero",
                    evidence=f"{len(self.producers)} of {len(groups)} groups take part, and none is large enough for "
                    f"a fraction of {config.fraction:g}",
                    next_step="give a larger fraction, exclude less, or see `secateurs inspect` for what holds layers",
                )
            )

    @classmethod
    def of(cls, model: nn.Module, batches: Batches, config: Soft) -> Filters:
        """The filters as they are coupled on the first batch."""
        return cls(coupled_on(batches, model, config.exclude), config)

    def due(self, epoch: int) -> bool:
        """Are filters zeroed after this epoch, counted from 1?"""
        return epoch % self.config.every == 0

    def zero(self, model: nn.Module) -> None:
        """Set the smallest filters of every group of `model` to zero, in place."""
        scores = score(self.groups, model, self.config.norm)
        tensors = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, members in self.producers.items():
                chosen = scores[name].argsort(stable=True)[: self.config.count(self.groups[name].size)]
                for member in members:
                    tensor = tensors[member.leaf]
                    gone = torch.isin(torch.from_numpy(member.units.copy()), chosen).nonzero().flatten()
                    tensor.index_fill_(member.dim, gone.to(tensor.device), 0.0)

    def zeros(self, model: nn.Module) -> dict[str, list[int]]:
        """`{group name: units}` whose filters are all zero in `model`, in ascending order."""
        tensors = dict(model.named_parameters(remove_duplicate=False))
        return {
            name: [unit for unit in range(self.groups[name].size) if all(_is_zero(tensors, m, unit) for m in members)]
            for name, members in self.producers.items()
        }


def _is_zero(tensors: Mapping[str, Tensor], member: Member, unit: int) -> bool:
    tensor = tensors[member.leaf].detach()
    rows = tensor.index_select(member.dim, torch.from_numpy(member.positions(unit)).to(tensor.device))
    return not bool(rows.any())


def _producers(groups: Groups, group: ChannelGroup, derived: frozenset[str]) -> tuple[Member, ...] | None:
    """The weights whose zeros silence the group, None if there are none or others besides."""
    graph = groups.graph
    found = []
    for member in group.members:
        leaf = graph.leaf(member.leaf)
        each = torch.Size(leaf.shape).numel() // leaf.shape[member.dim]
        if member.role != "out" or leaf.kind != "parameter" or (leaf.name in derived and each == 1):
            continue
        if leaf.name in derived and len(leaf.shape) > 1:
            return None
        if leaf.name not in derived:
            found.append(member)
    return tuple(found) or None


def _not_from_layers(groups: Groups) -> frozenset[str]:
    """Leaves that some operator reads as anything but the weight of a convolution or a linear layer."""
    names = {leaf.value: leaf.name for leaf in groups.graph.leaves}
    weights: set[str] = set()
    others: set[str] = set()
    for node in groups.graph.nodes:
        for position, value in enumerate(node.inputs):
            if value in names:
                layer = base_name(node.op) in LAYERS and position == 1
                (weights if layer else others).add(names[value])
    return frozenset(others | (set(names.values()) - weights))


def _unusable(field: str, value: object, next_step: str) -> InputError:
    return InputError(explain(f"Soft({field}={value!r}) cannot be used", next_step=next_step))
