"""The benchmark of Scalpel: its batches, what it adds up, and what it says without data."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sec
from benchmarks import by_cell, lenet, scalpel


def cell(kind: str, pruned: float) -> dict[str, Any]:
    test = {"test": {"dense": 0.98, "pruned": pruned}}
    if kind == "simd":
        return {**test, "removed": {"0.04": 0.6, "0.08": 0.9}, "storage": {"simd_share": 0.11}}
    return {**test, "widths": [[200, 80], [150, 60]], "params_left": 0.5}


CELLS = {
    "lenet_300_100-simd-0": cell("simd", 0.979), "lenet_300_100-simd-1": cell("simd", 0.981),
    "lenet_5-nodes-0": cell("nodes", 0.982),
}  # fmt: skip


def test_a_pass_has_each_image_at_most_once_in_an_order_of_its_own():
    batches = lenet.Batches(torch.arange(10.0).reshape(10, 1), torch.arange(10), 3)
    torch.manual_seed(0)
    first = [labels.tolist() for _, labels in batches]
    second = [labels.tolist() for _, labels in batches]
    assert len(first) == len(batches) == 3
    assert len({label for batch in first for label in batch}) == 9
    assert first != second
    assert all(images.flatten().tolist() == labels.tolist() for images, labels in batches)


def test_summary_by_value():
    found = scalpel.summary(CELLS)
    assert found["lenet_300_100-simd"]["points_lost"] == 0.0
    assert found["lenet_300_100-simd"]["points_lost_spread"] == 0.14
    assert found["lenet_300_100-simd"]["removed"] == {"0.04": 0.6, "0.08": 0.9}
    assert found["lenet_5-nodes"]["widths"] == [[150, 60]]
    assert found["lenet_5-nodes"]["points_lost"] == -0.2
    assert found["lenet_5-nodes"]["points_lost_spread"] is None


def test_the_table_has_a_row_for_each_kind():
    assert scalpel.table(CELLS).row_count == 2


def test_storage_counts_groups_and_single_weights():
    model = nn.Sequential(nn.Linear(16, 4, bias=False))
    masks = sec.masks(model, 0.5, pattern="simd(8)")
    sec.sparsify(model, masks).detach()
    found = scalpel.storage(model, masks, 8)
    assert found["dense_bytes"] == 4 * 16 * 4
    assert found["simd_bytes"] == 4 * (8 * 4 + 4) + 5 * 4
    assert found["csr_bytes"] == 32 * 8 + 5 * 4
    assert found["simd_share"] == round(found["simd_bytes"] / 256, 4)


def test_a_cell_depends_on_its_own_settings_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    names = ["lenet_300_100-simd-0", "lenet_300_100-nodes-0", "lenet_5-nodes-0"]
    stored = {name: {"settings": scalpel.used(name)} for name in names}
    monkeypatch.setattr(by_cell, "ROOT", tmp_path)
    assert scalpel.STUDY.stored() == {}
    scalpel.STUDY.out.parent.mkdir(parents=True)
    scalpel.STUDY.out.write_text(json.dumps({"cells": {**stored, "simd-0": {"settings": {}}}}))
    assert list(scalpel.STUDY.stored()) == names
    monkeypatch.setitem(scalpel.SETTINGS["lenet_300_100"], "nodes", {})
    assert list(scalpel.STUDY.stored()) == [names[0], names[2]]


class Few(scalpel.Bench):
    """LeNet-5 and a few random images instead of MNIST, an epoch of everything."""

    def __init__(self, work: Path):
        torch.manual_seed(0)
        images, labels = torch.rand(60, 1, 28, 28), torch.randint(10, (60,))
        self.work, self.network, self.example = work, "lenet_5", images[:1]
        self.settings = copy.deepcopy(scalpel.SETTINGS["lenet_5"])
        for part in (self.settings["simd"]["retrain"], *(self.settings["nodes"][n] for n in ("stage", "finetune"))):
            part["epochs"] = 1
        self.settings["dense"]["epochs"], self.settings["nodes"]["strengths"] = 1, [0.005, 0.006]
        self.train = lenet.Batches(images, labels, 20)
        self.validate = self.test = sec.accuracy([(images, labels)])


def test_both_methods_work_on_lenet_5(tmp_path: Path):
    bench = Few(tmp_path)
    found = bench.run("simd", 0)
    assert list(found["removed"]) == ["0.03", "0.035", "0.04", "0.05", "0.06"]
    assert 0 < found["removed"]["0.03"] <= found["removed"]["0.06"] < 1
    found = bench.run("nodes", 0)
    assert all(after <= before for after, before in zip(found["widths"][-1], (20, 50, 500), strict=True))
    assert sum(found["widths"][-1]) < 570
    assert max(worst or 0.0 for worst in found["worst_of_the_cuts"]) < 1e-5


def test_cells_that_are_missing_are_run_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ran: list[str] = []

    def run(data: Path, work: Path, name: str) -> dict[str, Any]:
        ran.append(name)
        return cell(name.split("-")[1], 0.979)

    monkeypatch.setattr(by_cell, "ROOT", tmp_path)
    (tmp_path / "mnist").mkdir()
    study = dataclasses.replace(scalpel.STUDY, run=run)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["scalpel", "--data", str(tmp_path), "--seeds", "1"])
        assert study.main() == 0
        assert ran == scalpel.cells([1])
    assert json.loads(study.out.read_text())["summary"] == scalpel.summary(study.stored())


def test_without_data_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["scalpel", "--data", str(tmp_path)])
    assert scalpel.STUDY.main() == 2
    assert "There is no mnist" in capsys.readouterr().out
