"""Two plans as one: index arithmetic against the obvious way, and cut by cut on real networks."""

from __future__ import annotations

import copy
import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateurs as sec
from secateurs.choose.compose import compose, original_indices
from secateurs.choose.plan import GroupDecision
from secateurs.testing.chain import all_kept, half_kept, named_tensors, random_kept
from secateurs.testing.layers import FusedAttention
from secateurs.testing.networks import randomize


@given(st.sets(st.integers(0, 30), min_size=1), st.data())
def test_original_indices_are_those_of_what_was_left(removed: set[int], data: st.DataObject):
    left = [i for i in range(60) if i not in removed]
    later = data.draw(st.sets(st.integers(0, len(left) - 1)))
    assert original_indices(later, removed) == tuple(left[i] for i in sorted(later))


def bare(seed: int, sizes: dict[str, int]) -> tuple[sec.Plan, dict[str, int]]:
    """A random plan on one axis per leaf, without groups or counts, and the sizes that it leaves."""
    chance = random.Random(seed)
    removed = {
        name: {0: tuple(sorted(chance.sample(range(size), chance.randint(0, size // 2))))}
        for name, size in sizes.items()
        if chance.random() < 0.7
    }
    left = {name: size - len(removed.get(name, {}).get(0, ())) for name, size in sizes.items()}
    return sec.Plan(graph_hash=str(seed), removed=removed), left


@pytest.mark.parametrize("seed", range(30))
def test_composition_is_associative(seed: int):
    first, sizes = bare(seed, {"a": 20, "b": 9, "c": 31})
    second, sizes = bare(seed + 100, sizes)
    third, _ = bare(seed + 200, sizes)
    left, right = compose(compose(first, second), third), compose(first, compose(second, third))
    assert left == right
    total = sum(len(dims[0]) for plan in (first, second, third) for dims in plan.removed.values())
    assert sum(len(dims[0]) for dims in left.removed.values()) == total


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 1)
        self.outer = nn.Conv2d(10, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.norm(x + self.outer(torch.relu(self.inner(x)))))
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=2), nn.PixelShuffle(2), nn.Conv2d(2, 4, 1), nn.Flatten(),
        nn.Linear(4 * 64, 3),
    )  # fmt: skip


def attention() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), FusedAttention(16, 4, 4, False), nn.ReLU(), nn.Linear(16, 3))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    model[4].weight = model[2].weight
    return model


IMAGE, TOKENS = (2, 3, 6, 6), (2, 5, 6)
NETWORKS = {"residual": (Residual, IMAGE), "grouped": (grouped, IMAGE), "attention": (attention, TOKENS),
            "tied": (tied, TOKENS)}  # fmt: skip


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    make, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    model = make().double().eval()
    randomize(model, generator)
    return model, torch.randn(shape, generator=generator, dtype=torch.float64)


def plan_for(model: nn.Module, x: torch.Tensor, keep, unit: str = "heads") -> sec.Plan:
    graph = sec.capture(model, x)
    groups = sec.couple(graph, unit=unit)
    return sec.plan(graph, groups, keep(groups))


def same_tensors(one: nn.Module, two: nn.Module) -> bool:
    a, b = named_tensors(one), named_tensors(two)
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def two_thirds(groups):
    return {group.name: [i for i in range(group.size) if i % 3 != 1 or group.size < 4] for group in groups.free}


@pytest.mark.parametrize("unit", ["heads", "head_dim"])
@pytest.mark.parametrize("name", NETWORKS)
def test_two_cuts_are_one_cut(name: str, unit: str):
    model, x = build(name)
    first = plan_for(model, x, two_thirds, unit)
    middle = sec.cut(model, first, x)
    second = plan_for(middle, x, half_kept, unit)
    twice = sec.cut(middle, second, x)
    both = compose(first, second)
    once = sec.cut(model, sec.Plan.from_json(both.to_json()), x)
    assert not first.empty and not second.empty
    assert same_tensors(twice, once)
    assert torch.equal(twice(x), once(x))
    assert both.after == second.after
    assert both.before == first.before
    graph = sec.capture(model, x)
    groups = sec.couple(graph, unit=unit)
    keep = {decision.name: decision.kept for decision in both.groups if decision.name in groups.offsets}
    assert sec.plan(graph, groups, keep).removed == both.removed, "the decisions are not what is removed"


