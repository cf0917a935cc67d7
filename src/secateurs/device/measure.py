"""`measure` and `compare`: time models on a device so that a difference is a difference.

All models are compiled and checked first. Then each round times every model once, in an order that is shuffled and
reversed in turn, so that neither drift nor position favours one of them. A sample repeats a run until it lasts far
longer than the clock's resolution.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, TypedDict, Unpack, overload

import torch
from torch import nn

from secateurs.base.errors import InputError, explain
from secateurs.device.agreement import check_agreement
from secateurs.device.base import Compiled, Device, find_device
from secateurs.device.call import Call, working_copy
from secateurs.device.measurement import Comparison, Measurement, Measurements
from secateurs.device.statistics import FEWEST_ROUNDS

TICKS_PER_SAMPLE = 1000


class Options(TypedDict, total=False):
    """Keyword arguments of `measure` and `compare` beyond the models and their inputs; see `Timing`."""

    threads: int
    warmup: int
    rounds: int
    min_time: float
    seed: int
    tolerance: float


@dataclass(frozen=True)
class Timing:
    """How to measure.

    `min_time` is the least length of one sample in seconds, `seed` that of the order within rounds, `tolerance` the
    largest relative difference of outputs to accept from the runtime.
    """

    threads: int = 1
    warmup: int = 5
    rounds: int = 30
    min_time: float = 0.005
    seed: int = 0
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        _at_least("rounds", self.rounds, FEWEST_ROUNDS, "fewer cannot give a 95 % interval")
        _at_least("warmup", self.warmup, 1, "the first run of a model is not typical")
        _at_least("min_time", self.min_time, 0, "it is a length of time in seconds")
        _at_least("tolerance", self.tolerance, 0, "it is the largest difference to accept")


@overload
def measure(
    model: nn.Module, example_inputs: Any, *, kwargs: Mapping[str, Any] | None = ..., device: str | Device = ...,
    against: None = ..., **options: Unpack[Options],
) -> Measurement: ...  # fmt: skip
@overload
def measure(
    model: nn.Module, example_inputs: Any, *, kwargs: Mapping[str, Any] | None = ..., device: str | Device = ...,
    against: nn.Module, **options: Unpack[Options],
) -> Comparison: ...  # fmt: skip
@overload
def measure(
    model: Mapping[str, nn.Module], example_inputs: Any, *, kwargs: Mapping[str, Any] | None = ...,
    device: str | Device = ..., against: None = ..., **options: Unpack[Options],
) -> Measurements: ...  # fmt: skip
def measure(
    model: nn.Module | Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    device: str | Device = "torch",
    against: nn.Module | None = None,
    **options: Unpack[Options],
) -> Measurement | Comparison | Measurements:
    """Time one run of `model` on `device`; with `against`, how many times faster it is than that model.

    `options`: `threads` (1), `warmup` runs (5), `rounds` (30, at least 6), `min_time` of a sample in seconds (0.005),
    `seed` of the order (0), `tolerance` of the outputs (1e-3). A dict of named models is measured as by `compare`.

    Returns a `Measurement`; a `Comparison` with `against`; `Measurements` for a dict. Raises what `compare` raises.
    """
    if isinstance(model, Mapping):
        if against is not None:
            raise InputError(
                explain("Both a dict of models and `against` are given", next_step="put that model into the dict")
            )
        return compare(model, example_inputs, kwargs=kwargs, device=device, **options)
    if against is None:
        models = {type(model).__name__: model}
        return compare(models, example_inputs, kwargs=kwargs, device=device, **options).entries[0]
    models = {"baseline": against, "candidate": model}
    both = compare(models, example_inputs, kwargs=kwargs, device=device, **options)
    return both.comparison("candidate", "baseline")


def compare(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    device: str | Device = "torch",
    **options: Unpack[Options],
) -> Measurements:
    """Time several models on the same inputs in the same rounds: `compare({"before": a, "after": b}, x)`.

    Options are those of `measure`. No model is changed.

    Raises `UnknownNameError` on an unknown device; `InputError` on options or inputs that cannot be used; `DeviceError`
    when the runtime is not installed, cannot run a model, or gives other numbers than the module.
    """
    timing = Timing(**options)
    place = find_device(device)
    if not models:
        raise InputError(explain("There is no model to measure", next_step="pass at least one model"))
    with torch.random.fork_rng():
        compiled = {name: _compile(model, place, example_inputs, kwargs, timing) for name, model in models.items()}
        started = datetime.now(UTC).isoformat()
        environment = place.environment(next(iter(compiled.values())))
        samples, repeats = time_rounds(compiled, timing)
    return Measurements(
        tuple(
            Measurement(
                name=name,
                device=place.name,
                samples=tuple(samples[name]),
                runs_per_sample=repeats[name],
                threads=timing.threads,
                warmup=timing.warmup,
                seed=timing.seed,
                started=started,
                environment=environment,
            )
            for name in models
        )
    )


def _compile(
    model: nn.Module, device: Device, example_inputs: Any, kwargs: Mapping[str, Any] | None, timing: Timing
) -> Compiled:
    """The model on the device, once its outputs were seen to agree with the module's own."""
    call = Call.of(model, example_inputs, kwargs)
    compiled = device.compile(model, example_inputs, kwargs, threads=timing.threads)
    with torch.no_grad():
        expected = call.run(working_copy(model))
    check_agreement(expected, compiled.run(call), runtime=device.name, tolerance=timing.tolerance)
    return compiled


