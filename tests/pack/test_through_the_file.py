"""What is shared or quantised, through the packed file: the same bits, the same outputs, and far fewer bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from train.networks import convolutional, images

import secateurs as sec
from secateurs.pack.chosen import with_coded
from secateurs.pack.coded import Coded
from secateurs.pack.integers import quantise_weights
from secateurs.pack.moments import input_moments
from secateurs.pack.shared_model import share_weights


def sparse(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(parameter.abs() > parameter.abs().median())
    return model


def coded_in_all_ways(model: nn.Module) -> dict[str, dict[str, Coded]]:
    moments = input_moments(model, [images(16)[0].to(next(model.parameters()).dtype)])
    return {
        "shared": share_weights(model, 3).coded(),
        "shared with feedback": share_weights(model, 2, moments=moments).coded(),
        "integers": quantise_weights(model, 4).coded,
        "one scale, feedback": quantise_weights(model, 3, per="tensor", moments=moments).coded,
    }


@pytest.mark.parametrize("zeros", [False, True])
def test_the_file_gives_the_model_back(tmp_path: Path, zeros: bool) -> None:
    model = convolutional(width=16).eval()
    model = sparse(model) if zeros else model
    inputs = images(4)[0]
    dense = sec.pack(model, tmp_path / "dense").bytes
    for way, coded in coded_in_all_ways(model).items():
        path = tmp_path / way
        taken = sec.pack(model, path, coded=coded).bytes
        back = sec.unpack(path, lambda: convolutional(width=16))
        assert isinstance(back, nn.Module) and type(back) is type(model)
        assert torch.equal(back(inputs), with_coded(model, coded)(inputs)), way
        for name, item in coded.items():
            assert (back.get_parameter(name).detach().numpy() == item.decode()).all()
        assert taken < 0.6 * dense


def test_after_training(tmp_path: Path) -> None:
    model = sparse(convolutional(width=16).eval())
    shared = share_weights(model, 2)
    inputs, targets = images(16)
    optimizer = torch.optim.Adam(shared.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(shared(inputs), targets).backward()
        optimizer.step()
    plain = shared.plain()
    sec.pack(plain, tmp_path / "file", coded=shared.coded())
    back = sec.unpack(tmp_path / "file", lambda: convolutional(width=16))
    assert isinstance(back, nn.Module)
    assert torch.equal(back(inputs), plain(inputs)) and torch.equal(back(inputs), shared(inputs))
    assert not torch.equal(back(inputs), model(inputs))


def test_half_precision(tmp_path: Path) -> None:
    model = convolutional().to(torch.bfloat16).eval()
    for number, coded in enumerate((share_weights(model, 3).coded(), quantise_weights(model, 5).coded)):
        sec.pack(model, tmp_path / str(number), coded=coded)
        back = sec.unpack(tmp_path / str(number))
        assert isinstance(back, dict)
        expected = with_coded(model, coded).state_dict()
        assert all(torch.equal(back[name], expected[name]) for name in coded)
        assert all(np.isfinite(item.decode()).all() for item in coded.values())
