"""The MNIST benchmark: the distorted pool, the loop, dead units, files, sums and settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateurs as sec
from benchmarks import mnist, mnist_cells, mnist_compress, mnist_data, mnist_nets, mnist_train
from benchmarks.mnist_compress import Sharing, Sparse
from benchmarks.mnist_train import Feed, Training


def digits(count: int) -> torch.Tensor:
    """Bytes [count, 28, 28] with a dark border and dark patches, as digits have: many ties in pooling."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8)
    images[:, :6], images[:, -5:], images[:, :, :8] = 0, 0, 0
    return images


def thinned(model: nn.Module, share: float) -> nn.Module:
    """Most weights set to zero, so that some units are dead."""
    torch.manual_seed(1)
    with torch.no_grad():
        for item in model.parameters():
            if item.dim() > 1:
                item.mul_(torch.rand_like(item) < share)
    return model


@pytest.mark.parametrize("name", mnist_nets.WIDTHS)
def test_networks_have_the_published_numbers_of_weights(name: str):
    model = mnist_nets.build(name)
    assert mnist_nets.weight_count(model) == {"lenet_300_100": 266_200, "lenet_5": 430_500}[name]
    assert mnist_nets.widths_of(model.state_dict()) == mnist_nets.WIDTHS[name]


def test_the_pool_begins_with_the_images_and_distorts_each_copy_in_its_own_way():
    images = digits(12)
    pool = mnist_data.pool(images, 3, seed=4)
    assert pool.dtype == torch.uint8 and torch.equal(pool[0], images)
    assert torch.equal(pool, mnist_data.pool(images, 3, seed=4))
    assert not torch.equal(pool, mnist_data.pool(images, 3, seed=5))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert all(not torch.equal(*pair) for pair in zip(pool[one], pool[other], strict=True))


def test_a_distorted_image_is_still_the_same_picture():
    blob = torch.zeros(50, 28, 28, dtype=torch.uint8)
    blob[:, 12:16, 10:18] = 255
    torch.manual_seed(0)
    moved = mnist_data.distorted(blob).float()
    rows, columns = ((torch.arange(28.0) * moved.sum(axis)).sum(1) / moved.sum((1, 2)) for axis in (2, 1))
    assert (rows - 13.5).abs().max() < 3 and (columns - 13.5).abs().max() < 3
    ink = moved.sum((1, 2)) / blob.float().sum((1, 2))
    assert 0.6 < float(ink.min()) and float(ink.max()) < 1.6


