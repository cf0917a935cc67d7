"""`Device`: a place to run a model. One runtime per file; one class and one decorator line adds one."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

from torch import Tensor, nn

from secateurs.base.errors import DeviceError, InputError, explain
from secateurs.base.registry import Registry
from secateurs.device.call import Call
from secateurs.device.environment import Environment, simd_lanes, usable_cores


@dataclass(frozen=True)
class Availability:
    """Whether a device can be used here; true or false in a condition, and `reason` says why not."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


class Compiled(ABC):
    """A model made ready on a device for one call: fixed input structure, shapes, element types and thread count."""

    def __init__(self, model: nn.Module, call: Call, threads: int) -> None:
        self.model_name = type(model).__name__
        self.call = call
        self.threads = threads
        self._model = model

    def __call__(self, example_inputs: Any, kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
        """Run once; the output tensors, flat, in the model's own order.

        Raises `InputError` when structure, shapes or element types are not those that the model was compiled for.
        """
        return self.run(Call.of(self._model, example_inputs, kwargs))

    def run(self, call: Call) -> list[Tensor]:
        """`__call__` on a call that is already taken apart."""
        self.call.check(call)
        with self.settings():
            return self.outputs(self.prepare(call.tensors)())

    @abstractmethod
    def prepare(self, tensors: Sequence[Tensor]) -> Callable[[], Any]:
        """A function that runs the model once on these tensors, with nothing else in it: what `measure` times."""

    @abstractmethod
    def outputs(self, result: Any) -> list[Tensor]:
        """The tensors of what a prepared function returned."""

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Hold what the runtime keeps per process (threads, gradients) while prepared functions run."""
        yield

    def wait(self) -> None:  # noqa: B027  (most runtimes are synchronous)
        """Return when everything that was started has finished."""


class Device(ABC):
    """A runtime on this machine. Subclasses are registered in `devices` and need no arguments."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    counts: ClassVar[tuple[str, ...]] = ("latency",)

    @property
    def simd_width(self) -> int:
        """Float32 numbers per vector instruction."""
        return simd_lanes()

    @property
    def channel_multiple(self) -> int:
        """Channel counts that are multiples of this waste no vector lane."""
        return self.simd_width

    def available(self) -> Availability:
        """Whether the runtime is installed; never raises."""
        try:
            self.require()
        except DeviceError as error:
            return Availability(False, str(error))
        return Availability(True)

    def require(self) -> dict[str, ModuleType]:
        """The runtime's packages, imported. Raises `DeviceError` naming the extra to install."""
        return {name: _import(name, self.name, self.extra) for name in self.packages}

    @abstractmethod
    def environment(self, compiled: Compiled) -> Environment:
        """Machine, software and load at this moment."""

    def compile(
        self, model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None = None, *, threads: int = 1
    ) -> Compiled:
        """Make `model` ready to run on inputs like these with `threads` threads. The model itself is not changed.

        Raises `InputError` on what cannot be a model call, and `DeviceError` when the runtime is not installed or
        cannot run this model, with the runtime's own message.
        """
        check_threads(threads)
        self.require()
        return self._compile(model, Call.of(model, example_inputs, kwargs), threads)

    @abstractmethod
    def _compile(self, model: nn.Module, call: Call, threads: int) -> Compiled:
        """`compile` on arguments that were checked."""


devices: Registry[type[Device]] = Registry("device")


def find_device(device: str | Device) -> Device:
    """The device itself, or a new one by name. Raises `UnknownNameError` with the nearest names."""
    return device if isinstance(device, Device) else devices[device]()


def check_threads(threads: int) -> None:
    """Raises `InputError` unless `threads` is a number of threads that this process can run at once."""
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if not whole or not 1 <= threads <= usable_cores():
        raise InputError(
            explain(
                f"threads={threads!r} is not usable",
                evidence=f"this process may use {usable_cores()} cores",
                next_step=f"give a whole number from 1 to {usable_cores()}",
            )
        )


def _import(package: str, device: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DeviceError(
            explain(
                f"The device {device!r} cannot be used, because the package {package} does not import",
                evidence=str(error),
                next_step=f"pip install 'secateurs[{extra}]'",
            )
        ) from error
