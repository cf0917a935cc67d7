"""The real twin of the demo: the pretrained ResNet-56 is the published one, and half of it is still a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import secateurs as sec
from secateurs.train.evaluate import accuracy

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "resnet56_cifar10.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resnet56_cifar10", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.data
@pytest.mark.slow
def test_pretrained_accuracy_and_the_cut(example: ModuleType, data: Path, tmp_path: Path) -> None:
    images, labels = example.read(data / "cifar10" / example.TEST)
    test = list(zip(example.normalised(images).split(250), labels.split(250), strict=True))
    result = sec.prune(
        example.pretrained(data),
        example.normalised(images[:1]),
        budget=sec.Budget(macs=0.5),
        data=example.Batches(*example.read(data / "cifar10" / "data_batch_1.bin.xz")),
        evaluate=accuracy(test),
    )
    assert result.before.macs == 125_485_696
    assert result.met
    assert result.accuracy["original"] == pytest.approx(0.926, abs=1e-6)
    assert result.accuracy["recalibrated"] > 0.2
    folder = sec.save(result, tmp_path / "artifact")
    with torch.no_grad():
        assert torch.equal(sec.load(folder, build=example.ResNet56)(test[0][0]), result.model.eval()(test[0][0]))


def test_training_images_are_moved_and_mirrored_only(example: ModuleType) -> None:
    image = torch.arange(32 * 32).remainder(251).to(torch.uint8).view(1, 1, 32, 32).expand(64, 3, 32, 32) + 1
    torch.manual_seed(0)
    moved = example.Batches._moved(image)
    padded = torch.nn.functional.pad(image[0], (4, 4, 4, 4))
    views = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    known = {view.numpy().tobytes() for one in views for view in (one, one.flip(2))}
    assert all(item.numpy().tobytes() in known for item in moved)
    assert len({item.numpy().tobytes() for item in moved}) > 32
