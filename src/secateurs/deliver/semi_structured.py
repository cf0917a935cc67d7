"""2:4 sparse linear layers on GPUs whose tensor cores run them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateurs.base.errors import DeviceError, InputError, explain

CAPABILITY = (8, 0)
"""The first compute capability with sparse tensor cores."""


@dataclass(frozen=True)
class SemiStructured:
    """The model whose 2:4 linear layers are stored and run compressed: `sparse` names them, `dense` says why not."""

    model: nn.Module
    sparse: tuple[str, ...]
    dense: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: 2:4" for name in self.sparse] + [f"{name}: dense: {why}" for name, why in self.dense.items()]
        return "\n".join(lines)


def semi_structured(model: nn.Module) -> SemiStructured:
    """A copy of `model` for inference whose 2:4 linear weights are `torch.sparse.to_sparse_semi_structured`.

    A weight `[out, in]` is 2:4 if at most two of every four consecutive inputs are not zero, as the pattern `"2:4"`
    leaves it. Other linear layers, and those of a shape or type that the GPU's kernels do not take, stay dense. The
    model must be where it will run: on a CUDA device of compute capability 8.0 or newer (A100, RTX 30 or later), in
    float16, bfloat16 or another type that PyTorch has kernels for. Save the model you passed, not this one.

    Raises `InputError` when no linear weight is 2:4, `DeviceError` when the device cannot run such weights or takes
    none of them.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    dense = {name: why for name, module in layers.items() if (why := _not_2_of_4(module.weight))}
    wanted = [name for name in layers if name not in dense]
    if not wanted:
        raise InputError(
            explain(
                "No linear layer has a 2:4 weight",
                evidence="; ".join(f"`{name}`: {why}" for name, why in list(dense.items())[:3]) or "there is none",
                next_step='prune first: sec.sparsify(model, pattern="2:4"), then train',
            )
        )
    _check_device(wanted[0], layers[wanted[0]].weight)
    made = copy.deepcopy(model)
    converted: dict[int, nn.Parameter] = {}
    sparse: list[str] = []
    for name in wanted:
        module = made.get_submodule(name)
        weight = layers[name].weight
        try:
            if id(weight) not in converted:
                compressed: Tensor = torch.sparse.to_sparse_semi_structured(weight.detach().contiguous())
                converted[id(weight)] = nn.Parameter(compressed, requires_grad=False)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            dense[name] = str(error).splitlines()[0]
            continue
        module.weight = converted[id(weight)]
        sparse.append(name)
    if not sparse:
        raise DeviceError(
            explain(
                "This device takes none of the 2:4 weights",
                evidence="; ".join(f"`{name}`: {dense[name]}" for name in wanted[:3]),
                next_step="use float16 or bfloat16, and widths that are multiples of 64",
            )
        )
    return SemiStructured(made, tuple(sparse), dense)


def _not_2_of_4(weight: Tensor) -> str:
    """Why a weight is not 2:4; empty if it is."""
    if weight.shape[1] % 4:
        return f"{weight.shape[1]} inputs are not a multiple of 4"
    full = (weight.detach().reshape(len(weight), -1, 4) != 0).sum(2) > 2
    count = int(full.sum())
    return f"{count:,} of its {full.numel():,} blocks of four have more than two weights" if count else ""


def _check_device(name: str, weight: Tensor) -> None:
    """Raises `DeviceError` unless the weight is where sparse tensor cores are."""
    what, step = "2:4 sparse weights do not run here", "move the model to such a GPU, or export it dense with its zeros"
    if weight.device.type != "cuda":
        evidence = (
            f"`{name}.weight` is on {weight.device.type}; they need a CUDA GPU of compute capability 8.0 or newer"
        )
        raise DeviceError(explain(what, evidence=evidence, next_step=step))
    found = torch.cuda.get_device_capability(weight.device)
    if found < CAPABILITY or torch.version.hip:
        kind = torch.cuda.get_device_name(weight.device)
        evidence = f"{kind} has compute capability {found[0]}.{found[1]}; sparse tensor cores begin with 8.0"
        raise DeviceError(explain(what, evidence=evidence, next_step=step))


__all__ = ["SemiStructured", "semi_structured"]
