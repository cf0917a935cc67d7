"""A model as one small file, and back: `sec.pack`, `sec.unpack`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateurs.base.errors import ArtifactError, InputError, explain, nearest
from secateurs.cut.form import GraphModule
from secateurs.deliver.artifact import built
from secateurs.deliver.tensors import distinct, give_biases, load_into
from secateurs.pack.baseline import Baseline, gzip_bytes, raw_bytes
from secateurs.pack.coded import Coded
from secateurs.pack.container import GRAPH, Packed, read, write
from secateurs.pack.dtypes import DTYPES, in_memory
from secateurs.pack.ledger import Ledger, ledger
from secateurs.pack.plain import plain

State = Mapping[str, Tensor]


def pack(
    model: nn.Module | State,
    path: str | os.PathLike[str],
    *,
    coded: Mapping[str, Coded] | None = None,
    metadata: Mapping[str, Any] | None = None,
    gzip: bool = False,
    original: nn.Module | State | None = None,
) -> Ledger:
    """Writes parameters and persistent buffers as the file `path`, whole or not at all; what every byte is for.

    `coded` holds tensors, by name, that were quantised; all others are stored as they are, without their zeros where
    that is smaller (-0.0 becomes +0.0). A model in graph form brings its program along. `gzip` adds what gzip makes of
    the float32 weights before (`original`, or the model itself) and after. Nothing is modified.

    Raises `InputError` for anything that is no model or does not fit, `WriteError` when the disk does not take it.
    """
    state, tied = distinct(_state(model))
    given = dict(coded or {})
    _check_coded(given, state)
    tensors = {name: given[name] if name in given else _plain(name, tensor) for name, tensor in state.items()}
    texts = {GRAPH: model.to_json()} if isinstance(model, GraphModule) else {}
    write(path, tensors, metadata, tied=tied, texts=texts)
    packed = read(path, limit=1 << 62)
    found = ledger(packed)
    if gzip:
        before = _floats(distinct(_state(model if original is None else original))[0])
        after = _floats(_tensors(packed))
        found = found.with_baseline(Baseline(raw_bytes(before), gzip_bytes(before), gzip_bytes(after)))
    return found


def unpack(
    path: str | os.PathLike[str], build: Callable[[], nn.Module] | None = None, *, limit: int | None = None
) -> nn.Module | dict[str, Tensor]:
    """The model in a packed file, in eval mode: of the class that `build` gives, or in graph form; else its state.

    `build`: a class or function without arguments that makes a model with tensors of these names, shapes and types.
    `limit`: bytes to which the file may decode.

    Raises `ArtifactError` when the file is cut short, altered or not one of ours, or, naming the first difference, when
    its tensors do not fit.
    """
    packed = read(path, limit=limit)
    program = packed.text(GRAPH)
    state = _all(packed)
    if build is not None:
        model = built(build)
        give_biases(model, state)
        load_into(model, state, str(path))
        return model.eval()
    if program is None:
        return state
    try:
        return GraphModule.from_json(program, state).eval()
    except (ArtifactError, RecursionError, RuntimeError) as error:
        raise ArtifactError(
            explain("The packed program cannot be used", where=str(path), evidence=str(error)[:500])
        ) from error


def _state(model: nn.Module | State) -> Mapping[str, Any]:
    if isinstance(model, nn.Module):
        return model.state_dict()
    if isinstance(model, Mapping):
        return model
    raise InputError(
        explain(
            "Only a model or a state dict can be packed",
            evidence=f"got a {type(model).__name__}",
            next_step="pass `result.model` of a result, or `model.state_dict()`",
        )
    )


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
    return plain(_array(tensor), kind)


def _array(tensor: Tensor) -> NDArray[Any]:
    """The tensor in NumPy; bfloat16 and float8 as unsigned bits."""
    plain_tensor = tensor.detach().cpu().contiguous().resolve_conj()
    kind = in_memory(str(tensor.dtype).removeprefix("torch."))
    bits = plain_tensor if kind.kind != "u" else plain_tensor.view(getattr(torch, kind.name))
    found: NDArray[Any] = bits.numpy()
    return found


def _tensor(values: NDArray[Any], dtype: str) -> Tensor:
    """A decoded array as a tensor of its own memory, of the type it stands for."""
    kind: torch.dtype = getattr(torch, dtype)
    found = torch.from_numpy(np.array(values))
    if values.dtype == in_memory(dtype):
        return found.view(kind).reshape(values.shape)
    return found.to(kind)


def _tensors(packed: Packed) -> dict[str, Tensor]:
    return {record.names[0]: _tensor(packed[record.names[0]], record.dtype) for record in packed.records}


def _all(packed: Packed) -> dict[str, Tensor]:
    """Every tensor under every name."""
    state = _tensors(packed)
    return {name: state[packed.record(name).names[0]] for name in packed}


def _floats(state: State) -> dict[str, NDArray[Any]]:
    return {name: tensor.detach().cpu().float().numpy() for name, tensor in state.items() if tensor.is_floating_point()}


__all__ = ["pack", "unpack"]
