"""Training parts of a network in turn, the rest frozen."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from secateurs.base.errors import UnknownNameError, explain, nearest
from secateurs.base.globs import fits
from secateurs.base.listed import listed
from secateurs.sparsity.spec import Masks
from secateurs.train.config import FineTune
from secateurs.train.stages import Stages


def trained_in_turn(
    stages: Stages, place: str, model: nn.Module, config: FineTune, phases: Sequence[Sequence[str]], masks: Masks | None
) -> nn.Module:
    """The model after one training, or one for each phase: what matches the phase's globs is trained, else nothing.

    Modules without a parameter to train, such as the batch norms of frozen layers, are in eval mode meanwhile. Raises
    `InputError` for a phase that is no list.
    """
    phases = [listed("train_only", globs) for globs in listed("train_only", phases)]
    if not phases:
        return stages.train(place, model, config, masks=masks).model
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = {name: item.requires_grad for name, item in model.named_parameters()}
    for number, globs in enumerate(phases, start=1):
        result = stages.train(f"{place}/phase-{number}", _only(model, globs), config, masks=masks).model
        for name, item in result.named_parameters():
            item.requires_grad_(wanted[name])
        for name, module in result.named_modules():
            module.training = modes[name]
        model = result
    return model


def _only(model: nn.Module, globs: Sequence[str]) -> nn.Module:
    """A copy in which only what matches is trained. Raises `UnknownNameError` for a glob that matches nothing."""
    twin = copy.deepcopy(model).train()
    names = {name for name, _ in twin.named_parameters()}
    chosen: set[str] = set()
    for glob in globs:
        mine = {name for name in names if any(fits(part, glob) for part in _parts(name))}
        if not mine:
            close = nearest(glob, [*names, *(name for name, _ in twin.named_modules() if name)])
            raise UnknownNameError(
                explain(
                    f"{glob!r} matches no parameter",
                    where="train_only",
                    next_step=f"did you mean {close[0]!r}?" if close else "",
                )
            )
        chosen |= mine
    for name, item in twin.named_parameters():
        item.requires_grad_(item.requires_grad and name in chosen)
    for module in twin.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(item.requires_grad for item in own):
            module.training = False
    return twin


def _parts(name: str) -> list[str]:
    """The parameter's name and those of all modules that hold it."""
    steps = name.split(".")
    return [".".join(steps[:count]) for count in range(1, len(steps) + 1)]


__all__ = ["trained_in_turn"]
