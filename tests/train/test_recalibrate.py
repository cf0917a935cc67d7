"""Recalibrated statistics against averages taken by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from train.networks import convolutional, images, loader, same, state

from secateurs.base.errors import InputError, TrainError
from secateurs.train.recalibrate import recalibrate


def test_the_first_layer_gets_the_average_of_the_batches() -> None:
    model = convolutional().eval()
    batches = [x for x, _ in loader(images(40), shuffle=False)]
    result = recalibrate(model, batches)
    seen = [model[0](x) for x in batches]
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(dim=0)
    variances = torch.stack([x.var(dim=(0, 2, 3), unbiased=True) for x in seen]).mean(dim=0)
    torch.testing.assert_close(result[1].running_mean, means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result[1].running_var, variances, rtol=1e-5, atol=1e-6)


def test_later_layers_see_batches_normalised_and_no_dropout() -> None:
    model = convolutional().eval()
    batches = [x for x, _ in loader(images(40), shuffle=False)]
    result = recalibrate(model, batches)
    means = []
    for x in batches:
        hidden = nn.functional.batch_norm(model[0](x), None, None, model[1].weight, model[1].bias, training=True)
        means.append(model[4](hidden.relu()).mean(dim=(0, 2, 3)))
    torch.testing.assert_close(result[5].running_mean, torch.stack(means).mean(dim=0), rtol=1e-5, atol=1e-6)


def test_everything_else_stays() -> None:
    model = convolutional().train()
    model[1].momentum = 0.37
    model[5].eval()
    before, modes, numbers = state(model), [m.training for m in model.modules()], torch.get_rng_state()
    result = recalibrate(model, loader(images()))
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), numbers)
    for network in (model, result):
        assert [m.training for m in network.modules()] == modes
        assert network[1].momentum == 0.37
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), result.parameters(), strict=True))
    assert not torch.equal(result[1].running_mean, model[1].running_mean)


def test_labels_and_old_statistics_do_not_matter() -> None:
    model = convolutional()
    broken = copy.deepcopy(model)
    broken[1].running_mean.fill_(1e6)
    broken[5].running_var.fill_(1e6)
    broken[1].num_batches_tracked.fill_(100)
    pairs = list(loader(images(), shuffle=False))
    whole = recalibrate(model, pairs)
    assert same(state(whole), state(recalibrate(broken, [x for x, _ in pairs])))
    assert same(state(whole), state(recalibrate(model, [(x, None) for x, _ in pairs])))


def test_the_number_of_batches() -> None:
    model = convolutional()
    pairs = list(loader(images(), shuffle=False))
    assert same(state(recalibrate(model, pairs, batches=2)), state(recalibrate(model, pairs[:2])))
    assert int(recalibrate(model, pairs, batches=2)[1].num_batches_tracked) == 2


def test_a_shuffled_loader_repeats() -> None:
    model, data = convolutional(), loader(images(40))
    once = recalibrate(model, data, batches=2)
    torch.randn(3)
    assert same(state(once), state(recalibrate(model, data, batches=2)))
    assert not same(state(once), state(recalibrate(model, data, batches=2, seed=1)))


def test_layers_without_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(1))
    result = recalibrate(model, loader(images()))
    assert result[0].running_mean is None
    assert float(result[1].num_batches_tracked) == 3


def test_a_model_without_batch_norm_is_copied() -> None:
    model = nn.Linear(4, 3)
    result = recalibrate(model, [])
    assert result is not model
    assert same(state(result), state(model))


def test_bad_input_is_refused() -> None:
    model = convolutional()
    x = images()[0]
    with pytest.raises(InputError, match="batches=0"):
        recalibrate(model, [x], batches=0)
    with pytest.raises(TrainError, match="empty"):
        recalibrate(model, [])
    with pytest.raises(TrainError, match=r"recalibration batch 1, module `0`.*\[24, 2, 6, 6\]"):
        recalibrate(model, [x, x.expand(-1, 2, -1, -1)])
    with pytest.raises(TrainError, match=r"not finite.*`1.running_mean`.*6 of 6"):
        recalibrate(model, [x * float("inf")])
