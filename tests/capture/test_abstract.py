"""The short way to shapes says what PyTorch says, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from secateurs.capture.abstract import empty_result

aten = torch.ops.aten
sizes = st.integers(1, 6)


def check(func: Any, *args: Any) -> Tensor | None:
    """What the rule gives, after comparing it with the operator on tensors that really have data."""
    guess = empty_result(func, args, {})
    try:
        truth = func(*args)
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError):
        assert guess is None, "a call that fails must be left to PyTorch"
        return None
    if guess is not None:
        assert (guess.shape, guess.dtype, guess.stride()) == (truth.shape, truth.dtype, truth.stride())
        assert guess.untyped_storage()._cdata not in {a.untyped_storage()._cdata for a in args if isinstance(a, Tensor)}
    return guess


@settings(max_examples=200)
@given(
    st.integers(1, 3),
    st.tuples(st.integers(1, 2), sizes, sizes, st.integers(1, 3)),
    st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 3)),
    st.booleans(),
    st.sampled_from([0, 0, 0, 1, -1]),
)
def test_convolutions(rank, channels, space, kernel, options, bias, extra):
    batch, out, inner, groups = channels
    stride, padding, dilation = options
    x = torch.zeros(batch, inner * groups + max(0, extra), *space[:rank])
    weight = torch.zeros(out * groups, inner, *kernel[:rank])
    b = torch.zeros(out * groups + min(0, extra)) if bias else None
    func = getattr(aten, f"conv{rank}d").default
    found = check(func, x, weight, b, [stride] * rank, [padding] * rank, [dilation] * rank, groups)
    fits = all(s + 2 * padding >= dilation * (k - 1) + 1 for s, k in zip(space[:rank], kernel[:rank], strict=True))
    if extra == 0 and fits:
        assert found is not None


@settings(max_examples=60)
@given(st.lists(sizes, min_size=1, max_size=3), sizes, sizes, st.booleans(), st.booleans())
def test_linear(shape, inputs, outputs, bias, fits):
    weight = torch.zeros(outputs, inputs if fits else inputs + 1)
    found = check(aten.linear.default, torch.zeros(*shape, inputs), weight, torch.zeros(outputs) if bias else None)
    assert (found is not None) == fits


@settings(max_examples=60)
@given(st.lists(sizes, min_size=2, max_size=5), st.booleans(), st.booleans(), st.integers(0, 1))
def test_batch_norm(shape, affine, tracked, extra):
    channels = shape[1] + extra
    row = torch.ones(channels)
    weights = (row, row) if affine else (None, None)
    moments = (row, row) if tracked else (None, None)
    check(aten.batch_norm.default, torch.ones(shape), *weights, *moments, not tracked, 0.1, 1e-5, False)


@settings(max_examples=60)
@given(st.lists(sizes, min_size=1, max_size=4), st.integers(1, 4), st.booleans(), st.booleans())
def test_layer_norm(shape, rank, affine, fits):
    inner = [*shape[-rank:-1], shape[-1] + (not fits)]
    weight = torch.ones(inner) if affine else None
    found = check(aten.layer_norm.default, torch.ones(shape), inner, weight, weight)
    assert (found is not None) == fits


@settings(max_examples=100)
@given(st.sampled_from(["relu", "silu", "sigmoid", "gelu"]), st.lists(sizes, max_size=5), st.booleans())
def test_pointwise(name, shape, whole):
    x = torch.ones(shape, dtype=torch.int64 if whole else torch.float32)
    found = check(getattr(aten, name).default, x)
    assert (found is not None) == x.is_floating_point()


@settings(max_examples=100)
@given(st.sampled_from(["add", "mul"]), st.lists(sizes, max_size=5), st.data())
def test_pairs(name, shape, data):
    drawn = data.draw(st.lists(st.sampled_from([0, 0, 1, 1, 2]), min_size=len(shape), max_size=len(shape)))
    other = [1 if kind == 1 else size + (kind == 2) for kind, size in zip(drawn, shape, strict=True)]
    x, y = torch.ones(shape), torch.ones(other)
    if data.draw(st.booleans()):
        x, y = y, x
    found = check(getattr(aten, name).Tensor, x, y)
    if 2 not in drawn:
        assert found is not None


@settings(max_examples=60)
@given(st.lists(sizes, min_size=3, max_size=4), st.lists(sizes, min_size=1, max_size=3))
def test_adaptive_average(shape, size):
    check(aten.adaptive_avg_pool2d.default, torch.ones(shape), size)


@pytest.mark.parametrize("name", ["relu_", "silu_", "hardtanh_", "hardswish_"])
def test_writing_in_place_gives_the_argument_itself(name):
    with FakeTensorMode() as fake:
        x = torch.ones(2, 3)
        found = empty_result(getattr(aten, name).default, (x,), {}, fake)
        assert found is x and getattr(aten, name).default(x) is x
    assert empty_result(getattr(aten, name).default, (torch.ones(2, 3),), {}) is None


def test_under_a_mode_the_results_are_tensors_of_that_mode():
    with FakeTensorMode() as fake:
        x, weight = torch.ones(2, 3), torch.ones(4, 3)
        found = empty_result(aten.linear.default, (x, weight), {}, fake)
        truth = aten.linear.default(x, weight)
        for tensor in (found, truth):
            assert isinstance(tensor, FakeTensor) and tensor.fake_mode is fake
        assert found is not None
        assert (found.shape, found.dtype, found.device) == (truth.shape, truth.dtype, truth.device)
        assert (found + 1).shape == truth.shape


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("which", ["input", "weight"])
def test_memory_formats(format: torch.memory_format, which: str):
    x, weight = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)
    if which == "input":
        x = x.to(memory_format=format)
    else:
        weight = weight.to(memory_format=format)
    check(aten.conv2d.default, x, weight)


def test_other_operators_and_mixed_types_are_left_to_pytorch():
    x = torch.zeros(2, 3)
    assert empty_result(aten.tanh.default, (x,), {}) is None
    assert empty_result(aten.add.Tensor, (x, torch.zeros(2, 3, dtype=torch.float64)), {}) is None
    assert empty_result(aten.mul.Tensor, (x, torch.zeros(3, 2).T), {}) is None
    assert empty_result(aten.linear.default, (x, torch.zeros(4, 3, dtype=torch.float64)), {}) is None
    assert empty_result(aten.linear.default, (x, torch.zeros(4, 3)), {"bias": None}) is None
    assert empty_result(aten.conv2d.default, (torch.zeros(3, 8, 8), torch.zeros(4, 3, 1, 1)), {}) is None
