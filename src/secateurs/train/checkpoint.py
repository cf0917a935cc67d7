"""Where a run stands, in one file without pickle: tensors in safetensors, everything else as JSON in its header.

The file is replaced in a single rename, so that a run that is killed at any moment finds either the old checkpoint or
the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from secateurs.base.errors import TrainError, explain
from secateurs.base.files import write_bytes

FILE = "checkpoint.safetensors"
FORMAT = 1

Json = Any


def write(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Json]) -> None:
    """Replace the checkpoint in `folder`. Raises `WriteError`; the old one then stays."""
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = json.dumps({"format": FORMAT, **record}, allow_nan=False)
    write_bytes(folder / FILE, safetensors.torch.save(stored, metadata={"record": header}))


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Json]] | None:
    """The tensors and the record of the checkpoint in `folder`; None if there is none.

    Raises `TrainError` when the file is damaged or of another format.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Json] = json.loads((file.metadata() or {})["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if record.pop("format") != FORMAT:
            raise ValueError("unknown format number")
    except (SafetensorError, ValueError, KeyError, AttributeError, OSError) as error:
        raise TrainError(
            explain(
                "The checkpoint cannot be read",
                where=str(path),
                evidence=repr(error),
                next_step="delete the file, or pass `resume=False`, to start the run again",
            )
        ) from error
    return tensors, record


def check_same_run(folder: Path, stored: Json, asked: Json) -> None:
    """Raises `TrainError` naming the first thing in which the checkpoint's run and the run asked for differ."""
    found = _first_difference(stored, asked, ())
    if found is None:
        return
    path, was, now = found
    raise TrainError(
        explain(
            "The checkpoint belongs to another run",
            where=f"{folder / FILE}: {' '.join(path)}",
            evidence=f"it was {was} and is now {now}",
            next_step="repeat the call that wrote it, give another folder, or pass `resume=False` to start again",
        )
    )


def _first_difference(was: Json, now: Json, path: tuple[str, ...]) -> tuple[tuple[str, ...], str, str] | None:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            here = (*path, f"`{key}`")
            if key not in was or key not in now:
                return here, *("present" if key in side else "absent" for side in (was, now))  # type: ignore[return-value]
            found = _first_difference(was[key], now[key], here)
            if found is not None:
                return found
        return None
    return None if was == now else (path, repr(was), repr(now))


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, those that `state_dict` leaves out included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Copy the tensors under `prefix` into the model, bit for bit."""
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            tensor.copy_(tensors[prefix + name])


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Shape and type of each tensor in words."""
    return {
        name: f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors.items()
    }


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and contents, in order."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def optimizer_parts(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """An optimizer's state as tensors and JSON, both keyed `optimizer/<parameter number>/<name>`.

    Raises `TrainError` when it keeps something else, such as the lists of L-BFGS.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Json] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            key = f"optimizer/{number}/{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            elif value is None or isinstance(value, (bool, int, float, str)):
                plain[key] = value
            else:
                raise TrainError(
                    explain(
                        "The optimizer's state cannot be put in a checkpoint",
                        where=f"{type(optimizer).__name__}, state {name!r}",
                        evidence=f"it is a {type(value).__name__}, not a tensor or a number",
                        next_step="use SGD, Adam, AdamW or the like, or train without a folder",
                    )
                )
    return tensors, plain


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Json]) -> None:
    """Put back what `optimizer_parts` took; settings of the parameter groups stay as they are."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain}.items():
        if key.startswith("optimizer/"):
            _, number, name = key.split("/", 2)
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
