"""`Entry`: one model of the zoo, and how its weights are made so that a wrong cut cannot hide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

SEED = 0


@dataclass(frozen=True)
class Inputs:
    """One call of a model: positional and keyword arguments."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [_describe(item) for item in self.args]
        return ", ".join(parts + [f"{name}={_describe(item)}" for name, item in self.kwargs.items()])


@dataclass(frozen=True)
class Entry:
    """A model of the zoo. `note` names everything in the build or the call that is not the model's default."""

    suite: str
    kind: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    note: str = ""

    def build(self) -> tuple[nn.Module, Inputs]:
        """The model in eval mode and one call of it; the same weights and inputs every time."""
        torch.manual_seed(SEED)
        model = self.make().eval()
        inputs = self.inputs()
        randomise(model, inputs)
        return model, inputs


def randomise(model: nn.Module, inputs: Inputs) -> None:
    """Leave no constant that hides a mistake.

    Parameters that are initialised to one constant (biases, norm scales, layer scale, gates that start at zero) become
    random; running statistics of batch norms become those of one run, plus noise, so that activations keep their
    scale through any depth.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() and parameter.min() == parameter.max():
                parameter.copy_(_around(float(parameter.min()), parameter))
        _calibrate(model, inputs)


def _around(constant: float, like: Tensor) -> Tensor:
    """Random values near a constant: within a half of it, or of order 0.1 when it is next to zero."""
    if abs(constant) < 1e-3:
        return torch.randn_like(like) * 0.1
    return constant * (0.5 + torch.rand_like(like))


def _calibrate(model: nn.Module, inputs: Inputs) -> None:
    norms = [module for module in model.modules() if _keeps_statistics(module)]
    if not norms:
        return
    hooks = [module.register_forward_pre_hook(_take_statistics) for module in norms]
    try:
        model(*inputs.args, **inputs.kwargs)
    finally:
        for hook in hooks:
            hook.remove()


def _keeps_statistics(module: nn.Module) -> bool:
    buffers = dict(module.named_buffers(recurse=False))
    return all(isinstance(buffers.get(name), Tensor) for name in ("running_mean", "running_var"))


def _take_statistics(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Set running statistics to those of this input [N, C, ...] plus noise (a frozen batch norm's scale as well).

    The mean square over all channels bounds the variance from below: a channel that is constant on this input would
    otherwise be blown up a thousandfold as soon as another input, or a cut, moves it.
    """
    channels = args[0].transpose(0, 1).flatten(1).float()
    mean, variance = channels.mean(1), channels.var(1, correction=0)
    typical = (variance + mean**2).mean().clamp(min=1e-6)
    module.running_mean.copy_(mean + 0.1 * typical.sqrt() * torch.randn_like(mean))
    module.running_var.copy_((variance + 0.1 * typical) * (0.5 + torch.rand_like(mean)))
    for name, buffer in module.named_buffers(recurse=False):
        if name in ("weight", "bias"):
            buffer.copy_(_around(float(buffer[0]), buffer))


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in a nested output structure (tuples, lists, mappings, dataclass-like outputs), in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors(item)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors(item)


def _describe(item: Any) -> str:
    if isinstance(item, Tensor):
        return "x".join(map(str, item.shape)) or "scalar"
    if isinstance(item, (list, tuple)):
        return "[" + ", ".join(map(_describe, item)) + "]"
    return repr(item)
