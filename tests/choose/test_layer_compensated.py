"""A bonus per layer: what it does to the ranking, the budget in every plan, and a search that finds what is hidden."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.choose.layer_compensated import compensated, layer_compensated
from secateurs.choose.masked import masked_accuracy


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, sec.Groups, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    with torch.no_grad():
        model[-1].bias -= model(torch.randn(500, 6)).mean(0)  # so that every class occurs
    groups = sec.couple(sec.capture(model, torch.zeros(1, 6)))
    return model, groups, sec.score(groups, model, "l2", normalizer="none")


def widths(plan: sec.Plan) -> dict[str, int]:
    return {item.name: len(item.kept) for item in plan.groups if not item.frozen}


@pytest.mark.parametrize("bonus", [0.0, 0.75, -2.5])
def test_the_same_bonus_everywhere_is_plain_global_ranking(network: tuple, bonus: float):
    _, groups, scores = network
    budget = sec.Budget(params=0.5)
    plain = sec.choose(groups.graph, groups, scores, budget)
    same = sec.choose(groups.graph, groups, compensated(scores, dict.fromkeys(scores, bonus)), budget)
    assert same.removed == plain.removed and not plain.empty


@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_an_endless_bonus_protects_a_layer(network: tuple, name: str):
    _, groups, scores = network
    plan = sec.choose(groups.graph, groups, compensated(scores, {name: 1e9}), sec.Budget(params=0.6))
    assert widths(plan)[name] == groups[name].size and not plan.empty


def test_every_plan_keeps_the_budget_and_the_fittest_wins(network: tuple):
    _, groups, scores = network
    seen: list[tuple[float, sec.Plan]] = []

    def wide_middle(plan: sec.Plan) -> float:
        seen.append((widths(plan)["2"] - 0.1 * widths(plan)["0"], plan))
        return seen[-1][0]

    budget = sec.Budget(macs=0.5)
    plan = layer_compensated(
        groups.graph, groups, scores, budget, wide_middle, population=8, tournament=4, evaluations=40
    )
    assert len(seen) == 40
    assert all(each.after["macs"] <= 0.5 * each.before["macs"] for _, each in seen)
    assert seen[0][1].removed == sec.choose(groups.graph, groups, scores, budget).removed
    assert plan.search == "layer_compensated"
    best = max(found for found, _ in seen)
    assert best > seen[0][0]
    assert plan.removed == next(each.removed for found, each in seen if found == best)


def test_the_same_seed_gives_the_same_plan(network: tuple):
    _, groups, scores = network

    def search(seed: int) -> list[sec.Plan]:
        seen: list[sec.Plan] = []
        layer_compensated(
            groups.graph, groups, scores, sec.Budget(macs=0.5), lambda plan: float(seen.append(plan) or len(seen)),
            population=4, tournament=2, evaluations=10, seed=seed,
        )  # fmt: skip
        return [plan.removed for plan in seen]

    assert search(1) == search(1) != search(2)


def test_masked_accuracy_is_that_of_the_network_that_is_cut(network: tuple):
    model, groups, scores = network
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = model(x).argmax(1)
    accuracy = masked_accuracy(groups, model, list(zip(x.split(64), y.split(64), strict=True)))
    whole = sec.choose(groups.graph, groups, scores, sec.Budget(params=1.0))
    assert accuracy(whole) == 1
    for params in (0.7, 0.3):
        plan = sec.choose(groups.graph, groups, scores, sec.Budget(params=params))
        with torch.no_grad():
            small = sec.cut(model, plan, torch.zeros(1, 6))
            expected = float((getattr(small, "model", small)(x).argmax(1) == y).double().mean())
        assert accuracy(plan) == pytest.approx(expected, abs=1e-9) and expected < 1


@pytest.mark.parametrize("sizes", [{"tournament": 0}, {"tournament": 65}, {"evaluations": 10}, {"step": 0.0}])
def test_sizes_that_make_no_search(network: tuple, sizes: dict[str, float]):
    _, groups, scores = network
    with pytest.raises(sec.InputError, match="no search"):
        layer_compensated(groups.graph, groups, scores, sec.Budget(macs=0.5), lambda plan: 0.0, **sizes)


def test_a_budget_of_channels_leaves_nothing_to_search(network: tuple):
    _, groups, scores = network
    with pytest.raises(sec.BudgetError, match="nothing to search"):
        layer_compensated(groups.graph, groups, scores, sec.Budget(channels=0.5), lambda plan: 0.0)
