"""The granularity study: its cells, its summary by hand, and one cell of each network on few images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import granularity, granularity_cells


def row(pattern: str, density: float, accuracy: float, seed: int = 0, **more: float) -> dict[str, Any]:
    return {
        "network": "lenet5", "pattern": pattern, "asked": density, "seed": seed, "density": density,
        "storage": 1.5 * density, "accuracy": accuracy, "accuracy_dense": 0.99, "magnitude_removed": 0.5, **more,
    }  # fmt: skip


def test_every_pattern_meets_every_density_and_seed_once() -> None:
    wanted = granularity_cells.cells()
    assert len(wanted) == len(set(wanted))
    for network, settings in granularity_cells.SETTINGS.items():
        for seed in settings["seeds"]:
            for density in settings["densities"]:
                free = {cell[1] for cell in wanted if cell[0] == network and cell[2:] == (density, seed)}
                assert free >= set(granularity_cells.PATTERNS) - {"2:4"}
            assert (network, "2:4", 0.5, seed) in wanted and (network, "weight", 0.5, seed) in wanted


def test_storage_at_equal_accuracy_lies_between_two_cells() -> None:
    rows = [row("weight", 0.4, 0.99), row("weight", 0.2, 0.95), row("weight", 0.1, 0.7)]
    density, storage = granularity.storage_at(rows, "lenet5", "weight", 0.02)  # type: ignore[misc]
    assert density == pytest.approx(0.3)
    assert storage == pytest.approx(0.45)
    assert granularity.storage_at(rows, "lenet5", "weight", 0.5) is None
    assert granularity.storage_at(rows, "lenet5", "vector", 0.02) is None


def test_the_baseline_is_the_whole_network_treated_alike() -> None:
    rows = [row("weight", 0.4, 0.95), row("weight", 0.2, 0.85)]
    assert granularity.baseline(rows, "lenet5") == 0.99
    rows.append(row("weight", 1.0, 0.96))
    assert granularity.baseline(rows, "lenet5") == 0.96
    density, _ = granularity.storage_at(rows, "lenet5", "weight", 0.06)  # type: ignore[misc]
    assert density == pytest.approx(0.3)


def test_the_order_is_judged_by_the_mean_over_seeds() -> None:
    falling = {"weight": 0.97, "vector": 0.95, "kernel": 0.94, "filter": 0.9}
    rows = [row(pattern, 0.2, accuracy, seed) for seed in (0, 1) for pattern, accuracy in falling.items()]
    (found,) = granularity.order(rows).values()
    assert found["falls"] and found["magnitude_rises"]
    rows.append(row("kernel", 0.2, 0.99, seed=2))
    (found,) = granularity.order(rows).values()
    assert found["accuracy"]["kernel"] == pytest.approx((0.94 + 0.94 + 0.99) / 3)
    assert not found["falls"]


def test_references_are_compared_at_equal_density() -> None:
    rows = [
        {**row("weight", 0.5, 0.9), "references": {"fine": 100, "merged": 60}},
        {**row("vector", 0.5, 0.8), "references": {"fine": 101, "merged": 48}},
        {**row("weight", 0.3, 0.7), "references": {"fine": 10, "merged": 6}},
    ]
    assert granularity.reference_ratios([*rows, row("vector", 0.3, 0.5)]) == {"0.5": 0.48}


def test_tables_and_figure_hold_the_rows() -> None:
    pytest.importorskip("plotly")
    rows = [row("weight", 0.4, 0.99), row("weight", 0.2, 0.95), row("filter", 0.2, 0.9)]
    data = granularity.plot_data(rows)
    assert data["lenet5"]["weight"]["accuracy"] == [0.95, 0.99]
    drawn = granularity.figure(data)
    assert [list(trace.y) for trace in drawn.data] == [[0.95, 0.99], [0.9]] * 2
    (table,) = granularity.tables(rows)
    assert table.row_count == len(granularity_cells.PATTERNS)


@pytest.mark.data
def test_a_cell_of_lenet(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {**granularity_cells.SETTINGS["lenet5"], "test_images": 500}
    few = {**few, **{name: {**few[name], "images": 256, "epochs": 1} for name in ("dense", "retrain")}}
    monkeypatch.setitem(granularity_cells.SETTINGS, "lenet5", few)
    study = granularity_cells.LeNetStudy(data, tmp_path)
    found = study.run("kernel", 0.2, 0)
    assert found["density"] == pytest.approx((4 * 25 + 200 * 25) / (500 + 25_000))
    assert found["storage"] == pytest.approx(found["density"] * (1 + 4 / (8 * 25)))
    assert 0 <= found["accuracy"] <= 1
    again = granularity_cells.LeNetStudy(data, tmp_path).run("kernel", 0.2, 0)  # the dense one from the disk
    assert again == found


@pytest.mark.data
def test_a_cell_of_resnet(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {**granularity_cells.SETTINGS["resnet20"], "test_images": 100, "reference_images": 1}
    monkeypatch.setitem(granularity_cells.SETTINGS, "resnet20", {**few, "recalibrate": {"batches": 1, "images": 100}})
    study = granularity_cells.ResNetStudy(data)
    before = {name: tensor.clone() for name, tensor in study.model.state_dict().items()}
    found = study.run("vector", 0.5, 0)
    assert found["density"] == pytest.approx(0.5, abs=1e-3)
    assert found["storage"] / found["density"] == pytest.approx(7 / 6)
    assert 0 < found["references"]["merged"] < found["references"]["fine"]
    assert found["accuracy_dense"] > found["accuracy"] > 0.3
    assert all(torch.equal(before[name], tensor) for name, tensor in study.model.state_dict().items())


@pytest.mark.medium
@pytest.mark.data
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_a_cell_of_resnet_that_is_retrained(density: float, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = granularity_cells.SETTINGS["resnet20_retrained"]
    few = {**few, "test_images": 100, "retrain": {**few["retrain"], "images": 64, "batch": 16}}
    monkeypatch.setitem(granularity_cells.SETTINGS, "resnet20_retrained", few)
    study = granularity_cells.ResNetStudy(data, "resnet20_retrained")
    found = study.run("weight", density, 0)
    assert found["density"] == pytest.approx(density, abs=1e-3)
    assert "references" not in found
    assert found["accuracy_dense"] > 0.85
    assert found == study.run("weight", density, 0)
    assert found["accuracy"] != study.run("weight", density, 1)["accuracy"] or density == 1.0
