"""What a packed file is made of: the tensors of a model, coded where that was asked for, as they are otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateurs.base.errors import InputError, explain, nearest
from secateurs.cut.form import GraphModule
from secateurs.deliver.tensors import distinct
from secateurs.pack.coded import Coded
from secateurs.pack.container import GRAPH
from secateurs.pack.dtypes import DTYPES, in_memory
from secateurs.pack.integers import quantise
from secateurs.pack.plain import plain
from secateurs.pack.quantised import Quantised
from secateurs.pack.record import require_name
from secateurs.pack.shared_model import SharedModel

State = Mapping[str, Tensor]
Subject = nn.Module | State | Quantised
"""What can be packed: a model, its state dict, or what `quantise_weights`, `share_weights` and `mixed_bits` give."""


@dataclass(frozen=True)
class Contents:
    """Tensors by name, further names of tensors, texts: what `container.write` takes."""

    tensors: Mapping[str, Coded]
    tied: Mapping[str, str]
    texts: Mapping[str, str]


def unwrapped(model: Subject) -> tuple[nn.Module | State, dict[str, Coded]]:
    """The model or state itself, and the codes that came with it. Raises `InputError` for anything else."""
    if isinstance(model, Quantised):
        return model.model, dict(model.coded)
    if isinstance(model, SharedModel):
        return model.plain(), model.coded()
    if not isinstance(model, nn.Module | Mapping):
        raise InputError(
            explain(
                "Only a model or a state dict can be packed",
                evidence=f"got a {type(model).__name__}",
                next_step="pass `result.model` of a result, or `model.state_dict()`",
            )
        )
    return model, {}


def contents(
    model: nn.Module | State,
    coded: Mapping[str, Coded],
    biases: int | None = None,
    program: GraphModule | None = None,
) -> Contents:
    """Everything of the model: `coded` by name, biases of layers as integers of so many bits, the rest as it is.

    A `program`, which is the model itself if it is in graph form, goes along with its constants.

    Raises `InputError` for codes that are not those of the model, and for tensors that no file holds.
    """
    state, tied = distinct(state_of(model))
    _check_coded(coded, state)
    given = {**({} if biases is None else coded_biases(state, biases)), **coded}
    tensors = {name: given[name] if name in given else _plain(name, tensor) for name, tensor in state.items()}
    program = model if isinstance(model, GraphModule) else program
    if program is None:
        return Contents(tensors, tied, {})
    for name in program.constant_names:
        tensors.setdefault(name, _plain(name, program.get_buffer(name)))
    return Contents(tensors, tied, {GRAPH: program.to_json()})


def state_of(model: nn.Module | State) -> State:
    return model.state_dict() if isinstance(model, nn.Module) else model


def coded_biases(state: State, bits: int) -> dict[str, Coded]:
    """The biases beside weight matrices and kernels as integers with one scale each; those of norms are left alone."""
    found = {}
    for name, tensor in state.items():
        owner, _, last = name.rpartition(".")
        weight = state.get(f"{owner}.weight" if owner else "weight")
        if last == "bias" and tensor.dim() == 1 and weight is not None and weight.dim() > 1:
            found[name] = quantise(tensor, bits, axis=None)
    return found


def holder(state: State) -> nn.Module:
    """A module with these tensors under these names, that cannot run: floating-point ones are its parameters.

    Raises `InputError` for names that no module can have beside the others.
    """
    root, (stored, tied) = nn.Module(), distinct(state)
    parameters = {
        name: nn.Parameter(tensor.detach(), requires_grad=False)
        for name, tensor in stored.items()
        if tensor.is_floating_point()
    }
    for name, tensor in state.items():
        require_name(name)
        *path, last = name.split(".")
        owner = root
        try:
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if tensor.is_floating_point():
                owner.register_parameter(last, parameters[tied.get(name, name)])
            else:
                owner.register_buffer(last, tensor.detach())
        except KeyError as error:
            raise InputError(
                explain(
                    "This state dict cannot be quantised by itself",
                    where=f"`{name}`",
                    evidence=str(error.args[0]),
                    next_step="pass the model, or rename the tensor",
                )
            ) from error
    return root


def array(tensor: Tensor) -> NDArray[Any]:
    """The tensor in NumPy; bfloat16 and float8 as unsigned bits."""
    plain_tensor = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    kind = in_memory(str(tensor.dtype).removeprefix("torch."))
    bits = plain_tensor if kind.kind != "u" else plain_tensor.view(getattr(torch, kind.name))
    found: NDArray[Any] = bits.numpy()
    return found


def _plain(name: str, tensor: Tensor) -> Coded:
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in DTYPES or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise InputError(
            explain(
                f"`{name}` cannot be packed",
                evidence=f"it is {tensor.layout} {tensor.dtype} on {tensor.device}",
                next_step=f"make it a dense tensor of one of {', '.join(DTYPES)}",
            )
        )
    return plain(array(tensor), kind)


def _check_coded(coded: Mapping[str, Coded], state: State) -> None:
    for name, tensor in coded.items():
        if name not in state:
            close = nearest(name, state)
            raise InputError(
                explain(
                    f"`coded` has `{name}`, the model does not",
                    next_step=f"did you mean `{close[0]}`?" if close else "name tensors as the state dict does",
                )
            )
        kind = str(state[name].dtype).removeprefix("torch.")
        if tensor.shape != tuple(state[name].shape) or tensor.dtype != kind:
            raise InputError(
                explain(
                    f"`coded` and the model disagree on `{name}`",
                    evidence=f"{list(tensor.shape)} {tensor.dtype} and {list(state[name].shape)} {kind}",
                )
            )


__all__ = ["Contents", "State", "Subject", "coded_biases", "contents", "holder", "state_of", "unwrapped"]
