"""The original with the removed channels silenced by hand: what a cut model must compute, from plain modules only.

Removed inputs of linear layers and convolutions are set to zero. Norms over removed channels are replaced by the same
norm over the channels that stay.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CONSUMED_DIM: dict[type[nn.Module], int] = {
    nn.Linear: 1,
    nn.Conv1d: 1,
    nn.Conv2d: 1,
    nn.Conv3d: 1,
    nn.ConvTranspose1d: 0,
    nn.ConvTranspose2d: 0,
    nn.ConvTranspose3d: 0,
}
LINEAR_IN_THEIR_WEIGHT = {  # by name: subclasses and other libraries' layers that multiply their input by their weight
    "Linear": 1,
    "NonDynamicallyQuantizableLinear": 1,
    "FalconLinear": 1,
    "Conv1D": 0,
    "Conv2dSame": 1,
}


class NotApplicableError(Exception):
    """The masked original cannot be made by hand for this plan, and why."""


@dataclass(frozen=True)
class Masked:
    """`doubt` is empty when a difference from this model proves a mistake, else what might explain one."""

    model: nn.Module
    doubt: str


def masked_original(original: nn.Module, plan: Any, groups: Any) -> Masked:
    """A copy of the original in which nothing depends on what the plan removes. Raises `NotApplicableError`."""
    model = copy.deepcopy(original)
    holders = _holders(model)
    cut_names = {decision.name for decision in plan.groups if len(decision.kept) < decision.size}
    cut = [group for group in groups if group.name in cut_names]
    with torch.no_grad():
        for group in cut:
            for tensor, leaf, dim in _silencing(group, holders):
                indices = list(plan.removed.get(leaf, {}).get(dim, ()))
                tensor.index_fill_(dim, torch.tensor(indices, dtype=torch.long), 0.0)
    _replace_norms(model, plan)
    return Masked(model, next((f"{group.name}: {group.inexact_because}" for group in cut if not group.exact), ""))


Holders = dict[str, list[tuple[nn.Module, str, Tensor]]]


def _holders(model: nn.Module) -> Holders:
    """For every name of a parameter, all places (module, attribute, tensor) that hold it; tied ones have several."""
    places: dict[int, list[tuple[nn.Module, str, Tensor]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name, parameter))
    return {name: places[id(item)] for name, item in model.named_parameters(remove_duplicate=False)}


def _silencing(group: Any, holders: Holders) -> list[tuple[Tensor, str, int]]:
    """Every tensor of the group, with leaf name and dimension, if zeros in all of them silence its channels.

    Layers that read the channels then do not; channels that only meet each other in a product (queries and keys) are
    zero already where they are made.
    """
    silenced: list[tuple[Tensor, str, int]] = []
    read = False
    for member in group.members:
        places = holders.get(member.leaf, [])
        reading = any(consumed_dim(module, name) == member.dim for module, name, _ in places)
        if member.role == "in" and not reading:
            kinds = " or ".join(type(module).__name__ for module, _, _ in places) or "no module"
            raise NotApplicableError(f"{group.name} is read by {member.leaf} of {kinds}")
        read |= reading
        silenced += [(tensor, member.leaf, member.dim) for _, _, tensor in places[:1]]
    if not read:
        _check_makers(group, holders)
    return silenced


def _check_makers(group: Any, holders: Holders) -> None:
    """Only linear layers, convolutions and batch norms make zeros from zeros; raises `NotApplicableError` otherwise."""
    for member in group.members:
        for module, _, _ in holders.get(member.leaf, []) or [(None, "", None)]:
            plain = module is not None and (consumed_dim(module, "weight") == 1 or hasattr(module, "running_mean"))
            if member.dim or not plain:
                raise NotApplicableError(f"{group.name} is read by no plain layer and made by {member.leaf}")


def consumed_dim(module: nn.Module, name: str) -> int | None:
    """The dimension of this parameter that reads the layer's input; None where it does not enter linearly."""
    if isinstance(module, nn.MultiheadAttention):
        return 1 if name == "in_proj_weight" else None
    if name != "weight":
        return None
    return CONSUMED_DIM.get(type(module), LINEAR_IN_THEIR_WEIGHT.get(type(module).__name__))


class NormOverKept(nn.Module):
    """A norm over the channels that stay, as a cut model has it; the others come out as zero."""

    def __init__(self, norm: nn.Module, kept: Tensor, full: int) -> None:
        super().__init__()
        self.norm = norm
        self.full = full
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        dim = self._axis(x)
        return torch.zeros_like(x).index_copy(dim, self.kept, self.norm(x.index_select(dim, self.kept)))

    def _axis(self, x: Tensor) -> int:
        """Channels are last, or second for norms over images."""
        axes = [dim for dim in (-1, 1) if x.dim() > 1 and x.shape[dim] == self.full] or [-1]
        second = "2d" in type(self.norm).__name__ or getattr(self.norm, "data_format", "") == "channels_first"
        return axes[-1] if second else axes[0]


def _replace_norms(model: nn.Module, plan: Any) -> None:
    for path, module in list(model.named_modules()):
        if _normalises_channels(module):
            prefix = path + "." if path else ""
            own = {name: plan.removed.get(prefix + name, {}) for name, _ in module.named_parameters(recurse=False)}
            if any(own.values()):
                parent = model.get_submodule(path.rpartition(".")[0])
                setattr(parent, path.rpartition(".")[2], _over_kept(module, own))


def _normalises_channels(module: nn.Module) -> bool:
    name = type(module).__name__
    apart = hasattr(module, "running_mean") or getattr(module, "num_groups", 1) == getattr(module, "num_channels", 0)
    return ("Norm" in name or name.endswith("GRN")) and not apart and not list(module.children())


def _over_kept(module: nn.Module, removed: dict[str, Any]) -> NormOverKept:
    norm = copy.deepcopy(module)
    if getattr(norm, "num_groups", 1) != 1:
        raise NotApplicableError(f"{type(norm).__name__} in {norm.num_groups} groups")
    kept, full = torch.empty(0, dtype=torch.long), 0
    for name, dims in removed.items():
        parameter = getattr(norm, name)
        for dim, indices in dims.items():
            full = parameter.shape[dim]
            kept = torch.tensor(sorted(set(range(full)) - set(indices)), dtype=torch.long)
            parameter = parameter.detach().index_select(dim, kept)
        setattr(norm, name, nn.Parameter(parameter))
    if hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (len(kept),)
    if hasattr(norm, "num_channels"):
        norm.num_channels = len(kept)
    return NormOverKept(norm, kept, full)
