"""Dropout that keeps in step with layers that become narrower."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from secateurs.couple.group import Bools, Groups
from secateurs.couple.rules.registry import base_name

DROPOUTS = frozenset(
    f"aten.{name}" for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
)


def dropout_shares(groups: Groups, alive: Bools) -> dict[str, float]:
    """`{path of a dropout module: kept / total channels of what it drops from}`; `alive` as in `Groups.alive`."""
    counts: dict[str, list[int]] = {}
    for node in groups.graph.nodes:
        if base_name(node.op) not in DROPOUTS:
            continue
        value = node.inputs[0]
        for dim, size in enumerate(groups.graph.values[value].shape):
            kept = groups.kept(value, dim, alive)
            if kept is not None:
                mine = counts.setdefault(node.module, [0, 0])
                mine[0] += int(np.size(kept))
                mine[1] += size
    return {path: kept / total for path, (kept, total) in counts.items()}


def scale_dropout_(model: nn.Module, factors: Mapping[str, float]) -> dict[str, float]:
    """Multiply `p` of the dropout modules at these paths, in place; the new values of those that are there.

    Dropout that is a function with a number in the code cannot be reached, and stays.
    """
    modules = dict(model.named_modules())
    found: dict[str, float] = {}
    for path, factor in factors.items():
        module = modules.get(path)
        if isinstance(module, _DropoutNd):
            module.p *= factor
            found[path] = module.p
    return found


__all__ = ["dropout_shares", "scale_dropout_"]
