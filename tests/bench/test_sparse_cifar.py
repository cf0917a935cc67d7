"""The benchmark of zeros in ResNet-56: its images, its allocation, its training."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sec
from benchmarks import cifar, sparse_cifar, sparse_cifar_cells
from benchmarks.sparse_cifar_cells import Bench, Images, Late, moved


def pool(count: int = 40) -> Images:
    """Random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Images(images, torch.randint(0, 10, (count,), generator=generator), 4)


def small() -> nn.Module:
    """A tiny network whose statistics are those of its images."""
    torch.manual_seed(0)
    return sec.recalibrate(cifar.ResNet(8), pool().calibration(40, 0)).eval()


def test_images_are_moved_and_mirrored_on_black() -> None:
    images = pool(200).images
    torch.manual_seed(0)
    found, seen = moved(images), set()
    for image, other in zip(images, found, strict=True):
        plain = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
        plain[0, :, 4:36, 4:36], plain[1, :, 4:36, 4:36] = image, image.flip(2)
        hits = {
            (side, down, right)
            for side in range(2) for down in range(9) for right in range(9)
            if torch.equal(plain[side, :, down : down + 32, right : right + 32], other)
        }  # fmt: skip
        assert len(hits) == 1
        seen |= hits
    for place, count in enumerate((2, 9, 9)):
        assert len({hit[place] for hit in seen}) == count, "every move and mirror is drawn"


def test_batches_hold_every_image_once_with_its_label() -> None:
    mine = pool()
    mine.labels = torch.arange(40)
    torch.manual_seed(0)
    labels = [batch for _, batch in mine]
    assert len(labels) == len(mine) == 10
    assert sorted(torch.cat(labels).tolist()) == list(range(40)) != torch.cat(labels).tolist()
    (still,) = mine.calibration(8, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:8]
    assert torch.equal(still, cifar.normalised(mine.images[order]))


def bench(work: Path, until: float = math.inf) -> Bench:
    """The benchmark's machinery on a tiny network."""
    made = Bench.__new__(Bench)
    made.work, made.until, made.pool = work, until, pool()
    made.settings = {
        "train": {"images": 40, "batch": 8, "epochs": 6, "optimizer": "adam", "lr": 3e-3, "distil": {"alpha": 1.0}},
        "effect": {"images": 8, "pattern": "rows(4)", "percent": 75},
        "curve": {"images": 8, "rounds": 2, "samples_per_image": 8, "ridge": 1e-3, "percents": [50, 90]},
    }
    made.model = small()
    return made


@pytest.mark.medium
def test_training_holds_zeros_and_comes_nearer(tmp_path: Path) -> None:
    start = sec.sparsify_once(small(), pool().calibration(8, 0), 0.95, only=["*conv*"], samples_per_image=8)
    before, mine = copy.deepcopy(start.model.state_dict()), bench(tmp_path)
    found = mine.train(start.model, tmp_path / "run", 1)
    for name, mask in start.masks.items():
        weight = found.get_parameter(name)
        assert not bool(weight[~mask].any())
        assert not torch.equal(weight, before[name])
    for name, tensor in start.model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"the start was changed in {name}"
        assert "running" not in name or not torch.equal(found.state_dict()[name], tensor), name
    images = mine.pool.calibration(40, 0)[0]
    with torch.no_grad():
        far, near = ((model(images) - mine.model(images)).square().mean() for model in (start.model, found))
    assert float(near) < float(far)


def test_the_allocation_keeps_as_many_weights_and_errs_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = bench(tmp_path)
    names = ["layer1.0.conv1.weight", "layer3.0.conv2.weight"]
    curves = {names[0]: {0: 0.0, 50: 0.4, 90: 0.9}, names[1]: {0: 0.0, 50: 0.001, 90: 0.1}}
    monkeypatch.setattr(mine, "curves", lambda pattern: curves)
    monkeypatch.setattr(mine, "effects", lambda: {names[0]: 2.0, names[1]: 2.0})
    found = mine.allocated("weight", 80)
    sizes = {name: mine.model.get_parameter(name).numel() for name in names}
    kept = sum(sizes[name] * (1 - found[name]) for name in names)
    assert 0.195 <= kept / sum(sizes.values()) <= 0.2 + 1e-6
    assert found[names[0]] < 0.4 < 0.7 < found[names[1]]


