"""Budgets are met and not undershot; widths, exclusions and refusals."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.choose.widths import Widths
from secateurs.cost import CostModel

X = torch.zeros(1, 3, 6, 6)


class Small(nn.Module):
    """Groups of 6 (`stem`, tied to `second` by the skip connection), 5 (`first`) and 7 (`hidden`)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 6, 3, padding=2)
        self.hidden, self.head = nn.Linear(6, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


@pytest.fixture(scope="module")
def small() -> sec.Groups:
    return sec.couple(sec.capture(Small(), X))


def random_scores(groups: sec.Groups, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=generator).double() for group in groups.free}


def choose(groups: sec.Groups, scores: dict[str, Tensor], budget: sec.Budget, **options: object) -> sec.Plan:
    return sec.choose(groups.graph, groups, scores, budget, **options)


def kept(plan: sec.Plan) -> dict[str, tuple[int, ...]]:
    return {decision.name: decision.kept for decision in plan.groups}


def test_groups_of_the_network_below(small: sec.Groups):
    assert sorted(group.size for group in small.free) == [5, 6, 7]


@pytest.mark.parametrize("search", ["global", "uniform"])
@pytest.mark.parametrize(
    "budget",
    [
        sec.Budget(macs=0.5), sec.Budget(params=0.3), sec.Budget(bytes=0.7), sec.Budget(macs=6000),
        sec.Budget(macs=0.6, params=0.4), sec.Budget(macs=1.0), sec.Budget(channels=0.5, macs=0.3),
    ],
    ids=str,
)  # fmt: skip
def test_budget_is_met(small: sec.Groups, search: str, budget: sec.Budget):
    plan = choose(small, random_scores(small, 0), budget, search=search)
    for metric, limit in budget.absolute(dict(plan.before)).items():
        assert plan.after[metric] <= limit
    alive = small.alive({name: units for name, units in kept(plan).items() if name in small.offsets})
    assert plan.after == CostModel(small).cost(alive).to_dict()


@pytest.mark.parametrize("metric", ["macs", "params", "bytes"])
@pytest.mark.parametrize("granularity", [1, 2, 3])
def test_global_leaves_no_step_that_would_still_fit(small: sec.Groups, metric: str, granularity: int):
    cost = CostModel(small)
    for seed, fraction in product(range(3), (0.35, 0.6, 0.85)):
        scores = random_scores(small, seed)
        try:
            plan = choose(small, scores, sec.Budget(**{metric: fraction}), granularity=granularity)
        except sec.BudgetError:
            continue
        limit, units = fraction * plan.before[metric], kept(plan)
        for group in small.free:
            now = len(units[group.name])
            if now < group.size:
                best = scores[group.name].argsort(descending=True)[: min(group.size, now + granularity)].tolist()
                bigger = {name: list(rows) for name, rows in units.items() if name in small.offsets}
                assert cost.metric(metric, small.alive({**bigger, group.name: best})) > limit


def test_global_removes_by_one_threshold(small: sec.Groups):
    """Before anything is put back, what stays scores at least as much as what goes, in whatever group it is."""
    scores = random_scores(small, 4)
    plan = choose(small, scores, sec.Budget(macs=0.5))
    for group in small.free:
        row, stays = scores[group.name], set(kept(plan)[group.name])
        lost = [float(row[unit]) for unit in range(group.size) if unit not in stays]
        assert not lost or max(lost) <= min(float(row[unit]) for unit in stays)


def test_uniform_is_the_largest_fraction_that_fits(small: sec.Groups):
    """Every fraction is tried; the search must return the costliest network that fits."""
    cost = CostModel(small)
    for limit in (0.2, 0.45, 0.7, 0.9):
        plan = choose(small, random_scores(small, 1), sec.Budget(macs=limit), search="uniform")
        possible = []
        for fraction in np.linspace(0.001, 1, 1000):
            keep = {
                group.name: range(max(1, group.size - int((1 - fraction) * group.size + 0.5))) for group in small.free
            }
            possible.append(cost.macs(small.alive(keep)))
        assert plan.after["macs"] == max(macs for macs in possible if macs <= limit * plan.before["macs"])


