"""Comparing criteria: the numbers are those of `score` and `scipy`, in tables, JSON and a picture."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import secateurs as sec
from secateurs.base.errors import InputError
from secateurs.report.tables import as_text

torch.set_num_threads(1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()  # fmt: skip


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(10, 3, 8, 8, generator=generator), torch.arange(10) % 3) for _ in range(2)]


def compared(criteria=("l1", "mean_activation", "random"), **more):
    return sec.compare_criteria(network(), torch.zeros(1, 3, 8, 8), criteria, data=batches(), bootstrap=50, **more)


def test_correlations_are_those_of_the_scores():
    found = compared()
    model, data = network(), batches()
    groups = sec.couple(sec.capture(model, torch.zeros(1, 3, 8, 8)))
    truth = sec.score(groups, model, "oracle", data=data)
    for name in ("l1", "mean_activation", "random"):
        mine = sec.score(groups, model, name, data=data)
        for group, row in mine.items():
            assert found.by_group[name][group].rho == pytest.approx(spearmanr(row, truth[group]).statistic)
        a, b = (np.concatenate([rows[group] for group in truth]) for rows in (mine, truth))
        assert found.overall[name].rho == pytest.approx(spearmanr(a, b).statistic)
        assert found.overall[name].units == 14
        assert found.overall[name].low <= found.overall[name].rho <= found.overall[name].high


def test_best_first_and_the_reference_is_its_own_best():
    found = compared(("random", "l1"), reference="mean_activation")
    rhos = [item.rho for item in found.overall.values()]
    assert rhos == sorted(rhos, reverse=True)
    assert "mean_activation" not in found.overall


def test_all_that_apply_by_default_and_why_others_do_not():
    found = compared(None)
    assert {"l1", "l2", "mean_activation", "random"} <= found.overall.keys()
    assert "oracle" not in found.overall
    assert "bn_scale" in found.skipped or "bn_scale" in found.overall
    assert found.skipped.keys().isdisjoint(found.overall)


def test_prints_tables_and_gives_json():
    found = compared()
    text = str(found)
    for word in ("Spearman", "oracle", "l1", "mean_activation", "random", "all units"):
        assert word in text
    again = json.loads(found.to_json())
    assert again["overall"]["l1"]["rho"] == found.overall["l1"].rho
    assert len(again["scores"]["oracle"]["0"]) == 8


def test_no_number_is_broken_over_lines_however_many_criteria():
    found = compared(None)
    rhos = [f"{row[group].rho:+.2f}" for row in found.by_group.values() for group in row if row[group].rho is not None]
    assert len(found.by_group) > 10
    for width in (80, 110):
        words = as_text(found.tables(), width).split()
        assert all(words.count(rho) >= rhos.count(rho) for rho in set(rhos))


def test_picture_holds_every_number():
    pytest.importorskip("plotly")
    found = compared()
    bars, dots = found.figure().data
    assert list(bars.x) == list(found.overall)
    assert list(bars.y) == [item.rho for item in found.overall.values()]
    assert len(dots.x) == 3 * 2


def test_what_was_asked_for_and_does_not_apply_is_refused():
    with pytest.raises(sec.UnknownNameError, match="l1"):
        compared(("l11",))
    with pytest.raises(InputError, match="Nothing can be removed"):
        sec.compare_criteria(nn.Linear(2, 2), torch.zeros(1, 2), data=[])


class ByName(nn.Module):
    """Takes its two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 6), nn.Linear(2, 5), nn.Linear(11, 3)

    def forward(self, *, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        both = torch.cat([torch.relu(self.left(left)), torch.relu(self.right(right))], 1)
        return self.head(both)


def test_inputs_by_name_in_any_order():
    torch.manual_seed(0)
    model, left, right = ByName(), torch.randn(8, 3), torch.randn(8, 2)
    target = torch.arange(8) % 3
    found = [
        sec.compare_criteria(model, (), ["l1"], data=[(inputs, target)], kwargs={"left": left[:2], "right": right[:2]})
        for inputs in ({"left": left, "right": right}, {"right": right, "left": left})
    ]
    assert found[0].overall["l1"].units == 11
    assert found[0].scores == found[1].scores


def test_data_of_another_dtype_is_refused():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    data = [(torch.randn(4, 3, dtype=torch.float64), torch.arange(4) % 2)]
    with pytest.raises(InputError, match=r"another dtype.*float64 here and was torch.float32"):
        sec.compare_criteria(model, torch.zeros(1, 3), ["l1"], data=data)


@pytest.mark.parametrize(
    ("criteria", "more", "match"),
    [
        ("l1", {}, r"criteria=\['l1'\]"),
        ([print], {}, "is no name of a criterion"),
        (["l1"], {"bootstrap": 0}, "bootstrap=0"),
        (["l1"], {"bootstrap": -1}, "bootstrap=-1"),
        (["l1"], {"options": {"l11": {}}}, "no criterion named 'l11'"),
        (["l1"], {"options": {"obd": {"probe": 1}}}, "no option 'probe'"),
        (["l1"], {"exclude": "0"}, r"exclude=\['0'\]"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(criteria: Any, more: dict[str, Any], match: str):
    with pytest.raises(sec.SecateursError, match=match):
        sec.compare_criteria(network(), torch.zeros(1, 3, 8, 8), criteria, data=batches(), **more)
