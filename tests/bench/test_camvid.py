"""The CamVid benchmark: reading, the network, what is judged and summed up, the picture."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sec
from benchmarks import camvid, camvid_data, camvid_net, camvid_picture


def archive(folder: Path) -> None:
    """A CamVid of two scenes a split: road below, the left edge unlabelled."""
    pillow = pytest.importorskip("PIL.Image")
    (folder / "camvid").mkdir(parents=True)
    generator = np.random.default_rng(0)
    classes = np.zeros((168, 224), np.uint8)
    classes[84:], classes[:, :56] = camvid_data.ROAD, camvid_data.UNLABELLED
    with zipfile.ZipFile(folder / camvid_data.ARCHIVE, "w") as file:
        for split in ("train", "val", "test"):
            for name in ("b", "a"):
                pixels = generator.integers(0, 256, (168, 224, 3), np.uint8)
                pixels[:, :, 0] = ord(name)
                for place, kind, array in ((split, "jpg", pixels), (f"{split}annot", "png", classes)):
                    stream = io.BytesIO()
                    pillow.fromarray(array).save(stream, {"jpg": "JPEG", "png": "PNG"}[kind])
                    file.writestr(f"{place}/{name}.{kind}", stream.getvalue())


def test_reads_images_with_their_labels_in_the_order_of_names(tmp_path: Path):
    archive(tmp_path)
    images, classes = camvid_data.read(tmp_path, "val")
    assert images.shape == (2, 3, 96, 128) and images.dtype == torch.uint8
    assert (images[:, 0].float().mean((1, 2)) - torch.tensor([97.0, 98.0])).abs().max() < 3
    target = camvid_data.target_of(classes)[:, 0]
    assert (target[:, :, :32] == camvid_data.IGNORED).all()
    assert (target[:, :48, 32:] == 0).all() and (target[:, 48:, 32:] == 1).all()


def test_images_are_mirrored_with_their_labels():
    bright = torch.full((40, 3, 4, 8), 10, dtype=torch.uint8)
    bright[..., :2] = 200
    classes = torch.zeros(40, 4, 8, dtype=torch.uint8)
    classes[..., :2] = camvid_data.ROAD
    torch.manual_seed(0)
    scenes = camvid_data.Scenes(bright, classes, 16)
    batches = list(scenes)
    assert len(batches) == len(scenes) == 2
    for images, target in batches:
        assert torch.equal(images[:, :1] > -0.5, target == 1)
    first = torch.cat([target[:, 0, 0, 0] for _, target in batches])
    assert 0 < float(first.mean()) < 1, "some mirrored, some not"
    assert bool((bright[..., :2] == 200).all()), "the images themselves stay"


def test_the_network_answers_each_pixel_and_has_weights_of_all_three_kinds():
    model = camvid_net.build(0)
    assert model(torch.randn(2, 3, 96, 128)).shape == (2, 1, 96, 128)
    kinds = [(type(module).__name__, module.groups > 1) for module in model.modules() if hasattr(module, "groups")]
    assert {("Conv2d", False), ("Conv2d", True), ("ConvTranspose2d", False)} == set(kinds)
    masked = {id(item) for item in (model.get_parameter(name) for name in sec.sparsity.layer_weights(model))}
    assert masked == {id(module.weight) for module in model.modules() if hasattr(module, "groups")}
    other = camvid_net.build(0)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_the_loss_leaves_unlabelled_pixels_out():
    outputs = torch.randn(2, 1, 4, 4, requires_grad=True)
    target = torch.randint(-1, 2, (2, 1, 4, 4)).float()
    known = target >= 0
    expected = nn.functional.binary_cross_entropy_with_logits(outputs[known], target[known])
    found = camvid_net.loss(outputs, target)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert outputs.grad is not None and bool((outputs.grad[~known] == 0).all())


class Says(nn.Module):
    """Road in the lower half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer = -torch.ones(len(x), 1, *x.shape[2:])
        answer[:, :, x.shape[2] // 2 :] = 1
        return answer


def test_accuracy_and_iou_by_value():
    classes = torch.zeros(20, 4, 4, dtype=torch.uint8)
    classes[:, 3] = camvid_data.ROAD
    classes[:, :, 0] = camvid_data.UNLABELLED
    images = torch.zeros(20, 3, 4, 4, dtype=torch.uint8)
    assert camvid.judged(Says(), images, classes) == {"accuracy": 0.75, "iou": 0.5}


def test_zeros_in_no_order_spare_less_than_their_share():
    assert camvid.normal_rate(0.0) == 0
    assert camvid.normal_rate(0.4, 100_000) == pytest.approx(1 / 3, abs=0.01)
    assert camvid.normal_rate(0.9, 100_000) == pytest.approx(1 - 1 / 7.2, abs=0.01)


def cell(lost: float, rate: float = 0.37, sparsity: float = 0.4) -> dict[str, object]:
    sizes = {"weights_rate": 0.375, "float_bytes": 400, "gzip_bytes": 250, "packed_bytes": 200}
    test = {"accuracy": 0.95 - lost, "iou": 0.85 - 2 * lost}
    return {"test": test, "rate": rate, "sparsity": sparsity, **sizes}


DENSE = {f"dense-{seed}": cell(0.0, 0.0, 0.0) for seed in range(3)}


def test_summary_by_value():
    cells = DENSE | {f"layer-{seed}": cell(lost) for seed, lost in enumerate((0.002, 0.004, 0.006))}
    found = camvid.summary(cells)
    assert list(found) == ["dense", "layer"] and "met" not in found["dense"]
    layer = found["layer"]
    assert layer["accuracy"] == 0.946 and layer["accuracy_points_lost"] == 0.4
    assert layer["accuracy_points_lost_spread"] == pytest.approx(0.2)
    assert layer["iou_points_lost"] == 0.8 and layer["gzip_bytes"] == 250 and layer["weights_rate"] == 0.375
    assert layer["met"] == {"sparsity": True, "accuracy": True, "rate": True}
    assert camvid.summary({}) == {}
    assert camvid.summary({"layer-0": cell(0.0)}) == {}, "nothing to compare it with"


@pytest.mark.parametrize(
    ("other", "missed"),
    [(cell(0.03), "accuracy"), (cell(0.0, rate=0.25), "rate"), (cell(0.0, sparsity=0.39), "sparsity")],
)
def test_a_bar_is_missed_by_itself(other: dict[str, object], missed: str):
    cells = DENSE | {"layer-0": cell(0.004), "layer-1": cell(0.006)}
    assert not any(camvid.summary(cells)["layer"]["met"].values()), "two seeds are not three"
    met = camvid.summary(cells | {"layer-2": other})["layer"]["met"]
    assert [name for name, each in met.items() if not each] == [missed]


def test_cells_are_named_by_way_and_seed():
    names = camvid._cells([0, 1])
    assert names == ["dense-0", "layer-0", "dense-1", "layer-1", "global-0", "fours-0", "global-1", "fours-1"]
    assert [camvid.parse(name) for name in names[:2]] == [("dense", 0), ("layer", 0)]
    for wrong in ("other-0", "layer", "layer-x"):
        with pytest.raises(SystemExit, match=wrong):
            camvid.parse(wrong)


def test_pictures_colour_what_is_right_wrong_and_missed(tmp_path: Path):
    pillow = pytest.importorskip("PIL.Image")
    classes = torch.zeros(camvid_data.SIZE, dtype=torch.uint8)
    classes[90:], classes[40:50] = camvid_data.ROAD, camvid_data.ROAD
    classes[:, 0] = camvid_data.UNLABELLED
    image = torch.zeros(3, *camvid_data.SIZE, dtype=torch.uint8)
    plain, label, answer = camvid_picture.panels(image, classes, [Says()])
    half = {name: [value // 2 for value in colour] for name, colour in camvid_picture.COLOURS.items()}
    assert torch.equal(plain, image)
    assert label[:, 95, 5].tolist() == label[:, 45, 5].tolist() == half["road"] and not label[:, 60].any()
    assert answer[:, 95, 5].tolist() == half["road"] and answer[:, 45, 5].tolist() == half["missed"]
    assert answer[:, 60, 5].tolist() == half["wrongly road"] and not answer[:, :, 0].any()
    path = tmp_path / "picture.png"
    camvid_picture.write(path, image.expand(3, -1, -1, -1), classes.expand(3, -1, -1), {"one": Says()}, (0, 2))
    with pillow.open(path) as found:
        assert found.size == (3 * 262 - 6, 16 + 2 * 198 - 6)


def test_cells_are_trained_judged_and_measured(tmp_path: Path, monkeypatch):
    archive(tmp_path)
    monkeypatch.setattr(camvid_net, "STAGES", ((8, 1, 1), (12, 1, 3), (16, 1, 3), (32, 1, 6)))
    then = {"epochs": 3, "lr": 1e-3}
    settings = {**camvid.SETTINGS, "batch": 2, "first": then, "then": then}
    settings["schedule"] = {"begin": 0, "end": 2, "every": 1}
    bench = camvid.Bench(tmp_path, tmp_path / "work", settings)
    found = {way: json.loads(json.dumps(bench.run(f"{way}-0"))) for way in camvid.WAYS}
    assert found["dense"]["sparsity"] == 0 and found["dense"]["rate"] == 0
    for way in ("layer", "global"):
        assert found[way]["sparsity"] == pytest.approx(0.4, abs=1e-2)
        assert 0.2 < found[way]["rate"] < found[way]["weights_rate"] < 0.4
        assert found[way]["packed_bytes"] == (bench.work / f"{way}-0.sec").stat().st_size
        assert 0 <= found[way]["test"]["iou"] <= found[way]["test"]["accuracy"] <= 1
    assert max(found["layer"]["zeros_by_layer"].values()) < 0.5 < max(found["global"]["zeros_by_layer"].values())


@pytest.mark.data
def test_the_real_splits(data: Path):
    if not (data / camvid_data.ARCHIVE).is_file():
        pytest.skip(f"no {camvid_data.ARCHIVE} in {data}")
    pytest.importorskip("PIL.Image")
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        images, classes = camvid_data.read(data, split)
        assert images.shape == (count, 3, 96, 128) and classes.shape == (count, 96, 128)
        assert int(classes.max()) == camvid_data.UNLABELLED
    target = camvid_data.target_of(classes)
    known = target != camvid_data.IGNORED
    assert float(target[known].mean()) == pytest.approx(0.268, abs=0.003)
    assert float((camvid_data.scaled(images).mean((0, 2, 3)).abs()).max()) < 0.5


def test_says_where_the_data_is_missing(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["camvid", "--data", str(tmp_path)])
    assert camvid.main() == 2
    assert str(tmp_path) in capsys.readouterr().out