@pytest.mark.parametrize("search", ["global", "uniform"])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.55, 0.9, 1.0])
def test_channels_removes_exactly_the_rounded_fraction(small: sec.Groups, search: str, fraction: float):
    plan = choose(small, random_scores(small, 2), sec.Budget(channels=fraction), search=search)
    for group in small.free:
        gone = min(floor((1 - Fraction(str(fraction))) * group.size + Fraction(1, 2)), group.size - 1)
        assert len(kept(plan)[group.name]) == group.size - gone


def test_ties_remove_the_lower_index(small: sec.Groups):
    flat = {group.name: torch.ones(group.size).double() for group in small.free}
    plan = choose(small, flat, sec.Budget(channels=0.5))
    for group in small.free:
        gone = int(0.5 * group.size + 0.5)
        assert kept(plan)[group.name] == tuple(range(gone, group.size))


def test_lowest_scores_go(small: sec.Groups):
    scores = random_scores(small, 3)
    plan = choose(small, scores, sec.Budget(channels=0.4))
    for group in small.free:
        stays = kept(plan)[group.name]
        assert set(stays) == set(scores[group.name].argsort(descending=True)[: len(stays)].tolist())
        assert list(stays) == sorted(stays)


# Widths


def oracle(units: int, size: int, granularity: int) -> int:
    """Nearest multiple, half up, at least the multiple, at most the original; the original itself is never rounded."""
    if units >= size:
        return size
    candidates = range(granularity, size + granularity, granularity)
    best = min(candidates, key=lambda width: (abs(width - units), -width))
    return min(size, best)


@pytest.mark.parametrize("granularity", [1, 2, 3, 4, 8])
def test_nearest_multiple(small: sec.Groups, granularity: int):
    widths = Widths(granularity)
    for group in small.free:
        for units in range(group.size + 1):
            assert widths.nearest(group, units) == oracle(units, group.size, granularity) > 0


@pytest.mark.parametrize("granularity", [2, 4, 8])
@pytest.mark.parametrize("search", ["global", "uniform"])
def test_widths_are_multiples_or_whole(small: sec.Groups, search: str, granularity: int):
    """A multiple wider than a layer leaves that layer whole, and the plan says so."""
    plan = choose(small, random_scores(small, 5), sec.Budget(channels=0.4), search=search, granularity=granularity)
    for group in small.free:
        width = len(kept(plan)[group.name])
        assert width == group.size or width % granularity == 0
        assert width > 0
        if granularity > group.size:
            why = next(decision.why for decision in plan.groups if decision.name == group.name)
            assert why.startswith("kept whole: its granularity")
            assert why.endswith(f"no fewer than its {group.size} channels")


def test_multiples_count_channels_not_units():
    """Heads of 4 channels: a multiple of 8 channels is 2 heads."""
    layer = nn.TransformerEncoderLayer(16, 4, 8, batch_first=True).eval()
    groups = sec.couple(sec.capture(layer, torch.zeros(1, 3, 16)))
    heads = next(group for group in groups.free if group.size == 4)
    assert heads.width == 4
    widths = Widths(8)
    assert [widths.nearest(heads, units) for units in range(5)] == [2, 2, 2, 4, 4]


def test_min_width_and_floor(small: sec.Groups):
    scores = random_scores(small, 6)
    narrow = choose(small, scores, sec.Budget(channels=0.2), min_channels=4)
    assert {len(kept(narrow)[group.name]) for group in small.free} == {4}
    floored = choose(small, scores, sec.Budget(macs=0.5), floor=0.6)
    for group in small.free:
        assert len(kept(floored)[group.name]) >= 0.6 * group.size


def test_one_unit_of_every_group_stays(small: sec.Groups):
    plan = choose(small, random_scores(small, 7), sec.Budget(channels=0.01))
    assert {len(kept(plan)[group.name]) for group in small.free} == {1}


# Exclusions


@pytest.mark.parametrize("pattern", ["first", "fir*", "first.weight", "f?rst"])
def test_exclusion_by_glob(pattern: str):
    groups = sec.couple(sec.capture(Small(), X), exclude=[pattern])
    excluded = next(group for group in groups if group.name == "first")
    assert pattern in str(excluded.frozen)
    plan = choose(groups, random_scores(groups, 0), sec.Budget(channels=0.5))
    assert len(kept(plan)["first"]) == 5
    assert next(decision for decision in plan.groups if decision.name == "first").why == excluded.frozen
    assert sorted(len(kept(plan)[group.name]) for group in groups.free) == [3, 3]


