"""Optimizers by name, and the optimizer of an uncut model carried over to the cut one with its momentum."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateurs.base.errors import PlanError, TrainError, explain
from secateurs.choose.plan import Plan
from secateurs.train.config import FineTune

Removed = Mapping[str, Mapping[int, Sequence[int]]]


def build_optimizer(config: FineTune, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer that `config` names, over `parameters`."""
    listed = list(parameters)
    if config.optimizer == "sgd":
        return torch.optim.SGD(listed, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "adam":
        return torch.optim.Adam(listed, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(listed, lr=config.lr, weight_decay=config.weight_decay)


def cut_optimizer(optimizer: Optimizer, old_model: nn.Module, new_model: nn.Module, plan: Plan) -> Optimizer:
    """An optimizer for `new_model` that goes on where `optimizer` stood on `old_model`.

    Same class, same parameter groups, same settings; every state tensor of a parameter's shape (momentum, averages of
    gradients and of their squares) loses the indices that `plan` removed from the parameter; counters are copied.
    Neither model nor the old optimizer is changed. A parameter that the new model no longer has is left out.

    Raises `TrainError` when the optimizer does not belong to `old_model` or keeps state that cannot be sliced, and
    `PlanError` when the slices do not have the new parameters' shapes.
    """
    return carry_over(optimizer, old_model, new_model, plan.removed)


def carry_over(optimizer: Optimizer, old_model: nn.Module, new_model: nn.Module, removed: Removed) -> Optimizer:
    """As `cut_optimizer`, given a plan's `removed` alone; with `{}`, from a model to its copy."""
    partners = _partners(optimizer, old_model, new_model, removed)
    groups = [_cut_group(group, partners) for group in optimizer.param_groups]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise TrainError(explain("None of the optimizer's parameters is left in the new model"))
    fresh = _same_class(optimizer, groups)
    for old, (new, kept) in partners.items():
        if new is not None and old in optimizer.state:
            state = optimizer.state[old]
            fresh.state[new] = {key: _cut_state(key, value, old, new, kept) for key, value in state.items()}
    return fresh


Kept = dict[int, Tensor]
_Partners = dict[Tensor, tuple[nn.Parameter | None, Kept]]


def _partners(optimizer: Optimizer, old_model: nn.Module, new_model: nn.Module, removed: Removed) -> _Partners:
    """For each parameter of the old optimizer: the new model's, and the indices kept along each dimension cut."""
    names: dict[Tensor, list[str]] = {}
    for name, parameter in old_model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    new = dict(new_model.named_parameters(remove_duplicate=False))
    partners: _Partners = {}
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            if parameter not in names:
                raise TrainError(
                    explain(
                        "The optimizer holds a parameter that is not in the old model",
                        where=f"parameter {position} of group {number}, shape {list(parameter.shape)}",
                        next_step="pass the optimizer together with the very model it was made for, before the cut",
                    )
                )
            own = names[parameter]
            partner = next((new[name] for name in own if name in new), None)
            kept = _kept(parameter, own, removed)
            if partner is not None:
                _check_shape(own[0], parameter, partner, kept)
            partners[parameter] = (partner, kept)
    return partners


def _kept(parameter: Tensor, names: Sequence[str], removed: Removed) -> Kept:
    kept: Kept = {}
    for name in names:
        for dim, indices in removed.get(name, {}).items():
            if len(indices):
                stays = torch.ones(parameter.shape[dim], dtype=torch.bool)
                stays[list(indices)] = False
                kept[dim] = stays.nonzero().flatten()
    return kept


def _check_shape(name: str, old: Tensor, new: Tensor, kept: Kept) -> None:
    sliced = [len(kept[dim]) if dim in kept else size for dim, size in enumerate(old.shape)]
    if sliced != list(new.shape):
        raise PlanError(
            explain(
                "The plan does not lead from the old model to the new one",
                where=f"`{name}`",
                evidence=f"{list(old.shape)} cut by the plan is {sliced}, the new model has {list(new.shape)}",
                next_step="pass the plan that made the new model, and the model it was made for",
            )
        )


def _cut_group(group: Mapping[str, Any], partners: _Partners) -> dict[str, Any]:
    stay = [index for index, old in enumerate(group["params"]) if partners[old][0] is not None]
    new = dict(group)
    new["params"] = [partners[group["params"][index]][0] for index in stay]
    if "param_names" in group:
        new["param_names"] = [group["param_names"][index] for index in stay]
    return new


def _same_class(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """A new optimizer of the same class; its groups take the old ones' settings as they stand now."""
    accepted = inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    fresh = type(optimizer)([{"params": group["params"]} for group in groups], **settings)
    for group, old in zip(fresh.param_groups, groups, strict=True):
        group.update(old)
    return fresh


def _cut_state(key: str, value: Any, old: Tensor, new: Tensor, kept: Kept) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.shape == old.shape:
        for dim, indices in kept.items():
            value = value.index_select(dim, indices.to(value.device))
        return value.detach().clone().to(new.device)
    if value.numel() == 1:
        return value.detach().clone()
    raise TrainError(
        explain(
            f"The optimizer's state {key!r} cannot be cut",
            evidence=f"it is {list(value.shape)} for a parameter of {list(old.shape)}",
            next_step="start a new optimizer on the cut model, or use one whose state has the parameters' shapes",
        )
    )