@pytest.mark.medium
def test_curves_rise_and_are_computed_once(tmp_path: Path) -> None:
    mine = bench(tmp_path)
    found = mine.curves("rows(4)")
    assert all(points[0] == 0 < points[50] < points[90] <= 1 for points in found.values())
    mine.until = 0.0
    assert mine.curves("rows(4)") == found
    with pytest.raises(Late):
        mine.curves("weight")


@pytest.mark.medium
def test_effects_are_those_of_one_layer_at_a_time(tmp_path: Path) -> None:
    mine = bench(tmp_path)
    before = copy.deepcopy(mine.model.state_dict())
    found = mine.effects()
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.model.state_dict().items())
    name = "layer2.0.conv1.weight"
    fit = {"inputs": "original", "pattern": "rows(4)", "only": ["*conv*"], "rounds": 2, "samples_per_image": 8}
    pruned = sec.sparsify_once(mine.model, mine.pool.calibration(8, 0, 64), 0.75, **fit)
    alone = copy.deepcopy(mine.model)
    alone.layer2[0].conv1, alone.layer2[0].bn1 = pruned.model.layer2[0].conv1, pruned.model.layer2[0].bn1
    with torch.no_grad():
        one, two = (net(mine.pool.calibration(8, 1)[0]).log_softmax(1) for net in (mine.model, alone))
    divergence = float((one.exp() * (one - two)).sum(1).mean())
    assert found[name] == pytest.approx(divergence / pruned.errors[name], rel=1e-3)


def cell(sparse: float, packed: float, smaller: float) -> dict[str, Any]:
    return {
        "sparsity": 0.8,
        "test": {"original": 0.926, "sparse": sparse},
        "packed": {"test": packed, "times_smaller": smaller},
    }


def test_a_bar_is_met_by_the_mean_of_three_seeds() -> None:
    rows = [cell(0.92, 0.915, 20.0), cell(0.922, 0.92, 16.0), cell(0.921, 0.92, 15.0)]
    found = sparse_cifar.summary({f"train-rows(4)-{seed}": row for seed, row in enumerate(rows)})["rows(4)"]
    assert found["points_lost"] == pytest.approx(0.5)
    assert found["met"]
    assert found["met_packed"]
    two = sparse_cifar.summary({f"train-rows(4)-{seed}": row for seed, row in enumerate(rows[:2])})["rows(4)"]
    assert not two["met"]
    rows[0] = cell(0.91, 0.915, 14.9)
    worse = sparse_cifar.summary({f"train-rows(4)-{seed}": row for seed, row in enumerate(rows)})["rows(4)"]
    assert not worse["met"]
    assert not worse["met_packed"]


def test_cells_and_the_settings_that_count_for_them() -> None:
    names = sparse_cifar.wanted_cells([], [0, 1, 2])
    assert len(names) == len(set(names)) == 10
    assert sparse_cifar.wanted_cells(["train-rows"], [0, 2]) == ["train-rows(4)-0", "train-rows(4)-2"]
    other = {**sparse_cifar_cells.SETTINGS, "pack": {"bits": 4, "images": 256}}
    assert sparse_cifar_cells.used("once-weight-60", other) == sparse_cifar_cells.used(
        "once-weight-60", sparse_cifar_cells.SETTINGS
    )
    assert sparse_cifar_cells.used("train-weight-0", other) != sparse_cifar_cells.used(
        "train-weight-0", sparse_cifar_cells.SETTINGS
    )


def test_without_data_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sparse_cifar", "--data", str(tmp_path)])
    assert sparse_cifar.main() == 2
    assert "no CIFAR-10" in capsys.readouterr().out
