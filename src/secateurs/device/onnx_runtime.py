"""ONNX Runtime on the CPU: the model is exported to ONNX in memory and run by its own session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.base.errors import DeviceError, explain
from secateurs.device.base import Compiled, Device, devices
from secateurs.device.call import Call
from secateurs.device.environment import Environment
from secateurs.device.onnx_export import call_to_onnx

ERRORS_ONLY = 3


class OnnxSession(Compiled):
    """An ONNX Runtime session over the bytes of an ONNX file, as that file would run when deployed."""

    def __init__(self, model: nn.Module, call: Call, threads: int, data: bytes) -> None:
        super().__init__(model, call, threads)
        self._session = open_session(data, threads)

    def prepare(self, tensors: Sequence[Tensor]) -> Callable[[], Any]:
        return bind(self._session, self.call.with_tensors(tensors))

    def outputs(self, result: Any) -> list[Tensor]:
        return tensors_of(result)


@devices.register("onnxruntime")
class OnnxRuntime(Device):
    """ONNX Runtime, CPU provider. `channel_multiple` follows its blocked convolution (NCHWc, c = one vector)."""

    name = "onnxruntime"
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"

    def environment(self, compiled: Compiled) -> Environment:
        runtime = self.require()["onnxruntime"]
        return Environment.now(f"ONNX Runtime {runtime.__version__} (CPU provider)")

    def _compile(self, model: nn.Module, call: Call, threads: int) -> OnnxSession:
        return OnnxSession(model, call, threads, call_to_onnx(model, call))


def open_session(data: bytes, threads: int = 1) -> Any:
    """A CPU session over the bytes of an ONNX file.

    Its threads stop spinning when a run ends, so that a session that waits does not slow down the one that runs.
    Raises `DeviceError` with the runtime's message when it cannot load the file.
    """
    runtime = OnnxRuntime().require()["onnxruntime"]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise DeviceError(
            explain(
                f"ONNX Runtime {runtime.__version__} cannot load this model: {str(error)[:500]}",
                next_step="replace the operator that it names in the model, or measure on device='torch'",
            )
        ) from error


def bind(session: Any, call: Call) -> Callable[[], Any]:
    """A function that runs the session once on the tensors of `call`, matched by input name."""
    wanted = {item.name for item in session.get_inputs()}
    feed = {name: as_array(tensor) for name, tensor in zip(call.names, call.tensors, strict=True) if name in wanted}
    run = session.run
    return lambda: run(None, feed)


def tensors_of(result: Sequence[Any]) -> list[Tensor]:
    """What a session returned, as tensors."""
    return [torch.from_numpy(np.asarray(item)) for item in result]


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor as a contiguous NumPy array. Raises `DeviceError` on element types that NumPy does not have."""
    try:
        return np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tuple(tensor.shape))
    except TypeError as error:
        raise DeviceError(
            explain(
                f"ONNX Runtime takes no input of type {str(tensor.dtype).removeprefix('torch.')}",
                evidence=str(error),
                next_step="convert the model and its inputs to float32",
            )
        ) from error