def time_rounds(compiled: Mapping[str, Compiled], timing: Timing) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds per run, one sample per model and round, and how many runs each sample averages."""
    samples: dict[str, list[float]] = {name: [] for name in compiled}
    with ExitStack() as stack:
        for program in compiled.values():
            stack.enter_context(program.settings())
        stack.enter_context(_no_garbage_collection())
        stopwatches = {name: _Stopwatch(program) for name, program in compiled.items()}
        repeats = {name: watch.calibrate(timing) for name, watch in stopwatches.items()}
        for order in round_orders(list(compiled), timing.rounds, timing.seed):
            for name in order:
                samples[name].append(stopwatches[name].seconds(repeats[name]) / repeats[name])
    return samples, repeats


def round_orders(names: list[str], rounds: int, seed: int) -> Iterator[list[str]]:
    """The order of each round: shuffled, then the same reversed, so that positions are shared evenly."""
    shuffler = random.Random(seed)
    order = list(names)
    for index in range(rounds):
        if index % 2:
            order = order[::-1]
        else:
            shuffler.shuffle(order)
        yield list(order)


class _Stopwatch:
    """Times a compiled model on the inputs that it was compiled for."""

    def __init__(self, program: Compiled) -> None:
        self._run: Callable[[], Any] = program.prepare(program.call.tensors)
        self._wait = program.wait

    def seconds(self, repeats: int) -> float:
        """Wall time of `repeats` runs in a row."""
        run = self._run
        self._wait()
        start = time.perf_counter_ns()
        for _ in repeat(None, repeats):
            run()
        self._wait()
        return (time.perf_counter_ns() - start) / 1e9

    def calibrate(self, timing: Timing) -> int:
        """Warm up, then find how many runs last `min_time` and at least a thousand ticks of the clock."""
        self.seconds(timing.warmup)
        needed = max(timing.min_time, TICKS_PER_SAMPLE * time.get_clock_info("perf_counter").resolution)
        repeats = 1
        while (elapsed := self.seconds(repeats)) < needed:
            growth = 1.1 * needed / max(elapsed, needed / 100)
            repeats = math.ceil(repeats * growth)
        return repeats


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect now, not in the middle of a sample."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _at_least(name: str, value: float, least: float, because: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not value >= least or math.isinf(value):
        step = f"give {least} or more"
        raise InputError(explain(f"{name}={value!r} is not usable", evidence=because, next_step=step))