def test_exclusion_by_class():
    groups = sec.couple(sec.capture(Small(), X), exclude=[nn.Conv2d])
    assert [group.name for group in groups.free] == ["hidden"]


def test_exclusion_that_is_no_name():
    with pytest.raises(sec.InputError, match="3 excludes nothing"):
        sec.couple(sec.capture(Small(), X), exclude=[3])


def test_exclusion_that_matches_nothing():
    with pytest.raises(sec.UnknownNameError, match="first"):
        sec.couple(sec.capture(Small(), X), exclude=["frist"])


# Refusals


@pytest.mark.parametrize(
    "limits", [{}, {"macs": 0}, {"macs": -1}, {"params": float("nan")}, {"bytes": float("inf")}, {"macs": True},
               {"channels": 2}, {"macs": "half"}]
)  # fmt: skip
def test_budget_that_is_none(limits: dict[str, object]):
    with pytest.raises(sec.BudgetError):
        sec.Budget(**limits)


def test_unreachable_budget_states_the_minimum_and_what_holds_it(small: sec.Groups):
    least = small.alive({group.name: [0] for group in small.free})
    macs = CostModel(small).macs(least)
    with pytest.raises(sec.BudgetError) as refusal:
        choose(small, random_scores(small, 0), sec.Budget(macs=10))
    message = str(refusal.value)
    assert f"at least {macs:,}" in message
    assert "asked for 10" in message
    assert "`conv2d` in `second`" in message
    assert choose(small, random_scores(small, 0), sec.Budget(macs=macs)).after["macs"] == macs


def test_budget_that_only_the_widths_make_unreachable(small: sec.Groups):
    scores = random_scores(small, 0)
    assert choose(small, scores, sec.Budget(macs=0.3)).after["macs"] > 0
    with pytest.raises(sec.BudgetError, match="floor"):
        choose(small, scores, sec.Budget(macs=0.3), floor=0.9)
    with pytest.raises(sec.BudgetError, match="granularity"):
        choose(small, scores, sec.Budget(macs=0.3), granularity=8)


def test_budget_that_contradicts_the_floor(small: sec.Groups):
    with pytest.raises(sec.BudgetError, match=r"0\.3.*0\.5"):
        choose(small, random_scores(small, 0), sec.Budget(channels=0.3), floor=0.5)


@pytest.mark.parametrize(
    "options",
    [{"granularity": 0}, {"granularity": "8"}, {"min_channels": 0}, {"floor": 1.5}, {"floor": -0.1}, {"floor": None}],
)
def test_widths_that_make_no_sense(small: sec.Groups, options: dict[str, object]):
    with pytest.raises(sec.BudgetError, match="make no sense"):
        choose(small, random_scores(small, 0), sec.Budget(macs=0.5), **options)


def test_model_whose_channels_are_all_outputs():
    model = nn.Linear(3, 2)
    groups = sec.couple(sec.capture(model, torch.zeros(1, 3)))
    with pytest.raises(sec.BudgetError, match="returns it"):
        choose(groups, {}, sec.Budget(macs=0.5))


def test_unknown_search_gives_the_nearest(small: sec.Groups):
    with pytest.raises(sec.UnknownNameError, match="did you mean 'global'"):
        choose(small, random_scores(small, 0), sec.Budget(macs=0.5), search="globl")


def test_scores_that_do_not_fit(small: sec.Groups):
    scores = random_scores(small, 0)
    for broken in ({}, {**scores, "first": torch.ones(4)}, {**scores, "first": torch.ones(5, 1)}):
        with pytest.raises(sec.InputError, match="first|stem"):
            choose(small, broken, sec.Budget(macs=0.5))


def test_groups_of_another_graph(small: sec.Groups):
    other = sec.capture(nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(sec.PlanError, match="another graph"):
        sec.choose(other, small, random_scores(small, 0), sec.Budget(macs=0.5))
