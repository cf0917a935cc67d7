"""2:4 weights for GPUs: refused elsewhere with the reason; there, the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateurs as sec
from secateurs.base.errors import DeviceError, InputError
from secateurs.deliver.semi_structured import _not_2_of_4, semi_structured

HAS_SPARSE_CORES = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def pruned(**changes: object) -> nn.Module:
    model = network()
    sec.sparsify(model, pattern="2:4", **changes).detach()
    return model


def test_the_pattern_leaves_what_counts_as_2_of_4():
    for name, weight in pruned().named_parameters():
        if weight.dim() == 2:
            assert _not_2_of_4(weight) == "", name
    assert _not_2_of_4(torch.tensor([[1.0, 1, 0, 0, 1, 0, 1, 0]])) == ""
    assert "1 of its 2 blocks" in _not_2_of_4(torch.tensor([[1.0, 1, 0, 0, 1, 1, 1, 0]]))
    assert "not a multiple of 4" in _not_2_of_4(torch.zeros(2, 6))


def test_a_dense_model_is_refused():
    with pytest.raises(InputError, match=r"No linear layer has a 2:4 weight.*`0`: 8,192 of its 8,192 blocks"):
        semi_structured(network())
    with pytest.raises(InputError, match="there is none"):
        semi_structured(nn.Conv2d(3, 4, 3))


def test_a_cpu_is_refused_and_says_what_it_takes():
    model = pruned(only=["0"])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DeviceError, match=r"`0\.weight` is on cpu; they need a CUDA GPU of compute capability 8\.0"):
        semi_structured(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available() or HAS_SPARSE_CORES, reason="needs a GPU without sparse tensor cores")
def test_an_older_gpu_is_refused():
    with pytest.raises(DeviceError, match="sparse tensor cores begin with"):
        semi_structured(pruned().half().cuda())


@pytest.mark.skipif(not HAS_SPARSE_CORES, reason="needs a GPU with sparse tensor cores")
def test_on_a_gpu_the_outputs_are_those_of_the_dense_model():
    model = pruned(only=["0", "2"]).half().cuda().eval()
    made = semi_structured(model)
    assert made.sparse == ("0", "2")
    assert list(made.dense) == ["4"]
    assert type(made.model[0].weight.data).__name__.startswith("SparseSemiStructured")
    x = torch.randn(64, 128, dtype=torch.float16, device="cuda")
    torch.testing.assert_close(made.model(x), model(x), rtol=2e-2, atol=2e-2)
    assert type(model[0].weight.data) is torch.Tensor
