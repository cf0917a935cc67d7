"""Top-1 accuracy against counting by hand."""

from __future__ import annotations

import pytest
import torch
from train.networks import convolutional, images, loader, plain, points, same, state

from secateurs.base.errors import TrainError
from secateurs.train.evaluate import accuracy, mean_loss


def test_counts_rows() -> None:
    inputs, target = points(21)
    model = plain()
    right = [int(model(x[None]).argmax()) == int(y) for x, y in zip(inputs, target, strict=True)]
    assert accuracy(loader((inputs, target)))(model) == sum(right) / 21
    first = accuracy(loader((inputs, target), shuffle=False), batches=1)
    assert first(model) == sum(right[:8]) / 8


def test_counts_positions_of_dense_outputs() -> None:
    model = torch.nn.Conv2d(1, 3, 1)
    inputs = images(4)[0]
    target = model(inputs).argmax(dim=1)
    target[0] = (target[0] + 1) % 3
    assert accuracy([(inputs, target)])(model) == 0.75


def test_mean_loss_is_that_of_all_rows() -> None:
    model, (inputs, target) = convolutional().train(), images(20)
    twin = convolutional().eval()
    with torch.no_grad():
        expected = float(torch.nn.functional.cross_entropy(twin(inputs), target))
        squares = float((twin(inputs) - 1).square().mean())
    batches = [(inputs[:13], target[:13]), (inputs[13:], target[13:])]
    assert mean_loss(batches)(model) == pytest.approx(expected, rel=1e-6)
    assert model.training
    ones = [(part, torch.ones(len(part), 3)) for part, _ in batches]
    assert mean_loss(ones, "mse")(model) == pytest.approx(squares, rel=1e-6)
    with pytest.raises(TrainError, match="validation data is empty"):
        mean_loss([])(model)


def test_leaves_the_model_and_the_random_state_alone() -> None:
    model = convolutional().train()
    model[1].eval()
    before, modes, numbers = state(model), [m.training for m in model.modules()], torch.get_rng_state()
    evaluate = accuracy(loader(images()))
    assert evaluate(model) == evaluate(model)
    assert same(state(model), before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)


def test_bad_input_is_refused() -> None:
    inputs, target = points()
    with pytest.raises(TrainError, match="validation data is empty"):
        accuracy([])(plain())
    with pytest.raises(TrainError, match=r"validation batch 0.*logits \[24, 3\], target \[3\]"):
        accuracy([(inputs, target[:3])])(plain())
    with pytest.raises(TrainError, match=r"validation batch 1, module `0`.*\[24, 2\]"):
        accuracy([(inputs, target), (inputs[:, :2], target)])(plain())
