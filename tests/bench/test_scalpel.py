"""The benchmark of Scalpel: its batches, what it adds up, and what it says without data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sec
from benchmarks import lenet, scalpel


def cell(kind: str, pruned: float) -> dict[str, Any]:
    test = {"test": {"dense": 0.98, "pruned": pruned}}
    if kind == "simd":
        return {**test, "removed": {"0.04": 0.6, "0.08": 0.9}, "storage": {"simd_share": 0.11}}
    return {**test, "widths": [[200, 80], [150, 60]], "params_left": 0.5}


CELLS = {"simd-0": cell("simd", 0.979), "simd-1": cell("simd", 0.981), "nodes-0": cell("nodes", 0.982)}


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
    assert found["simd"]["points_lost"] == 0.0
    assert found["simd"]["points_lost_spread"] == 0.14
    assert found["simd"]["removed"] == {"0.04": 0.6, "0.08": 0.9}
    assert found["nodes"]["widths"] == [[150, 60]]
    assert found["nodes"]["points_lost"] == -0.2
    assert found["nodes"]["points_lost_spread"] is None


def test_the_table_has_a_row_for_each_kind():
    (table,) = scalpel.tables(CELLS)
    assert table.row_count == 2


def test_storage_counts_groups_and_single_weights():
    model = nn.Sequential(nn.Linear(16, 4, bias=False))
    masks = sec.masks(model, 0.5, pattern="simd(8)")
    sec.sparsify(model, masks).detach()
    found = scalpel.storage(model, masks, 8)
    assert found["dense_bytes"] == 4 * 16 * 4
    assert found["simd_bytes"] == 4 * (8 * 4 + 4) + 5 * 4
    assert found["csr_bytes"] == 32 * 8 + 5 * 4
    assert found["simd_share"] == round(found["simd_bytes"] / 256, 4)


def test_a_cell_depends_on_its_own_settings_only():
    changed = {**scalpel.SETTINGS, "nodes": {}}
    assert scalpel.used("simd-0", changed) == scalpel.used("simd-0", scalpel.SETTINGS)
    assert scalpel.used("nodes-0", changed) != scalpel.used("nodes-0", scalpel.SETTINGS)


def test_without_data_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["scalpel", "--data", str(tmp_path)])
    assert scalpel.main() == 2
    assert "There is no MNIST" in capsys.readouterr().out
