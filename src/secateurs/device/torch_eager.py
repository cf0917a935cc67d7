"""PyTorch as it runs without a compiler, where the model lies: on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.device.base import Compiled, Device, devices
from secateurs.device.call import Call, named_outputs, working_copy
from secateurs.device.environment import Environment


class EagerModel(Compiled):
    """The module itself, in eval mode and without gradients."""

    def __init__(self, model: nn.Module, call: Call, threads: int) -> None:
        super().__init__(model, call, threads)
        self._copy = working_copy(model)
        tensors = chain(call.tensors, model.parameters(), model.buffers())
        self.cuda = next((tensor.device for tensor in tensors if tensor.is_cuda), None)

    def prepare(self, tensors: Sequence[Tensor]) -> Callable[[], Any]:
        model = self._copy
        args, kwargs = self.call.arguments(tensors)
        return lambda: model(*args, **kwargs)

    def outputs(self, result: Any) -> list[Tensor]:
        return list(named_outputs(result).values())

    @contextmanager
    def settings(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)

    def wait(self) -> None:
        if self.cuda is not None:
            torch.cuda.synchronize(self.cuda)


@devices.register("torch")
class TorchEager(Device):
    """PyTorch eager. `channel_multiple` follows oneDNN, which blocks channels by the vector width."""

    name = "torch"
    packages = ("torch",)

    def environment(self, compiled: Compiled) -> Environment:
        cuda = compiled.cuda if isinstance(compiled, EagerModel) else None
        accelerator = "" if cuda is None else torch.cuda.get_device_name(cuda)
        return Environment.now(f"PyTorch {torch.__version__} eager", accelerator)

    def _compile(self, model: nn.Module, call: Call, threads: int) -> EagerModel:
        compiled = EagerModel(model, call, threads)
        with compiled.settings():
            call.run(compiled._copy)
        return compiled
