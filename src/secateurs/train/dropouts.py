"""Dropout shrinks with what is left of a layer: `D * sqrt(connections left / connections before)`. Han et al. 2015."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from secateurs.base.batches import forward
from secateurs.base.errors import UnknownNameError, explain, nearest
from secateurs.base.seeds import seeded
from secateurs.sparsity.spec import Masks
from secateurs.sparsity.weights import layer_weights
from secateurs.train.evaluate import in_eval_mode


def weights_of_dropouts(model: nn.Module, inputs: Any, given: bool | Mapping[str, str]) -> dict[str, str]:
    """`{dropout module: weight of its linear layer}`: as given, or the linear layer right in front or right behind.

    Raises `UnknownNameError` for a module that is not of that kind.
    """
    dropouts = {name for name, module in model.named_modules() if isinstance(module, _DropoutNd)}
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if isinstance(given, Mapping):
        for names, known, what in ((given.keys(), dropouts, "dropout"), (given.values(), layers, "linear layer")):
            for name in names:
                if name not in known:
                    close = nearest(name, known)
                    raise UnknownNameError(
                        explain(
                            f"{name!r} is no {what} of the model",
                            where="dropout",
                            next_step=f"did you mean {close[0]!r}?" if close else "",
                        )
                    )
        return {name: f"{layer}.weight" for name, layer in given.items()}
    if not given or not dropouts or not layers:
        return {}
    owning = {name.rpartition(".")[0] for name in layer_weights(model)}
    order = _order(model, inputs, dropouts | owning)
    found: dict[str, str] = {}
    for position, name in enumerate(order):
        if name in dropouts:
            later = [item for item in order[position:] if item in owning][:1]
            earlier = [item for item in order[:position] if item in owning][-1:]
            beside = [item for item in (*later, *earlier) if item in layers]
            if beside:
                found.setdefault(name, f"{beside[0]}.weight")
    return found


def scale_dropout(model: nn.Module, original: nn.Module, owners: Mapping[str, str], masks: Masks) -> None:
    """Set the rates of `model`, from those of `original` and what the masks leave of the connections it has.

    Zeros of the original are no connections: its rate is that of the network which it is. No rate rises.
    """
    for name, weight in owners.items():
        if weight in masks:
            left, had = int(masks[weight].sum()), int(original.get_parameter(weight).count_nonzero())
            before: Any = original.get_submodule(name)
            now: Any = model.get_submodule(name)
            now.p = before.p * math.sqrt(min(1.0, left / had)) if had else 0.0


def _order(model: nn.Module, inputs: Any, names: set[str]) -> list[str]:
    """The modules of these names in the order in which they run."""
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: order.append(name))
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        with in_eval_mode(model), torch.no_grad(), seeded(0):
            forward(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return order


__all__ = ["scale_dropout", "weights_of_dropouts"]
