"""The benchmark of the loop: its random crops, its pool of answers, what it adds up, and what it says without data."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cifar, tlt, tlt_loop, tlt_pool, tlt_table


def test_every_crop_is_the_image_shifted_and_perhaps_mirrored_on_black():
    torch.manual_seed(0)
    images = torch.randint(1, 256, (6, 3, 32, 32), dtype=torch.uint8)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    seen = set()
    for image, moved in zip(images, tlt_pool.moved(padded, torch.arange(6)), strict=True):
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
    crops = tlt_table.Crops(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), size=3)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches = list(crops)
        assert len(batches) == len(crops) == 3
        assert all(pixels.shape == (3, 3, 32, 32) for pixels, _ in batches)
        orders.append(torch.cat([labels for _, labels in batches]).tolist())
        assert len(set(orders[-1])) == 9
    assert orders[0] == orders[1] != orders[2]


@pytest.fixture(scope="module")
def network() -> cifar.ResNet:
    torch.manual_seed(1)
    return cifar.ResNet(8).eval()


def test_the_pool_brings_what_the_network_says_and_goes_on_after_a_kill(tmp_path: Path, network, monkeypatch):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(6)
    monkeypatch.setattr(tlt_pool, "CHUNK", 2)
    made = tlt_pool.pool(network, images, labels, 2, 3, tmp_path / "whole")
    front, back = tlt_pool.Front(network), tlt_pool.Back(network)
    seen = set()
    for features, (rows, logits) in made:
        assert features.shape == (3, 32, 16, 16)
        assert torch.allclose(back(features), logits, atol=1e-2), "features in half precision"
        seen |= set(rows.tolist())
    assert seen == set(range(6))
    crop = tlt_pool.moved(torch.nn.functional.pad(images, (4,) * 4), torch.arange(2), torch.Generator().manual_seed(3))
    answers = back(front(cifar.normalised(crop)))
    assert torch.allclose(torch.from_numpy(made.logits[1, :2]), answers, atol=1e-5), "chunk 3 is variant 1"
    tlt_pool.pool(network, images, labels, 2, 3, tmp_path / "killed")
    (tmp_path / "killed" / "done.json").write_text("2")
    np.lib.format.open_memmap(tmp_path / "killed" / "logits.npy", mode="r+")[1] = 7.0
    again = tlt_pool.pool(network, images, labels, 2, 3, tmp_path / "killed")
    assert np.array_equal(again.logits, made.logits)


def test_the_two_parts_are_the_network(network):
    x = torch.randn(2, 3, 32, 32)
    parts = tlt_loop.Whole(tlt_pool.Front(network), tlt_pool.Back(network))
    assert torch.equal(parts(x), network(x))
    assert sum(p.numel() for p in parts.parameters()) == sum(p.numel() for p in network.parameters())


def test_answers_in_the_target_give_the_loss_of_a_teacher_that_is_asked():
    torch.manual_seed(0)
    outputs, answers, labels = torch.randn(5, 10), torch.randn(5, 10), torch.arange(5)
    found = tlt_loop.Taught(2.0, 0.25)(outputs, (labels, answers))
    plain = torch.nn.functional.cross_entropy(outputs, labels)
    log_p, log_q = (torch.log_softmax(x / 2.0, 1) for x in (answers, outputs))
    soft = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    assert torch.allclose(found, 0.75 * plain + 0.25 * 4.0 * soft)


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
    assert tlt.settings_of("loop-0") is tlt_loop.SETTINGS
    assert {
        name: tlt.settings_of(f"{name}-1") is tlt_table.SETTINGS for name in tlt_table.EQUALIZATIONS
    } == dict.fromkeys(tlt_table.EQUALIZATIONS, True)
