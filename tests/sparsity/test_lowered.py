"""The lowered product equals the masked convolution, and has no column that is zero for all."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateurs as sec
from secateurs.sparsity import LoweredConv2d


@settings(max_examples=60)
@given(
    groups=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from([0, 1, (2, 0)]),
    mode=st.sampled_from(["zeros", "circular", "reflect"]),
    bias=st.booleans(),
    sparsity=st.sampled_from([0.0, 0.6, 0.95]),
    pattern=st.sampled_from(["weight", "kernel", "filter"]),
)
def test_it_computes_what_the_convolution_does(
    groups: int, sizes: tuple[int, int, int, int], pattern: str, sparsity: float, mode: str, **options: Any
) -> None:
    outputs, inputs, *kernel = sizes
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs * groups, outputs * groups, kernel, groups=groups, padding_mode=mode, **options).double()  # type: ignore[arg-type]
    mask = sec.masks(conv, sparsity, pattern=pattern, only=["weight"])["weight"]
    x = torch.randn(2, inputs * groups, 9, 10).double()
    lowered = LoweredConv2d(conv, mask=mask)
    sec.sparsify(conv, {"weight": mask}).detach()
    for made in (lowered, LoweredConv2d(conv), LoweredConv2d(conv, size=(9, 10)), LoweredConv2d(conv, size=(8, 8))):
        for seen in (x, x[:0], x[0]):
            torch.testing.assert_close(made(seen), conv(seen), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("start", "stride"), [(0, 2), (1, 2), (5, 3), ("*", 2), ("*", 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_strided_kernels_lose_their_columns_from_both_matrices(start: Any, stride: int, groups: int) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 6, 3, padding="same", groups=groups)
    mask = sec.sparsify(conv, pattern=f"strided({start},{stride})").masks["weight"]
    lowered, x = LoweredConv2d(conv), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(lowered(x), conv(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lowered(x.to(memory_format=torch.channels_last)), conv(x), rtol=1e-5, atol=1e-5)
    per_channel = mask.reshape(groups, 6 // groups, 4 // groups, 9)[:, 0].sum(2)
    assert lowered.kept == tuple(per_channel.sum(1).tolist())
    assert [tuple(item.shape) for item in lowered.weights] == [(6 // groups, count) for count in lowered.kept]
    if start != "*":
        assert lowered.kept == (4 // groups * math.ceil((9 - start) / stride),) * groups


def test_it_can_be_trained_on() -> None:
    conv = nn.Conv2d(2, 3, 3)
    mask = sec.sparsify(conv, pattern="strided(0,2)").masks["weight"]
    lowered, x = LoweredConv2d(conv), torch.randn(2, 2, 6, 6)
    for model in (conv, lowered):
        model(x).square().sum().backward()
    assert conv.weight.grad is not None
    kept = mask[0].flatten().nonzero().flatten()
    torch.testing.assert_close(lowered.weights[0].grad, conv.weight.grad.flatten(1)[:, kept], rtol=1e-4, atol=1e-4)


def test_what_is_prepared_moves_along_and_is_not_saved() -> None:
    lowered = LoweredConv2d(nn.Conv2d(2, 3, 3, padding=1), size=(6, 6))
    assert lowered.prepared is not None and len(lowered.prepared) == 2 * 9 * 36
    assert sorted(lowered.state_dict()) == ["bias", "channel", "column", "row", "weights.0"]
    x = torch.randn(2, 2, 6, 6)
    torch.testing.assert_close(lowered.double()(x.double()).float(), copy.deepcopy(lowered).float()(x))


def test_channels_then_kernels_then_taps_each_retrained() -> None:
    torch.manual_seed(2)
    x, labels = torch.randn(32, 1, 8, 8), torch.randint(5, (32,))
    model: nn.Module = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )
    data = list(zip(x.split(8), labels.split(8), strict=True))
    config = sec.FineTune(epochs=2, lr=0.05, weight_decay=1e-2, progress=False)
    graph = sec.capture(model, x[:2])
    groups = sec.couple(graph)
    keep = {group.name: list(range(0, group.size, 2)) for group in groups.free}
    model = sec.finetune(sec.cut(model, sec.plan(graph, groups, keep), x[:2]), data, config).model
    kernels = sec.masks(model, 0.5, pattern="kernel", only=["2"])
    model = sec.finetune(model, data, config, masks=kernels).model
    masks = sec.masks(model, pattern="strided(*,2)", only=["2"], within=kernels)
    before = model.get_parameter("2.weight").detach().clone()
    model = sec.finetune(model, data, config, masks=masks).model

    weight, mask = model.get_parameter("2.weight").detach(), masks["2.weight"]
    assert weight.shape == (4, 3, 3, 3)
    assert int(kernels["2.weight"].flatten(2).any(2).sum()) == 6
    assert torch.equal(weight != 0, mask)
    assert not torch.equal(weight[mask], before[mask])
    for channel in range(3):
        there = kernels["2.weight"][:, channel].flatten(1).any(1)
        taps = mask[:, channel].flatten(1)
        assert not taps[~there].any()
        assert all(row.nonzero().flatten().tolist() in ([0, 2, 4, 6, 8], [1, 3, 5, 7]) for row in taps[there])
        assert (taps[there] == taps[there][:1]).all()
    conv = model.get_submodule("2")
    assert isinstance(conv, nn.Conv2d)
    lowered, seen = LoweredConv2d(conv, size=(6, 6)), torch.randn(5, 3, 6, 6)
    assert lowered.kept == (int(mask.any(0).sum()),)
    assert lowered.kept[0] <= 3 * 5
    torch.testing.assert_close(lowered(seen), conv(seen), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_lowered_is_refused() -> None:
    with pytest.raises(sec.InputError, match="A Linear cannot"):
        LoweredConv2d(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(sec.InputError, match="does not fit"):
        LoweredConv2d(nn.Conv2d(2, 2, 3), mask=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(sec.InputError, match="room for the kernel"):
        LoweredConv2d(nn.Conv2d(2, 2, 3, dilation=2), size=(4, 9))
