"""Batch-norm scales by hand: which count, how layers compare, groups that have none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec


def norm(scales: list[float]) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(scales))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(scales))
    return layer


def slim() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 2, 3), norm([0.9, -0.1]), nn.ReLU(), nn.Conv2d(2, 3, 3), norm([0.2, 0.05, -0.7]), nn.ReLU(),
        nn.Conv2d(3, 2, 1),
    )  # fmt: skip


def groups_of(model: nn.Module, *shape: int) -> sec.Groups:
    return sec.couple(sec.capture(model, torch.zeros(shape)))


def test_scales_of_all_layers_are_compared_as_they_are():
    """Of [.9, .1] and [.2, .05, .7] pruning 40% takes .05 and .1, whatever their signs."""
    model = slim()
    groups = groups_of(model, 1, 3, 8, 8)
    scores = sec.score(groups, model, "bn_scale")
    assert scores["0"].tolist() == pytest.approx([0.9, 0.1])
    assert scores["3"].tolist() == pytest.approx([0.2, 0.05, 0.7])
    ordered = torch.cat(list(scores.values())).sort().values
    threshold = float(ordered[int(0.4 * 5 + 0.5)])
    plan = sec.choose(groups.graph, groups, scores, sec.Budget(threshold=threshold))
    assert plan.removed["0.weight"] == {0: (1,)}
    assert plan.removed["3.weight"] == {0: (1,), 1: (1,)}


def test_one_row_per_batch_norm():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1)
            self.an, self.bn, self.plain = norm([1.0, 0.25]), norm([3.0, -0.75]), nn.BatchNorm2d(2, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.plain(self.an(self.a(x)) + self.bn(self.b(x))))

    model = Residual()
    groups = groups_of(model, 1, 3, 4, 4)
    for equalization, expected in (("mean", [2, 0.5]), ("keep_any", [3, 0.75]), ("keep_all", [1, 0.25])):
        (row,) = sec.score(groups, model, "bn_scale", equalization=equalization).values()
        assert row.tolist() == expected


def test_a_batch_norm_behind_a_concat_counts_for_each_part():
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(5, 1, 1)
            self.norm = norm([1.0, 2.0, 3.0, 4.0, 5.0])

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(torch.cat([self.a(x), self.b(x)], 1)))

    model = Concat()
    scores = sec.score(groups_of(model, 1, 3, 4, 4), model, "bn_scale")
    assert {name: row.tolist() for name, row in scores.items()} == {"a": [1, 2], "b": [3, 4, 5]}


def test_a_unit_of_several_channels_has_their_mean():
    """Two groups of two filters: unit 0 is channels 0 and 2, unit 1 channels 1 and 3."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), norm([1.0, 2.0, 5.0, -4.0]), nn.Conv2d(4, 4, 1, groups=2))
    assert sec.score(groups_of(model, 1, 4, 3, 3), model, "bn_scale")["0"].tolist() == [3, 3]


def test_a_group_without_a_batch_norm_is_refused_by_name_or_scored_by_filter_norm():
    model = nn.Sequential(
        nn.Conv2d(3, 2, 1), norm([0.5, 0.25]), nn.Flatten(), nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 1)
    )
    groups = groups_of(model, 1, 3, 2, 2)
    with pytest.raises(sec.InputError, match=r"group `3`.*exclude `3`.*without='l2'"):
        sec.score(groups, model, "bn_scale")
    scores = sec.score(groups, model, "bn_scale", options={"without": "l2"})
    assert scores["0"].tolist() == [0.5, 0.25]
    assert scores["3"].tolist() == pytest.approx(model[3].weight.norm(dim=1).tolist())
    with pytest.raises(sec.InputError, match="refuse, l2"):
        sec.score(groups, model, "bn_scale", options={"without": "nothing"})
    rest = sec.couple(groups.graph, exclude=["3"])
    assert list(sec.score(rest, model, "bn_scale")) == ["0"]