@pytest.mark.medium
@pytest.mark.parametrize("seed", range(16))
def test_two_cuts_of_a_random_network_are_one_cut(seed: int):
    from secateurs.testing.networks import random_network

    model, inputs = random_network(1000 + seed, size=4)
    first = plan_for(model, inputs, random_kept(seed))
    middle = sec.cut(model, first, inputs)
    second = plan_for(middle, inputs, random_kept(seed + 1))
    try:
        both = compose(first, second)
    except sec.PlanError as refused:  # attention that is down to one head gets columns as units by the first cut
        assert re.search(r"no unit of the original.*attention", str(refused))  # noqa: PT017
        return
    assert same_tensors(sec.cut(middle, second, inputs), sec.cut(model, both, inputs))


def test_composing_with_an_empty_plan_changes_nothing():
    model, x = build("residual")
    nothing, half = plan_for(model, x, all_kept), plan_for(model, x, half_kept)
    after = plan_for(sec.cut(model, half, x), x, all_kept)
    for both in (compose(nothing, half), compose(half, after)):
        assert both.removed == half.removed
        assert both.groups == half.groups
        assert both.after == half.after


def test_story_of_both_plans_is_kept():
    decision = GroupDecision("a", 4, (0, 2, 3), "kept the 3 best of 4", (0.4, 0.1, 0.2, 0.3))
    first = sec.Plan("one", {"a": {0: (1,)}}, (decision,), criterion="l1", budget="macs <= 70%", search="global")
    decision = GroupDecision("a", 3, (1, 2), "kept the 2 best of 3", (5.0, 7.0, 6.0))
    second = sec.Plan("two", {"a": {0: (0,)}}, (decision,), criterion="l2", budget="macs <= 50%", search="global")
    both = compose(first, second)
    assert both == sec.Plan(
        "one",
        {"a": {0: (0, 1)}},
        (GroupDecision("a", 4, (2, 3), "kept the 3 best of 4; then kept the 2 best of 3", (5.0, 0.1, 7.0, 6.0)),),
        criterion="l1, then l2", budget="macs <= 70%, then macs <= 50%", search="global",
    )  # fmt: skip


def test_plans_in_the_wrong_order():
    model, x = build("residual")
    first = plan_for(model, x, two_thirds)
    second = plan_for(sec.cut(model, first, x), x, half_kept)
    with pytest.raises(sec.PlanError, match="not made for the model that the first one leaves"):
        compose(second, first)


def test_heads_and_columns_of_heads_have_no_common_units():
    model, x = build("attention")
    first = plan_for(model, x, half_kept, "heads")
    second = plan_for(sec.cut(model, first, x), x, half_kept, "head_dim")
    with pytest.raises(sec.PlanError, match="unit='heads'.*unit='head_dim'"):
        compose(first, second)


def test_columns_of_the_only_head_left_are_no_units_of_the_original():
    model, x = build("attention")
    first = plan_for(model, x, lambda groups: {g.name: [0] if g.size == 4 else range(g.size) for g in groups.free})
    middle = sec.cut(model, first, x)
    second = plan_for(middle, x, half_kept)
    with pytest.raises(sec.PlanError, match="no such group"):
        compose(first, second)


def test_what_was_frozen_in_the_first_plan_is_no_unit_of_the_original():
    held = GroupDecision("a", 3, (0, 1, 2), "the model returns it", frozen=True)
    first = sec.Plan("one", {"b": {0: (1,)}}, (held,))
    second = sec.Plan("two", {"a": {0: (0,)}}, (GroupDecision("a", 3, (1, 2), "kept 2 of 3 as asked"),))
    with pytest.raises(sec.PlanError, match="frozen"):
        compose(first, second)


def test_plans_are_not_changed():
    model, x = build("residual")
    first = plan_for(model, x, two_thirds)
    second = plan_for(sec.cut(model, first, x), x, half_kept)
    before = copy.deepcopy((first, second))
    compose(first, second)
    assert (first, second) == before
