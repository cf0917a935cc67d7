"""What every device must do. A new one inherits this suite and is done when it passes:

class TestMyRuntime(DeviceConformance):
    device = "myruntime"
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateurs.base.errors import DeviceError, InputError
from secateurs.device import Device, devices, find_device, measure


class Classifier(nn.Module):
    """Convolution, batch norm with statistics that are not trivial, and two outputs, one of them whole numbers."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 4)
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))
        return logits, logits.argmax(1)


class Masked(nn.Module):
    """Nested inputs, a keyword, a literal, and a nested dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, batch: dict[str, Tensor], *, mask: Tensor, double: bool = False) -> dict[str, Any]:
        hidden = self.linear(batch["tokens"]) * mask
        return {"hidden": hidden, "pooled": {"mean": hidden.mean(1), "max": hidden.amax(1)}, "doubled": double}


def classifier() -> tuple[nn.Module, Any, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return _seeded(Classifier), torch.randn(2, 3, 8, 8, generator=generator), {}


def masked() -> tuple[nn.Module, Any, dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 7, 5, generator=generator)
    return _seeded(Masked), ({"tokens": tokens},), {"mask": torch.ones(2, 7, 1), "double": True}


CASES: tuple[Callable[[], tuple[nn.Module, Any, dict[str, Any]]], ...] = (classifier, masked)


class DeviceConformance:
    """Inherit and set `device`. `tolerance` is the largest difference from eager PyTorch, in output units."""

    device: ClassVar[str]
    tolerance: ClassVar[float] = 1e-5

    @property
    def place(self) -> Device:
        return find_device(self.device)

    def test_is_registered_and_available(self) -> None:
        assert devices[self.device].name == self.device
        assert self.place.available(), self.place.available().reason

    def test_states_its_facts(self) -> None:
        assert "latency" in self.place.counts
        assert self.place.simd_width >= 1
        assert self.place.channel_multiple >= 1

    def test_outputs_equal_eager(self) -> None:
        for case in CASES:
            model, inputs, kwargs = case()
            got = self.place.compile(model, inputs, kwargs)(inputs, kwargs)
            _assert_close(got, _eager(model, inputs, kwargs), self.tolerance)

    def test_runs_on_other_values_of_the_same_shape(self) -> None:
        model, inputs, _ = classifier()
        compiled = self.place.compile(model, inputs)
        for _ in range(3):
            inputs = inputs * -0.7 + 0.1
            _assert_close(compiled(inputs), _eager(model, inputs, {}), self.tolerance)

    def test_same_inputs_give_the_same_bits(self) -> None:
        for case in CASES:
            model, inputs, kwargs = case()
            compiled = self.place.compile(model, inputs, kwargs)
            first, second = compiled(inputs, kwargs), compiled(inputs, kwargs)
            again = self.place.compile(model, inputs, kwargs)(inputs, kwargs)
            for one, other, recompiled in zip(first, second, again, strict=True):
                assert torch.equal(one, other)
                assert torch.equal(one, recompiled)

    def test_leaves_model_and_process_untouched(self) -> None:
        model, inputs, _ = classifier()
        model.train()
        model.get_submodule("norm").eval()
        next(model.parameters()).requires_grad_(False)
        before = _observe(model, inputs)
        measure(model, inputs, device=self.device, rounds=6, min_time=1e-4)
        after = _observe(model, inputs)
        for name, value in before.items():
            same = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
            assert same, f"{name} changed"

    def test_measures_positive_times(self) -> None:
        model, inputs, kwargs = masked()
        result = measure(model, inputs, kwargs=kwargs, device=self.device, rounds=6, min_time=1e-4)
        assert len(result.samples) == 6
        assert all(sample > 0 for sample in result.samples)
        assert (
            min(result.samples) <= result.interval.low <= result.median <= result.interval.high <= max(result.samples)
        )
        assert result.runs_per_sample >= 1
        assert result.environment.runtime
        assert result.device == self.device

    def test_refuses_inputs_of_another_shape_type_or_structure(self) -> None:
        model, inputs, _ = classifier()
        compiled = self.place.compile(model, inputs)
        for wrong in (inputs[:1], inputs.double(), inputs[0], (inputs, inputs), "text", None, [inputs, inputs]):
            _assert_raises(InputError, partial(compiled, wrong))
        _assert_raises(InputError, lambda: compiled(inputs, {"extra": inputs}))

    def test_refuses_what_is_no_model_call(self) -> None:
        model, inputs, _ = classifier()
        _assert_raises(InputError, lambda: self.place.compile("resnet50", inputs))  # type: ignore[arg-type]
        _assert_raises(InputError, lambda: self.place.compile(model, ()))
        _assert_raises(InputError, lambda: self.place.compile(model, inputs, threads=0))
        _assert_raises(DeviceError, lambda: self.place.compile(model, inputs[:, :2]))


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _eager(model: nn.Module, inputs: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    twin = copy.deepcopy(model).eval()
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        leaves = torch.utils._pytree.tree_leaves(twin(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _observe(model: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """Everything that compiling and measuring could disturb."""
    return {
        "inputs": inputs.clone(),
        **{name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "gradients": [(p.requires_grad, p.grad) for p in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "torch random state": torch.get_rng_state(),
        "python random state": random.getstate(),
        "threads": torch.get_num_threads(),
        "grad enabled": torch.is_grad_enabled(),
    }


def _assert_close(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def _assert_raises(kind: type[Exception], action: Callable[[], Any]) -> None:
    try:
        action()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")
