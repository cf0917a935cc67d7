"""A threshold on scores: what stays, at which widths, and how the four equalisations nest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sec

NORMS = [4, 1, 0.3, 2, 0.5, 0.1, 3, 0.2]


def layer(norms: list[float]) -> nn.Conv2d:
    """A 1x1 convolution over one channel whose filters have these norms."""
    made = nn.Conv2d(1, len(norms), 1)
    with torch.no_grad():
        made.weight.copy_(torch.tensor(norms).reshape(-1, 1, 1, 1))
    return made


class Sum(nn.Module):
    def __init__(self, a: list[float], b: list[float]) -> None:
        super().__init__()
        self.a, self.b, self.head = layer(a), layer(b), nn.Conv2d(len(a), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) + self.b(x))


def kept(model: nn.Module, threshold: float, equalization: str = "keep_any", normalizer: str = "max", **widths: int):
    graph = sec.capture(model, torch.zeros(1, 1, 2, 2))
    groups = sec.couple(graph)
    scores = sec.score(groups, model, "l2", equalization=equalization, normalizer=normalizer)
    chosen = sec.choose(graph, groups, scores, sec.Budget(threshold=threshold), **widths)
    (decision,) = (item for item in chosen.groups if not item.frozen)
    return list(decision.kept)


@pytest.mark.parametrize(
    ("granularity", "expected"), [(1, [0, 1, 3, 4, 6]), (2, [0, 1, 2, 3, 4, 6]), (4, list(range(8)))]
)
def test_granularity_rounds_up_and_the_best_fill(granularity: int, expected: list[int]):
    model = nn.Sequential(layer(NORMS), nn.Conv2d(8, 1, 1))
    assert kept(model, 0.1, granularity=granularity) == expected


def test_minimum_is_raised_before_rounding_and_capped():
    model = nn.Sequential(layer(NORMS), nn.Conv2d(8, 1, 1))
    assert kept(model, 0.9, min_channels=3) == [0, 3, 6]
    assert kept(model, 0.9, min_channels=3, granularity=2) == [0, 1, 3, 6]
    assert kept(model, 0.9, min_channels=16, granularity=8) == list(range(8))


@pytest.mark.parametrize(
    ("equalization", "expected"),
    [("keep_any", [0, 2]), ("union", [0, 2]), ("keep_all", [2]), ("intersection", [2]), ("arithmetic_mean", [0, 2]),
     ("geometric_mean", [2])],
)  # fmt: skip
def test_equalization_by_hand(equalization: str, expected: list[int]):
    model = Sum([0.5, 0.05, 0.2], [0.01, 0.06, 0.3])
    assert kept(model, 0.1, equalization, normalizer="none") == expected


NESTED = ("keep_all", "geometric_mean", "arithmetic_mean", "keep_any")
NUMBERS = st.lists(st.tuples(st.floats(0.05, 9), st.floats(0.05, 9)), min_size=2, max_size=8)


@given(NUMBERS, st.floats(0.01, 1))
def test_equalizations_are_nested(pairs: list[tuple[float, float]], threshold: float):
    """keep_all within geometric within arithmetic within keep_any, at granularity 1."""
    from secateurs.score.equalize import equalized

    rows = torch.tensor(pairs, dtype=torch.float64).T
    sets = [set((equalized(rows, name) >= threshold).nonzero().flatten().tolist()) for name in NESTED]
    assert sets[0] <= sets[1] <= sets[2] <= sets[3]


@given(st.floats(1e-6, 1e6), st.integers(1, 12))
@example(0.1, 7)
def test_layers_that_agree_on_a_unit_are_not_rounded_below_it(score: float, layers: int):
    """The mean of seven times 0.1 is 0.09999999999999999, which a threshold of 0.1 would cut off."""
    from secateurs.score.equalize import equalized

    rows = torch.full((layers, 1), score, dtype=torch.float64)
    assert [float(equalized(rows, name)) for name in NESTED] == [score] * 4


@pytest.mark.parametrize("normalizer", ["max", "mean", "l2", "l2_scaled"])
def test_scale_of_a_layer_does_not_matter(normalizer: str):
    one, ten = (Sum([0.5 * scale, 0.05 * scale, 0.2 * scale], [0.1, 0.6, 0.3]) for scale in (1, 10))
    for equalization in ("keep_any", "keep_all", "arithmetic_mean", "geometric_mean"):
        assert kept(one, 0.4, equalization, normalizer, min_channels=2) == kept(
            ten, 0.4, equalization, normalizer, min_channels=2
        )


def test_threshold_that_empties_a_layer_is_refused():
    model = nn.Sequential(layer(NORMS), nn.Conv2d(8, 1, 1))
    with pytest.raises(sec.BudgetError, match=r"would leave nothing.*`0`.*scores 1\b.*lower the threshold"):
        kept(model, 1.5)
    assert kept(model, 1.5, min_channels=2) == [0, 6]


def test_another_limit_still_holds():
    model = nn.Sequential(layer(NORMS), nn.Conv2d(8, 1, 1))
    graph = sec.capture(model, torch.zeros(1, 1, 2, 2))
    groups = sec.couple(graph)
    scores = sec.score(groups, model, "l2", normalizer="max")
    chosen = sec.choose(graph, groups, scores, sec.Budget(threshold=0.1, macs=0.5))
    assert [list(item.kept) for item in chosen.groups if not item.frozen] == [[0, 1, 3, 6]]
    assert str(sec.Budget(threshold=0.1, macs=0.5)) == "macs <= 50% of the original, scores >= 0.1"
    assert str(sec.Budget(params=0.504)) == "params <= 50.4% of the original"


@pytest.mark.parametrize("threshold", [-0.1, float("inf"), float("nan"), "0.1", True])
def test_nonsense_is_refused(threshold: object):
    with pytest.raises(sec.BudgetError, match="is not a limit"):
        sec.Budget(threshold=threshold)
