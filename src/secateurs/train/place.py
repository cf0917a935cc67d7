"""Where training runs: Lightning Fabric set up from a `FineTune`, and the few collective operations that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.train.config import FineTune


def start_fabric(config: FineTune, device: torch.device) -> Fabric:
    """Fabric, launched. `device` is where the model is, for `accelerator="model"`.

    Raises `InputError` when Fabric refuses the settings or the strategy splits the parameters themselves.
    """
    settings: dict[str, Any] = {"accelerator": config.accelerator, "devices": config.devices, "num_nodes": config.nodes}
    launched = torch.distributed.is_torchelastic_launched()
    if config.accelerator == "model":
        settings["accelerator"] = "gpu" if device.type == "cuda" else device.type
    if config.devices == "auto" and launched:
        settings["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
        settings["num_nodes"] = int(os.environ["WORLD_SIZE"]) // settings["devices"]
    elif config.devices == "auto" and config.accelerator == "model":
        settings["devices"] = [device.index or 0] if device.type == "cuda" else 1
    try:
        fabric = Fabric(strategy=config.strategy, precision=config.precision, **settings)  # type: ignore[arg-type]
    except (ValueError, RuntimeError, TypeError, ModuleNotFoundError) as error:
        raise InputError(
            explain(
                "Lightning Fabric refuses these settings",
                evidence=f"strategy={config.strategy!r}, precision={config.precision!r}, {settings}: {error}",
                next_step="correct `accelerator`, `devices` or `strategy`; the defaults train where the model is",
            )
        ) from error
    if not isinstance(fabric.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise InputError(
            explain(
                f"The strategy {config.strategy!r} is not supported",
                evidence=f"it is a {type(fabric.strategy).__name__}; checkpoints here need whole parameters",
                next_step='use strategy="auto" on one device or strategy="ddp" on several',
            )
        )
    fabric.launch()
    return fabric


def total(fabric: Fabric, value: float) -> float:
    """The sum of `value` over all processes."""
    if fabric.world_size == 1:
        return value
    summed = fabric.all_reduce(torch.tensor(value, dtype=torch.float64, device=fabric.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return float(summed)


def from_first(fabric: Fabric, value: float) -> float:
    """What process 0 has, in every process."""
    return value if fabric.world_size == 1 else float(fabric.broadcast(value, src=0))


def buffers_from_first(fabric: Fabric, model: nn.Module) -> None:
    """Give every process the buffers (running statistics) of process 0."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def average_(fabric: Fabric, tensors: Iterable[Tensor]) -> None:
    """In place, the mean over all processes."""
    if fabric.world_size > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
            tensor /= fabric.world_size


def state_to(state: dict[Any, Any], device: torch.device) -> None:
    """Move an optimizer's state tensors, but not its step counters, to `device` in place."""
    for entry in state.values():
        for key, value in entry.items():
            if isinstance(value, Tensor) and key != "step":
                entry[key] = value.to(device)
