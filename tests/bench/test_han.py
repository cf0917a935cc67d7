"""Han's pictures: sensitivities and what is said of them, the first layer, the page and its images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sec
from benchmarks import granularity_cells, han, han_figures, lenet, snapshot
from benchmarks.by_seed import Study

FALLING = {"conv1": (0.98, 0.5), "conv2": (0.985, 0.7), "fc1": (0.99, 0.975), "fc2": (0.99, 0.95)}


def table(rows: dict[str, tuple[float, ...]]) -> sec.Sensitivity:
    metric = {f"{layer}.weight": row for layer, row in rows.items()}
    return sec.Sensitivity("weight", (0.2, 0.4), 0.99, metric, dict.fromkeys(metric, 10), tolerance=0.02)


def verdicts(rows: dict[str, tuple[float, ...]]) -> list[bool]:
    found = han_figures.seen({"LeNet-300-100": table({"fc1": (0.99, 0.9)}), "LeNet-5": table(rows)})
    return [value for value in found.values() if isinstance(value, bool)]


def test_layers_fall_in_the_order_of_the_paper_or_not() -> None:
    early = {"conv1": (0.9, 0.5), "conv2": (0.9, 0.7), "fc1": (0.99, 0.975), "fc2": (0.99, 0.95)}
    found = han_figures.seen({"LeNet-300-100": table({"fc1": (0.99, 0.9)}), "LeNet-5": table(early)})
    assert found["bears"] == {
        "LeNet-300-100": {"fc1": 0.2}, "LeNet-5": {"conv1": 0.0, "conv2": 0.0, "fc1": 0.4, "fc2": 0.2},
    }  # fmt: skip
    assert found["mean_of_lenet_5"] == {"conv1": 0.7, "conv2": 0.8, "fc1": 0.9825, "fc2": 0.97}
    assert verdicts(early) == [True, True, False, True]  # conv2 bears as little as conv1
    assert verdicts(FALLING) == [False, True, False, True]  # convolutions bear as much as fc2
    assert verdicts({**FALLING, "fc2": (0.9, 0.3)}) == [False, False, False, False]


def moments() -> han_figures.Moments:
    """The first layer loses whatever reads the edge, and what is left doubles."""
    models = [lenet.lenet_300_100(0) for _ in range(3)]
    inner = torch.zeros(28, 28)
    inner[4:-4, 4:-4] = 1
    for model, scale in zip(models[1:], (1.0, 2.0), strict=True):
        model[0].weight.data = scale * model[0].weight.data * inner.flatten()
    return han_figures.Moments(*models, 1 - 400 / 784)


def test_numbers_of_the_first_layer() -> None:
    found = han_figures.survey(moments())
    assert found["kept_of_fc1"] == pytest.approx(400 / 784, abs=1e-4)
    assert found["kept_of_the_inner_20x20"] == 1.0 and found["kept_of_the_edge"] == 0.0
    assert found["dense"]["weights"] == 300 * 784
    assert found["pruned"] == pytest.approx(1 - 400 / 784, abs=1e-4)
    kept, after = found["after pruning"], found["after retraining"]
    assert kept["weights"] == after["weights"] == 300 * 400
    assert after["rms"] == pytest.approx(2 * kept["rms"], rel=1e-3)
    assert after["smallest"] == pytest.approx(2 * kept["smallest"], rel=1e-3) and kept["smallest"] > 0


def test_named_layers_are_the_same_function() -> None:
    model, images = lenet.lenet_300_100(1), torch.rand(3, 1, 28, 28)
    assert torch.equal(han_figures.named(model)(images), model(images.flatten(1)))


def stored() -> dict[str, Any]:
    curves = {name: [0.97] * 6 for name in han.CURVES}
    tables = {"LeNet-300-100": table({"fc1": (0.99, 0.9), "fc2": (0.9, 0.8)}), "LeNet-5": table(FALLING)}
    networks = {name: found.to_dict() for name, found in tables.items()}
    return {
        "summary": han.summary([{"seed": 0, "dense": {"L1": 0.97, "L2": 0.98}, "curves": curves}]),
        "sensitivity": json.loads(json.dumps({"networks": networks})),
    }  # fmt: skip


def test_every_picture_is_drawn_from_what_is_stored() -> None:
    pytest.importorskip("plotly")
    made = han_figures.pictures(stored()["sensitivity"], moments(), han.figure(stored()["summary"]))
    found = {picture.name: picture.figure for picture in made}
    assert list(found) == ["curves", "sensitivity-lenet300100", "sensitivity-lenet5", "fc1-pixels", "fc1-weights"]
    lines = {line.name: list(line.y) for line in found["sensitivity-lenet5"].data if line.type == "scatter"}
    assert lines == {layer: list(row) for layer, row in FALLING.items()}
    image = torch.as_tensor(found["fc1-pixels"].data[0].z)
    assert image[4:-4, 4:-4].unique().tolist() == [300] and image.sum() == 300 * 400
    assert [sum(bars.y) for bars in found["fc1-weights"].data] == [300 * 784, 300 * 400, 300 * 400]


def test_the_command_keeps_what_was_stored_and_writes_the_page(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("plotly")
    monkeypatch.setattr(Study, "out", property(lambda study: tmp_path / f"{study.name}.json"))
    monkeypatch.setattr(snapshot, "BROWSERS", ())
    (tmp_path / "mnist").mkdir()
    kept = {"settings": {}, "by_seed": [{"seed": 0}], "summary": {}, "environment": {"cpu": "one"}, "older": 1}
    (tmp_path / "han.json").write_text(json.dumps(kept))
    study = Study(
        "han", "Curves", {}, lambda data, work, seed: {"seed": seed}, lambda rows: {"seeds": len(rows)}, han.figure,
        lambda data, work, found: (
            {"newer": len(found["by_seed"])}, han_figures.pictures(stored()["sensitivity"], moments(), nn.Module)[1:3]
        ),
    )  # fmt: skip
    folder = tmp_path / "pictures"
    arguments = ["benchmark", "--data", str(tmp_path), "--seeds", "0", "--figures", str(folder)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert study.main() == 0
    assert json.loads((tmp_path / "han.json").read_text()) == {**kept, "newer": 1}
    page = (folder / "han.html").read_text()
    assert "What each layer of LeNet-5 bears" in page and "<script>" in page
    monkeypatch.setattr(sys, "argv", [*arguments[:4], "0", "1", *arguments[5:]])
    assert study.main() == 0
    again = json.loads((tmp_path / "han.json").read_text())
    assert again["older"] == 1 and again["newer"] == 2 and again["summary"] == {"seeds": 2}
    assert again["environment"]["torch"] == torch.__version__
    image = tmp_path / "curves.png"
    monkeypatch.setattr(sys, "argv", ["benchmark", "--figure", str(image)])
    (tmp_path / "han.json").write_text(json.dumps(stored()))
    assert study.main() == 2 and not image.exists()  # without a browser
    monkeypatch.setattr(sys, "argv", ["benchmark", "--figure", str(image.with_suffix(".html"))])
    assert study.main() == 0 and "L2, step by step" in image.with_suffix(".html").read_text()


@pytest.mark.skipif(snapshot.browser() is None, reason="there is no Chromium")
def test_an_image_is_as_large_as_its_figure(tmp_path: Path) -> None:
    image_of = pytest.importorskip("PIL.Image")
    pytest.importorskip("plotly")
    drawn = sec.figures.draw_sensitivity(table(FALLING))
    snapshot.write_png(drawn, tmp_path / "drawn.png", snapshot.browser() or "")
    with image_of.open(tmp_path / "drawn.png") as image:
        assert image.size == (drawn.layout.width, drawn.layout.height)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 8


@pytest.mark.data
def test_networks_are_scanned_on_images_that_they_were_not_trained_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {**granularity_cells.SETTINGS["lenet5"]["dense"], "images": 640, "epochs": 1}
    monkeypatch.setitem(granularity_cells.SETTINGS["lenet5"], "dense", few)
    monkeypatch.setitem(han_figures.SETTINGS, "fractions", [0.5, 0.95])
    monkeypatch.setattr(lenet, "VALIDATION", 200)
    model = lenet.lenet_300_100(0)
    found = han_figures.scan(data, tmp_path, model)
    rows = found["networks"]["LeNet-300-100"]
    assert list(rows["metric"]) == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert list(found["networks"]["LeNet-5"]["metric"]) == [f"{name}.weight" for name in FALLING]
    _, held, _ = lenet.splits(data)
    pruned = lenet.lenet_300_100(0)
    sec.sparsify(pruned, sec.masks(pruned, {"2.weight": 0.95}, only=["2.weight"])).detach()
    assert rows["baseline"] == pytest.approx(sec.accuracy(lenet.in_order(*held))(model))
    assert rows["metric"]["fc2.weight"][1] == pytest.approx(sec.accuracy(lenet.in_order(*held))(pruned))


def test_stored_sensitivities_are_those_of_the_settings() -> None:
    found = json.loads(han.STUDY.out.read_text())["sensitivity"]
    assert found["settings"] == json.loads(json.dumps(han.SCANNED))
    tables = {name: sec.Sensitivity.from_json(json.dumps(rows)) for name, rows in found["networks"].items()}
    assert found["seen"] == han_figures.seen(tables)
