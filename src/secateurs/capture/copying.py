"""Deep copies of a module tree, for running it and for cutting it: the original stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import CaptureError, explain


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(model, memo)`, in which every `torch.Generator` becomes one of its own in the same state.

    Raises `CaptureError` when the model holds something that can not be copied.
    """
    for module in model.modules():
        for item in pytree.tree_leaves(list(vars(module).values())):
            if isinstance(item, torch.Generator):
                memo.setdefault(id(item), torch.Generator(item.device).set_state(item.get_state()))
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(
            explain(
                f"{type(model).__name__} can not be copied, and the original must stay as it is",
                evidence=f"{type(error).__name__}: {str(error)[:300]}",
                next_step="make the attribute that the message names a parameter, a buffer or plain data, or give its "
                "class a __deepcopy__",
            )
        ) from error
