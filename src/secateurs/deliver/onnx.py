"""`export_onnx`: one ONNX file that was run in ONNX Runtime and agreed with the module before it was written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.base.errors import DeviceError, explain
from secateurs.base.files import write_bytes
from secateurs.base.units import BYTES
from secateurs.device.agreement import check_agreement
from secateurs.device.call import Call, working_copy
from secateurs.device.onnx_export import batch_size, call_to_onnx, with_batch
from secateurs.device.onnx_runtime import OnnxRuntime, bind, open_session, tensors_of


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file and what was checked; usable wherever a path is.

    `difference` is the largest one between an output of ONNX Runtime and of the module, over the batch sizes in
    `checked` (empty when no input has a batch dimension).
    """

    path: Path
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    dynamic_batch: bool
    checked: tuple[int, ...]
    difference: float

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        batch = "any batch size" if self.dynamic_batch else "fixed batch size"
        sizes = " and ".join(map(str, self.checked))
        return (
            f"{self.path}: {BYTES.format(self.bytes)}, opset {self.opset}, {batch}; {', '.join(self.inputs)} -> "
            f"{', '.join(self.outputs)}; differs from the module by {self.difference:.2g} at most"
            f"{f' (batch {sizes})' if sizes else ''}"
        )


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
) -> OnnxFile:
    """Write `model`, in eval mode, as one ONNX file; names of inputs and outputs are those of `to_onnx`.

    With `dynamic_batch`, dimension 0 is left free in every input whose dimension 0 equals that of the first input.
    The file is run in ONNX Runtime on the example inputs, and at a second batch size if that is free; an output may
    differ by `tolerance` (relative to its largest magnitude, if that is above 1). The model is not changed.

    Raises `InputError` on what cannot be a model call; `DeviceError` when the runtime is not installed, the model
    cannot be exported, or an output differs; `WriteError` when the file cannot be written. Then nothing is written.
    """
    OnnxRuntime().require()
    call = Call.of(model, example_inputs, kwargs).on_cpu()
    data = call_to_onnx(model, call, dynamic_batch=dynamic_batch)
    session = open_session(data)
    calls = [call, with_batch(call, batch_size(call) + 1)] if dynamic_batch else [call]
    module = working_copy(model, on_cpu=True)
    worst = max(_check(module, session, each, tolerance) for each in calls)
    write_bytes(path, data)
    return OnnxFile(
        path=Path(path),
        bytes=len(data),
        inputs=tuple(item.name for item in session.get_inputs()),
        outputs=tuple(item.name for item in session.get_outputs()),
        opset=_opset(data),
        dynamic_batch=dynamic_batch,
        checked=tuple(map(batch_size, calls)) if any(tensor.ndim for tensor in call.tensors) else (),
        difference=worst,
    )


def _check(module: nn.Module, session: Any, call: Call, tolerance: float) -> float:
    """The largest difference between session and module on one call. Raises `DeviceError` beyond the tolerance."""
    with torch.no_grad(), torch.random.fork_rng():
        expected = call.run(module)
    try:
        got = tensors_of(bind(session, call)())
    except DeviceError:
        raise
    except Exception as error:
        raise DeviceError(
            explain(
                f"The exported {type(module).__name__} does not run in ONNX Runtime: {str(error)[:500]}",
                evidence=call.described,
                next_step="replace the operator that the message names, or export with dynamic_batch=False",
            )
        ) from error
    return check_agreement(expected, got, runtime="ONNX Runtime", tolerance=tolerance)


def _opset(data: bytes) -> int:
    """The version of the standard operator set that the file asks for."""
    imports = OnnxRuntime().require()["onnx"].load_from_string(data).opset_import
    return next(int(item.version) for item in imports if item.domain in ("", "ai.onnx"))
