"""The benchmark of the loop: its random crops, what it adds up, and what it says without data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import tlt


def test_every_crop_is_the_image_shifted_and_perhaps_mirrored_on_black():
    torch.manual_seed(0)
    images = torch.randint(1, 256, (6, 3, 32, 32), dtype=torch.uint8)
    crops = tlt.Crops(images, torch.arange(6), size=6)
    seen = set()
    for image, moved in zip(images, crops._moved(torch.arange(6)), strict=True):
        wide = torch.zeros(3, 40, 40, dtype=torch.uint8)
        wide[:, 4:36, 4:36] = image
        found = [
            (down, right, mirrored)
            for down in range(9)
            for right in range(9)
            for mirrored in (False, True)
            if torch.equal(wide[:, down : down + 32, right : right + 32].flip([2] if mirrored else []), moved)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len({mirrored for _, _, mirrored in seen}) == 2
    assert len(seen) > 3


def test_a_pass_has_each_image_at_most_once_in_an_order_of_its_own():
    crops = tlt.Crops(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), size=3)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches = list(crops)
        assert len(batches) == len(crops) == 3
        assert all(pixels.shape == (3, 3, 32, 32) for pixels, _ in batches)
        orders.append(torch.cat([labels for _, labels in batches]).tolist())
        assert len(set(orders[-1])) == 9
    assert orders[0] == orders[1] != orders[2]


def cell(params: float, pruned: float) -> dict[str, object]:
    return {
        "params_left": params,
        "macs_left": 0.6,
        "validation": {"finished": 0.95},
        "test": {"original": 0.915, "pruned": pruned},
    }


def test_summary_by_value():
    cells = {"loop-0": cell(0.48, 0.905), "loop-1": cell(0.5, 0.915), "keep_any-0": cell(0.7, 0.9)}
    found = tlt.summary(cells)
    assert found["loop"]["points_lost"] == 0.5
    assert found["loop"]["points_lost_spread"] == pytest.approx(0.71)
    assert found["loop"]["params_left"] == 0.5
    assert not found["loop"]["met"], "two seeds are not three"
    assert found["keep_any"]["points_lost_spread"] is None
    assert tlt.summary({**cells, "loop-2": cell(0.4, 0.9)})["loop"]["met"]
    assert not tlt.summary({**cells, "loop-2": cell(0.51, 0.9)})["loop"]["met"], "too many parameters left"
    assert not tlt.summary({**cells, "loop-2": cell(0.4, 0.88)})["loop"]["met"], "more than a point lost"


def test_says_where_the_data_is_missing(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tlt", "--data", str(tmp_path)])
    assert tlt.main() == 2
    assert str(tmp_path) in capsys.readouterr().out


def test_a_cell_is_repeated_only_for_settings_that_it_uses():
    longer = {**tlt.SETTINGS, "finish": {"epochs": 99}}
    assert tlt.used("loop-0", longer) != tlt.used("loop-0", tlt.SETTINGS)
    assert tlt.used("keep_any-0", longer) == tlt.used("keep_any-0", tlt.SETTINGS)
    other = {**tlt.SETTINGS, "granularity": 8}
    assert tlt.used("keep_any-0", other) != tlt.used("keep_any-0", tlt.SETTINGS)
