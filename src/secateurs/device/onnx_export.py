"""`to_onnx`: nn.Module -> the bytes of an ONNX file, through `torch.export` and PyTorch's own ONNX exporter."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.errors import DeviceError, InputError, explain
from secateurs.device.call import Call, named_outputs, working_copy

LARGEST = 2**31 - 1
_PREFIX = "model."


def to_onnx(
    model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None = None, *, dynamic_batch: bool = False
) -> bytes:
    """The model in eval mode as one self-contained ONNX file; the caller's model is not changed.

    Inputs are named after the parameters of `forward` (`x`, `batch.mask`), outputs by their path in the result
    (`output`, `output.0`, `logits`), weights as in `state_dict`. With `dynamic_batch`, dimension 0 is free in every
    input whose dimension 0 equals that of the first input.

    Raises `DeviceError` with the exporter's message when the model cannot be exported, and when it exceeds the 2 GiB
    that one ONNX file can hold.
    """
    return call_to_onnx(model, Call.of(model, example_inputs, kwargs), dynamic_batch=dynamic_batch)


def call_to_onnx(model: nn.Module, call: Call, *, dynamic_batch: bool = False) -> bytes:
    """`to_onnx` on a call that is already taken apart."""
    call = call.on_cpu()
    flat = _FlatCall(working_copy(model, on_cpu=True), call)
    with torch.no_grad():
        outputs = _output_names(flat.model, call)
    example, shapes = call, None
    if dynamic_batch:
        example = with_batch(call, max(2, batch_size(call)))
        _check_batch_is_free(flat.model, with_batch(call, batch_size(call) + 1), batch_size(call))
        batch = torch.export.Dim("batch")
        shapes = (tuple({0: batch} if free else {} for free in batched(call)),)
    program = _export(flat, example, outputs, shapes)
    if shapes:
        _check_batch_was_kept_free(program, call, model)
    _strip_prefix(program)
    return _serialise(program, type(model).__name__)


def batched(call: Call) -> tuple[bool, ...]:
    """For each input, whether its dimension 0 is the batch: equal to dimension 0 of the first input that has one."""
    size = batch_size(call)
    return tuple(tensor.ndim > 0 and tensor.shape[0] == size for tensor in call.tensors)


def batch_size(call: Call) -> int:
    """Dimension 0 of the first input that has one. Raises `InputError` when all inputs are scalars."""
    for tensor in call.tensors:
        if tensor.ndim:
            return int(tensor.shape[0])
    raise InputError(
        explain("No input has a batch dimension", evidence="all are scalars", next_step="use dynamic_batch=False")
    )


def with_batch(call: Call, size: int) -> Call:
    """The same call at another batch size: examples are repeated in turn, or cut off."""
    rows = torch.arange(size) % batch_size(call)
    pairs = zip(call.tensors, batched(call), strict=True)
    return call.with_tensors([tensor[rows.to(tensor.device)] if free else tensor for tensor, free in pairs])


class _FlatCall(nn.Module):
    """The model as a function from tensors to tensors; what is not a tensor is baked in."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self.call.arguments(tensors)
        return tuple(named_outputs(self.model(*args, **kwargs)).values())


def _output_names(model: nn.Module, call: Call) -> list[str]:
    """Output paths; one that is also an input's name gets `output.` in front."""
    return [f"output.{name}" if name in call.names else name for name in call.run(model)]


def _export(flat: _FlatCall, example: Call, outputs: list[str], shapes: tuple[Any, ...] | None) -> Any:
    try:
        with _quiet(), torch.no_grad():
            return torch.onnx.export(
                flat,
                example.tensors,
                dynamo=True,
                verbose=False,
                input_names=list(example.names),
                output_names=outputs,
                dynamic_shapes=shapes,
            )
    except Exception as error:
        name, cause = type(flat.model).__name__, _root_cause(error)
        raise DeviceError(
            explain(
                f"{name} cannot be exported to ONNX: {type(cause).__name__}: {_first_lines(str(cause))}",
                evidence=example.described,
                next_step="replace the operator or branch that the message names"
                + (", or try dynamic_batch=False" if shapes else ""),
            )
        ) from error


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_batch_is_free(model: nn.Module, larger: Call, size: int) -> None:
    try:
        with torch.no_grad():
            larger.run(model)
    except DeviceError as error:
        raise _fixed_batch(model, f"it runs at batch {size} and fails at {size + 1}: {error.__cause__}") from error


def _check_batch_was_kept_free(program: Any, call: Call, model: nn.Module) -> None:
    """The exporter may settle on the example's batch size where `forward` compares it with a number."""
    free = {name for name, is_free in zip(call.names, batched(call), strict=True) if is_free}
    for value in program.model.graph.inputs:
        if value.name in free and isinstance(value.shape[0], int):
            raise _fixed_batch(model, f"the exporter fixed dimension 0 of input `{value.name}` to {value.shape[0]}")


def _fixed_batch(model: nn.Module, evidence: str) -> DeviceError:
    return DeviceError(
        explain(
            f"{type(model).__name__} has a batch size written into it, so it cannot be exported for any batch size",
            evidence=evidence,
            next_step="export with dynamic_batch=False, or derive sizes from `x.shape[0]` in `forward`",
        )
    )


def _first_lines(message: str, length: int = 600) -> str:
    """The start of a long exporter message, on one line."""
    return " ".join(message.split())[:length]


def _strip_prefix(program: Any) -> None:
    """Give weights the names that they have in the model's own `state_dict`."""
    values = program.model.graph.initializers
    taken = set(values) | {value.name for value in (*program.model.graph.inputs, *program.model.graph.outputs)}
    for value in list(values.values()):
        name = value.name.removeprefix(_PREFIX)
        if name not in taken:
            value.name = name


def _serialise(program: Any, model: str) -> bytes:
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    if size > LARGEST:
        raise DeviceError(
            explain(
                f"{model} is too large for one ONNX file",
                evidence=f"{size:,} bytes of weights, at most {LARGEST:,} fit",
                next_step="cut it further or convert it to float16 first",
            )
        )
    return bytes(program.model_proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, log lines or dumped graphs from the exporter; its errors still come through."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
