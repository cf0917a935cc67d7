"""Distances between filters by hand, and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec


def scores(model: nn.Module, *shape: int, **options: object) -> Tensor:
    groups = sec.couple(sec.capture(model, torch.zeros(shape, dtype=next(model.parameters()).dtype)))
    return sec.score(groups, model, "fpgm", normalizer="none", options=options)["0"]


def with_filters(rows: list[list[float]]) -> nn.Module:
    model = nn.Sequential(nn.Linear(len(rows[0]), len(rows)), nn.ReLU(), nn.Linear(len(rows), 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(rows))
    return model


def test_sums_of_distances():
    """The middle one is the most replaceable; by magnitude it would be the zero."""
    model = with_filters([[0.0], [1.0], [10.0]])
    row = scores(model, 1, 1)
    assert row.tolist() == pytest.approx([11, 10, 19])
    groups = sec.couple(sec.capture(model, torch.zeros(1, 1)))
    assert int(row.argmin()) == 1 and int(sec.score(groups, model, "l2")["0"].argmin()) == 0


def test_cosine_looks_at_directions_only():
    row = scores(with_filters([[1.0, 0.0], [0.0, 5.0], [3.0, 3.0]]), 1, 2, distance="cosine")
    half = 1 - math.sqrt(0.5)
    assert row.tolist() == pytest.approx([1 + half, 1 + half, 2 * half])


def test_a_zero_filter_is_at_cosine_distance_one_from_all_others():
    assert scores(with_filters([[0.0], [1.0], [2.0]]), 1, 1, distance="cosine").tolist() == pytest.approx([2, 1, 1])


def test_unknown_distance():
    with pytest.raises(sec.InputError, match="euclidean, cosine"):
        scores(with_filters([[0.0], [1.0]]), 1, 1, distance="manhattan")


@pytest.mark.parametrize("seed", range(3))
def test_adding_a_constant_vector_changes_nothing(seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 2, 1)).double()
    before = scores(model, 1, 3, 6, 6)
    with torch.no_grad():
        model[0].weight.add_(100 * torch.randn(1, 3, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(scores(model, 1, 3, 6, 6), before, rtol=1e-9, atol=0)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_against_loops_over_pairs_of_units(distance: str):
    """A unit of a grouped convolution is one filter of each group, laid end to end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 15, 3, groups=3), nn.ReLU(), nn.Conv2d(15, 6, 1, groups=3)).double()
    filters = [
        torch.cat([model[0].weight[5 * part + unit].detach().flatten() for part in range(3)]) for unit in range(5)
    ]

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() if distance == "euclidean" else 1 - a @ b / a.norm() / b.norm())

    expected = [sum(apart(one, other) for other in filters if other is not one) for one in filters]
    assert scores(model, 1, 6, 5, 5, distance=distance).tolist() == pytest.approx(expected, rel=1e-9)


def test_layers_that_are_added_score_each_on_their_own():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(1, 3), nn.Linear(1, 3), nn.Linear(3, 1)
            with torch.no_grad():
                self.a.weight.copy_(torch.tensor([[0.0], [1.0], [10.0]]))
                self.b.weight.copy_(torch.tensor([[2.0], [0.0], [0.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x) + self.b(x))

    model = Sum()
    groups = sec.couple(sec.capture(model, torch.zeros(1, 1)))
    (row,) = sec.score(groups, model, "fpgm", normalizer="none", equalization="sum").values()
    assert row.tolist() == pytest.approx([11 + 4, 10 + 2, 19 + 2])
