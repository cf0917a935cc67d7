"""Bits for each tensor of a model: what they cost, what they lose, and that the choice is the best there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from train.networks import convolutional, images

from secateurs.base.errors import BudgetError, InputError, UnknownNameError
from secateurs.pack.chosen import with_coded
from secateurs.pack.coded import Coded, Raw
from secateurs.pack.container import to_bytes
from secateurs.pack.integers import quantise
from secateurs.pack.mixed import best_bits, file_bytes, loss_change, weight_error
from secateurs.pack.sharing import share

BITS = (2, 3, 4, 6)


def shared(name: str, tensor: Tensor, bits: int) -> Coded:
    return share(tensor, bits)


def test_bytes_are_those_in_the_file() -> None:
    tensor = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    for coded in (share(tensor, 3), quantise(tensor, 4), share(tensor * (tensor > 0), 3)):
        assert 0 < len(to_bytes({"w": coded})) - file_bytes(coded) < 120
    assert file_bytes(share(tensor, 2)) < file_bytes(share(tensor, 5))


def test_errors_by_hand() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 3.0]]))
    coded = Coded((1, 2), Raw(np.array([2.0, 5.0], np.float32)))
    assert weight_error(model)("weight", coded) == 5.0
    assert weight_error(model, {"weight": torch.tensor([[2.0, 1.0]])})("weight", coded) == 6.0
    assert loss_change(model, lambda item: float(item(torch.ones(1, 2)).detach()))("weight", coded) == 3.0


@pytest.mark.parametrize("measured", [False, True])
def test_the_choice_is_the_best_of_all(measured: bool) -> None:
    model = convolutional().eval()
    inputs, targets = images(16)
    error = weight_error(model)
    if measured:
        error = loss_change(model, lambda item: float(functional.cross_entropy(item(inputs), targets).detach()))
    names = ["0.weight", "4.weight", "8.weight"]
    every = [
        {name: share(model.get_parameter(name), bits) for name, bits in zip(names, picks, strict=True)}
        for picks in product(BITS, repeat=3)
    ]
    fitting = [
        sum(error(*pair) for pair in each.items()) for each in every if sum(map(file_bytes, each.values())) <= 500
    ]
    found = best_bits(model, 500, shared, bits=BITS, error=error)
    assert found.allocation.error == pytest.approx(min(fitting), abs=1e-12)
    assert sum(map(file_bytes, found.coded.values())) == found.allocation.bytes <= 500
    assert sum(error(*pair) for pair in found.coded.items()) == pytest.approx(found.allocation.error)
    assert not torch.equal(with_coded(model, found.coded)(inputs), model(inputs))


def test_a_size_of_the_callers() -> None:
    found = best_bits(convolutional(), 9, shared, bits=BITS, size=lambda coded: int(len(np.unique(coded.decode())) > 4))
    assert all(bits == 6 for bits in found.allocation.bits.values())


def test_refusals() -> None:
    with pytest.raises(BudgetError, match="do not fit into 10 bytes"):
        best_bits(convolutional(), 10, shared)
    with pytest.raises(InputError, match="nothing to choose"):
        best_bits(nn.BatchNorm1d(3), 10, shared)
    with pytest.raises(UnknownNameError):
        weight_error(convolutional(), {"0.bias": torch.ones(6)})
