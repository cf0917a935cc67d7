"""Tensors on disk: a module's state as one safetensors file, tied tensors once, header checked before it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from secateurs.base.errors import ArtifactError, explain

HEADER_LIMIT = 100_000_000
"""Largest header in bytes that is read; the same bound as the format's own."""

_TIED = "tied"


def write_state(model: nn.Module, path: Path) -> None:
    """Parameters and persistent buffers of `model`. A tensor with several names is stored once.

    Raises `ArtifactError` if the state holds something that is not a tensor.
    """
    stored, tied = distinct(model.state_dict())
    path.touch()  # with the permissions of any other file: safetensors alone would keep it from everybody else
    mode = path.stat().st_mode
    save_file({name: _alone(tensor) for name, tensor in stored.items()}, path, metadata=_metadata(tied))
    path.chmod(mode)


def state_bytes(state: Mapping[str, Tensor]) -> bytes:
    """The content of the file that `read_state` reads."""
    stored, tied = distinct(state)
    return save({name: _alone(tensor) for name, tensor in stored.items()}, metadata=_metadata(tied))


def distinct(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a state once, under its first name, and the further names: `{name: first name}`.

    Raises `ArtifactError` if the state holds something that is not a tensor.
    """
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ArtifactError(
                explain(
                    "The model's state holds something that is not a tensor",
                    where=f"`{name}`",
                    evidence=f"type {type(tensor).__name__}",
                    next_step="keep such state out of `get_extra_state`, or save it yourself next to the artifact",
                )
            )
        if tensor.layout != torch.strided:
            stored[name] = tensor
            continue
        key = (tensor.data_ptr(), tensor.device, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            tied[name] = first[key]
            continue
        first[key] = name
        stored[name] = tensor
    return stored, tied


def _alone(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _metadata(tied: Mapping[str, str]) -> dict[str, str]:
    return {_TIED: json.dumps(tied, sort_keys=True)}


def read_state(path: Path) -> dict[str, Tensor]:
    """The state back, tied names expanded to the same tensor.

    Raises `ArtifactError` on a file that is not safetensors, is cut short, or has an oversized header.
    """
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = json.loads((file.metadata() or {}).get(_TIED, "{}"))
        state.update({str(name): state[other] for name, other in tied.items()})
    except (SafetensorError, ValueError, KeyError, AttributeError, OSError) as error:
        raise ArtifactError(
            explain(f"`{path.name}` cannot be read as safetensors", where=str(path), evidence=repr(error))
        ) from error
    return state


def check_header(path: Path) -> None:
    """Raises `ArtifactError` unless the stated header length is plausible and fits in the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, HEADER_LIMIT):
        raise ArtifactError(
            explain(
                f"`{path.name}` is not a safetensors file, or is cut short",
                where=str(path),
                evidence=f"its header claims {length:,} bytes, the file has {size:,}, the limit is {HEADER_LIMIT:,}",
                next_step="copy it again from where it was saved; a `.pt` file becomes one with "
                "`safetensors.torch.save_model(model, path)`",
            )
        )


def load_into(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copies `state` into `model`, bit for bit.

    Raises `ArtifactError`, naming the first tensor that is missing, unknown, or of another shape or type.
    """
    own = model.state_dict()
    for name in [*own, *(name for name in state if name not in own)]:
        if name not in state or name not in own:
            found, missing = ("the class", "the file") if name in own else ("the file", "the class")
            raise _misfit(where, f"`{name}` is in {found} and not in {missing}")
        saved, built = state[name], own[name]
        if saved.shape != built.shape or saved.dtype != built.dtype:
            raise _misfit(where, f"`{name}` is {_kind(saved)} in the file and {_kind(built)} in the class")
    with torch.no_grad():
        model.load_state_dict(dict(state), strict=True)


def give_biases(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """A bias for every linear layer or convolution that has none where `state` has one, as `hand_over` gives them."""
    for path, module in model.named_modules():
        saved = state.get(f"{path}.bias" if path else "bias")
        if saved is not None and isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros_like(saved))


def _kind(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"


def _misfit(where: str, evidence: str) -> ArtifactError:
    return ArtifactError(
        explain(
            "The saved tensors do not fit the class given",
            where=where,
            evidence=evidence,
            next_step="use the code, with the arguments, that the tensors were made for",
        )
    )
