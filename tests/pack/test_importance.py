"""Importance is the mean of squared gradients, sample by sample, and tells which errors raise the loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from train.networks import convolutional, images, loader

from secateurs.base.errors import TrainError
from secateurs.pack.importance import fisher_importance
from secateurs.pack.shared_model import share_weights


def test_it_is_the_mean_of_squared_gradients() -> None:
    model = convolutional().eval()
    inputs, targets = images(12)
    found = fisher_importance(model, loader((inputs, targets), shuffle=False), floor=0.0)
    expected = {name: torch.zeros_like(item, dtype=torch.float64) for name, item in model.named_parameters()}
    for x, y in zip(inputs, targets, strict=True):
        model.zero_grad()
        functional.cross_entropy(model(x[None]), y[None]).backward()
        for name, item in model.named_parameters():
            expected[name] += item.grad.double().square() / len(inputs)
    assert list(found) == ["0.weight", "4.weight", "8.weight"]
    for name, item in found.items():
        torch.testing.assert_close(item, expected[name], rtol=1e-4, atol=1e-9)


def test_the_floor() -> None:
    model, data = convolutional().eval(), loader(images(12), shuffle=False)
    bare, found = fisher_importance(model, data, floor=0.0), fisher_importance(model, data, floor=0.5)
    for name in bare:
        assert torch.equal(found[name], bare[name].clamp_min(0.5 * float(bare[name].mean())))


def test_it_serves_sharing() -> None:
    model = convolutional(width=12).eval()
    found = fisher_importance(model, loader(images(48)), batches=3)
    for name, item in share_weights(model, 2, importance=found).coded().items():
        plain = share_weights(model, 2).coded()[name]
        weight = model.get_parameter(name).detach().double()
        errors = [float((found[name] * (torch.from_numpy(c.decode()) - weight) ** 2).sum()) for c in (item, plain)]
        assert errors[0] < errors[1]


def test_no_data() -> None:
    with pytest.raises(TrainError):
        fisher_importance(convolutional(), [])