def test_an_epoch_has_every_image_once_with_what_the_teacher_says_of_that_copy():
    pool = torch.arange(60, dtype=torch.uint8).view(3, 20, 1, 1).expand(3, 20, 28, 28)
    teacher = torch.arange(60.0).view(3, 20, 1).expand(3, 20, 10)
    feed = Feed(pool, torch.arange(20), teacher)
    torch.manual_seed(0)
    batches = list(feed.epoch(8))
    assert len(batches) == feed.steps(8) == 3
    assert sorted(torch.cat([labels for _, labels, _ in batches]).tolist()) == list(range(20))
    copies = set()
    for images, labels, said in batches:
        torch.testing.assert_close(images[:, 0, 0] * 255, said[:, 0])
        assert torch.equal(said[:, 0].long() % 20, labels)
        copies |= set((said[:, 0].long() // 20).tolist())
    assert copies == {0, 1, 2}


def test_the_rate_rises_to_one_and_falls_to_zero():
    assert mnist_train.rate(0.0) == 0.0
    assert mnist_train.rate(mnist_train.WARM) == 1.0
    assert mnist_train.rate((1 + mnist_train.WARM) / 2) == pytest.approx(0.5)
    assert mnist_train.rate(1.0) == pytest.approx(0.0)


def test_without_alpha_the_teacher_is_not_heard():
    answer, labels = torch.randn(6, 10), torch.arange(6)
    plain = Training(1, 1e-3)
    own = torch.nn.functional.cross_entropy(answer, labels)
    assert torch.equal(mnist_train.loss_of(answer, labels, torch.randn(6, 10), plain), own)
    assert float(mnist_train.loss_of(answer, labels, answer, Training(1, 1e-3, alpha=1.0))) == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.parametrize("model", [mnist_nets.LeNet300(40, 20), mnist_nets.LeNet5(6, 9, 30)])
def test_cleaning_takes_dead_units_away_and_leaves_the_function(model: nn.Module):
    thinned(model, 0.05)
    before = mnist_nets.widths_of(model.state_dict())
    small = mnist_nets.cleaned(model)
    after = mnist_nets.widths_of(small.state_dict())
    assert all(less <= more for less, more in zip(after, before, strict=True)) and after != before
    images = digits(20).unsqueeze(1) / 255
    torch.testing.assert_close(small(images), model(images), rtol=1e-5, atol=1e-6)
    assert all(bool(alive.all()) for alive in mnist_nets.alive(small))
    assert mnist.count_nonzero(small) <= mnist.count_nonzero(model)


def test_narrowing_keeps_the_units_of_the_largest_weights():
    torch.manual_seed(0)
    model = mnist_nets.LeNet5(4, 6, 12)
    with torch.no_grad():
        model.conv1.weight[1:3] *= 100
    small = mnist_nets.narrowed(model, (2, 3, 5))
    assert mnist_nets.widths_of(small.state_dict()) == (2, 3, 5)
    assert torch.equal(small.conv1.weight, model.conv1.weight[1:3])


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_exactly_the_wanted_number_of_weights_is_left_and_shared_and_in_the_file(power: float, tmp_path: Path):
    torch.manual_seed(0)
    model = mnist_nets.LeNet300(30, 20)
    images = digits(64)
    feed = Feed(images.unsqueeze(0), torch.arange(64) % 10)
    wanted = Sparse(Training(6, 1e-3, batch=16), every=2, power=power)
    mnist_compress.sparsified(model, 1000, wanted, feed, seed=0)
    assert mnist.count_nonzero(model) == 1000
    again = mnist_compress.sparsified(model, 400, wanted, feed, seed=0)
    assert mnist.count_nonzero(again) == 400

    clean = mnist_nets.cleaned(again)
    small, coded = mnist_compress.shared(clean, Sharing(3, 2, Training(1, 1e-3, batch=16)), feed, seed=0)
    assert set(coded) == set(dict(small.named_parameters()))
    for name, item in small.named_parameters():
        assert item[item != 0].unique().numel() <= (8 if item.dim() > 1 else 4), name
    ledger = sec.pack(small, tmp_path / "small.sec", coded=coded)
    widths = mnist_nets.widths_of(small.state_dict())
    read = sec.unpack(tmp_path / "small.sec", lambda: mnist_nets.build("lenet_300_100", widths))
    assert isinstance(read, nn.Module)
    assert torch.equal(read(images.unsqueeze(1) / 255), small(images.unsqueeze(1) / 255))
    assert ledger.bytes == (tmp_path / "small.sec").stat().st_size
    assert mnist.count_nonzero(read) == mnist.count_nonzero(clean)


def cell(error: float, one_in: float = 22.1, times: float = 61.0) -> dict[str, object]:
    return {"epochs": 9, "error": 1.0, "one_in": one_in, "file_error": error, "times": times}


def test_summary_by_value():
    names = [f"lenet_300_100-22-augmented-{seed}" for seed in range(3)]
    found = {"lenet_300_100-dense-augmented-0": {"error": 0.9, "epochs": 3}}
    found |= {name: cell(value) for name, value in zip(names, (1.1, 1.15, 1.2), strict=True)}
    (row,) = mnist.summary(found).values()
    assert row["met"] and row["error"] == 1.15 and row["spread"] == 0.05
    assert row["dense_error"] == 0.9 and row["seeds"] == 3
    for worse in (cell(1.3), cell(1.1, one_in=21.9), cell(1.1, times=59.0)):
        (row,) = mnist.summary({**found, names[0]: worse}).values()
        assert not row["met"]
    del found[names[0]]
    (row,) = mnist.summary(found).values()
    assert not row["met"], "two seeds are not three"


def test_what_is_written_sums_up_the_cells_of_now(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(mnist, "OUT", tmp_path / "results" / "mnist.json")
    cells = {"lenet_300_100-22-augmented-0": cell(1.1)}
    mnist._write({"summary": {}, "notes": ["old"], "cells": cells, "validation": {"kept": "too"}})
    found = json.loads(mnist.OUT.read_text())
    assert found["summary"] == mnist.summary(cells)
    assert found["notes"] == mnist.NOTES and found["validation"] == {"kept": "too"} and found["cells"] == cells


def test_cells_are_made_in_order_and_carry_the_settings_of_what_they_begin_with():
    names = mnist.cells([0, 1])
    assert len(names) == len(set(names))
    for name in names:
        net, keep, column, seed = mnist.parse(name)
        assert f"{net}-{keep or 'dense'}-{column}-{seed}" == name
        settings = mnist_cells.settings(net, column, keep)
        if keep is not None:
            start = mnist_cells.stage(net, column, keep).start
            assert settings["before"] == mnist_cells.settings(net, column, start)
            assert mnist_cells.epochs(net, column, keep) > mnist_cells.epochs(net, column, start)
            assert names.index(name) > names.index(f"{net}-{start or 'dense'}-{column}-{seed}")
            assert ("teachers" in settings) == (column == "augmented")


def test_says_where_the_data_is_missing(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mnist", "--data", str(tmp_path)])
    assert mnist.main() == 2
    assert str(tmp_path) in capsys.readouterr().out
