"""When masks change, how sparse they are then, and that counts are what the schedule says."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.sparsity import Schedule


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(10, 17), nn.ReLU(), nn.Linear(17, 5))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 10, generator=generator), torch.randint(5, (8,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize(("step", "expected"), [(25, 0.5203125), (50, 0.7875), (75, 0.8859375), (100, 0.9), (0, 0.0)])
def test_cubic_curve_by_value(step: int, expected: float) -> None:
    assert sec.Gradual(begin=0, end=100).at(step, 0.9) == pytest.approx(expected, abs=1e-12)
    assert sec.Gradual(begin=40, end=140).at(step + 40, 0.9) == pytest.approx(expected, abs=1e-12)


def test_half_of_the_final_sparsity_is_reached_early() -> None:
    assert sec.Gradual(begin=0, end=10_000).at(2063, 0.8) == pytest.approx(0.4, abs=1e-4)


def test_powers_and_beginnings() -> None:
    linear = sec.Gradual(begin=10, end=20, every=3, initial=0.2, power=1)
    assert linear.at(15, 0.8) == pytest.approx(0.5)
    assert linear.at(9, 0.8) == 0.0
    assert linear.at(99, 0.8) == 0.8
    assert linear.at(10, 0.1) == 0.1  # what a layer is to reach is never exceeded
    assert [step for step in range(30) if linear.due(step)] == [10, 13, 16, 19, 20]


def test_a_short_way_is_gradual_too() -> None:
    """Every 100 steps would leave nothing but its two ends."""
    short, long = sec.Gradual(begin=14, end=34), sec.Gradual(begin=0, end=2500)
    assert [step for step in range(40) if short.due(step)] == list(range(14, 35, 2))
    assert [step for step in range(3000) if long.due(step)] == list(range(0, 2501, 100))
    assert [step for step in range(9) if sec.Gradual(begin=1, end=4).due(step)] == [1, 2, 3, 4]
    assert [step for step in range(40) if sec.Gradual(14, 34, every=100).due(step)] == [14, 34]
    with pytest.raises(sec.InputError, match="give end as an integer"):
        sec.Gradual(begin=0, end=None)  # type: ignore[arg-type]


def test_iterative_rounds_by_value() -> None:
    rounds = sec.Iterative(every=10, rounds=2, begin=5)
    assert [step for step in range(40) if rounds.due(step)] == [5, 15]
    assert [rounds.at(step, 0.75) for step in (4, 5, 14, 15, 99)] == [0.0, 0.5, 0.5, 0.75, 0.75]
    kept = [1 - sec.Iterative(every=1).at(step, 0.9) for step in range(5)]
    assert [b / a for a, b in itertools.pairwise(kept)] == pytest.approx([0.1**0.2] * 4)


def test_one_shot_and_constant() -> None:
    assert [step for step in range(6) if sec.OneShot(3).due(step)] == [3]
    assert [step for step in range(9) if sec.Constant(begin=2, end=7, every=2).due(step)] == [2, 4, 6]
    assert [sec.Constant(begin=2).at(step, 0.5) for step in (1, 2)] == [0.0, 0.5]
    assert [sec.OneShot(2).at(step, 0.5) for step in (1, 2)] == [0.0, 0.5]


SCHEDULES: list[Schedule] = [
    sec.OneShot(4),
    sec.Iterative(every=3, rounds=4, begin=1),
    sec.Gradual(begin=2, end=15, every=2),
    sec.Gradual(begin=0, end=14, every=5, initial=0.3, power=2),
    sec.Constant(begin=3, every=4),
]


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_equal_the_schedule_at_every_step(schedule: Schedule, mode: str, scope: str) -> None:
    model = network()
    held = sec.sparsify(model, 0.8, mode=mode, schedule=schedule, scope=scope)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    wanted, before = schedule.at(0, 0.8) if schedule.due(0) else 0.0, 0.0
    for step in range(1, 20):
        train(model, optimizer, step)
        changed = held.step()
        assert changed == schedule.due(step)
        wanted = schedule.at(step, 0.8) if changed else wanted
        sizes = {name: mask.numel() for name, mask in held.masks.items()}
        zeros = {name: int((dict(model.named_parameters())[name] == 0).sum()) for name in sizes}
        if scope == "layer":
            assert zeros == {name: math.floor(wanted * size + 0.5) for name, size in sizes.items()}
        else:
            assert sum(zeros.values()) == math.floor(wanted * sum(sizes.values()) + 0.5)
        assert held.sparsity >= before
        before = held.sparsity
    assert wanted == 0.8


def test_each_layer_follows_its_own_target() -> None:
    model = network()
    held = sec.sparsify(model, {"0": 0.5, "2": 0.9}, schedule=sec.Gradual(begin=0, end=4, every=1))
    for step in range(1, 5):
        held.step()
        for name, final in (("0.weight", 0.5), ("2.weight", 0.9)):
            mask = held.masks[name]
            goal = final * (1 - (1 - step / 4) ** 3)
            assert int((~mask).sum()) == math.floor(goal * mask.numel() + 0.5)


def test_hard_masks_nest_and_dense_ones_need_not() -> None:
    for mode in ("hard", "dense-update"):
        model = network()
        held = sec.sparsify(model, 0.6, mode=mode, schedule=sec.Constant(every=2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        back = 0
        for step in range(20):
            before = held.masks
            train(model, optimizer, step)
            held.step()
            back += sum(int((mask & ~before[name]).sum()) for name, mask in held.masks.items())
        assert (back > 0) == (mode == "dense-update")


def test_hard_masks_follow_the_magnitudes_of_now() -> None:
    """Of what is still there the smallest go, as training has left them; by what they began with, others would."""
    model = network()
    held = sec.sparsify(model, 0.8, schedule=sec.Gradual(begin=0, end=12, every=3))
    optimizer, updates = torch.optim.SGD(model.parameters(), lr=0.5), 0
    for step in range(1, 13):
        train(model, optimizer, step)
        before, size = held.masks, {name: model.get_parameter(name).detach().abs() for name in held.masks}
        if held.step():
            updates += 1
            for name, mask in held.masks.items():
                assert float(size[name][before[name] & ~mask].max()) <= float(size[name][mask].min())
    assert updates == 4
    assert not any(torch.equal(mask, held.masks[name]) for name, mask in sec.masks(network(), 0.8).items())


def test_a_weight_that_grows_past_the_threshold_comes_back_with_straight_through_only() -> None:
    """Magnitudes .1 .2 .3 .4 have the mean .25: the first two go. Gradients push the first one to .9."""
    for mode, expected in (("dense-update", [1, 0, 0, 0]), ("hard", [0, 0, 0, 1])):
        layer = nn.Linear(4, 1, bias=False)
        layer.weight.data = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        held = sec.sparsify(layer, sec.Threshold("mean_std", 0.0), mode=mode, schedule=sec.Constant())
        assert held.masks["weight"].int().tolist() == [[0, 0, 1, 1]]
        layer(torch.tensor([[-0.8, 0.0, 0.0, 0.0]])).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=1.0).step()
        held.step()
        assert held.masks["weight"].int().tolist() == [expected]
        if mode == "dense-update":
            assert layer.weight[0, 0].item() == pytest.approx(0.9)


def test_patterns_hold_at_every_step() -> None:
    model = network()
    held = sec.sparsify(model, pattern="2:4", mode="dense-update", schedule=sec.Constant(every=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(6):
        train(model, optimizer, step)
        held.step()
        for mask in held.masks.values():
            blocks = nn.functional.pad(mask, (0, -mask.shape[1] % 4)).reshape(-1, 4).sum(dim=1)
            assert int(blocks.max()) == 2


@pytest.mark.parametrize("pattern", ["rows(4)", "block(3,2)", "block(1,99)"])
def test_groups_die_whole_under_a_schedule(pattern: str) -> None:
    model = network()
    held = sec.sparsify(model, 0.7, pattern=pattern, schedule=sec.Gradual(begin=0, end=6, every=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    form = sec.sparsity.parse_pattern(pattern)
    for step in range(8):
        train(model, optimizer, step)
        held.step()
        for mask in held.masks.values():
            grouping = form.groups(tuple(mask.shape))
            assert torch.equal(grouping.spread(grouping.kept(mask)), mask)


@pytest.mark.parametrize("begin", [0, 2])
def test_a_schedule_moves_the_factor_of_a_threshold(begin: int) -> None:
    """Sigma on the curve from its start to its end, of all of W each time; no start, no way."""
    model, schedule = network(), sec.Gradual(begin, begin + 8, every=2)
    moving, still = sec.Threshold("mean_std", 1.0, start=-1.0), sec.Threshold("std", 0.5)
    held = sec.sparsify(model, {"0": moving, "2": still}, mode="dense-update", schedule=schedule)
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(begin + 11):
        dense = {name: tensor.clone() for name, tensor in held.dense.items()}
        if schedule.due(step):
            size = dense["0.weight"].double().abs()
            sigma = 1 - 2 * (1 - (step - begin) / 8) ** 3
            kept = size >= size.mean() + sigma * size.std(correction=0)
            assert torch.equal(held.masks["0.weight"], kept)
            flat = dense["2.weight"].double()
            assert torch.equal(held.masks["2.weight"], flat.abs() >= 0.5 * flat.std(correction=0))
            seen.append(sigma)
        elif step < begin:
            assert held.sparsity == 0
        train(model, optimizer, step)
        held.step()
    assert seen == [-1.0, *sorted(seen)[1:-1], 1.0] and len(seen) == 5
    assert held.settled() and not held.settled(begin + 7)


def test_state_refuses_another_sparsifier() -> None:
    held, other = sec.sparsify(network(), 0.5), sec.sparsify(network(), {"0": 0.5})
    with pytest.raises(sec.InputError, match="another sparsifier"):
        other.load_state_dict(held.state_dict())
    with pytest.raises(sec.InputError, match="cannot be computed anew"):
        sec.sparsify(model := network(), sec.masks(model, 0.5)).update()


def test_state_is_tensors_and_masks_are_plain() -> None:
    for value in sec.sparsify(network(), 0.5, mode="dense-update").state_dict().values():
        assert type(value) is Tensor


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (sec.OneShot, {"begin": -1}),
        (sec.Iterative, {"every": 0}),
        (sec.Iterative, {"every": 1, "rounds": 0}),
        (sec.Gradual, {"begin": 5, "end": 5}),
        (sec.Gradual, {"begin": 0, "end": 5, "initial": 1.0}),
        (sec.Gradual, {"begin": 0, "end": 5, "power": 0}),
        (sec.Gradual, {"begin": 0.5, "end": 5}),
        (sec.Constant, {"every": True}),
    ],
)
def test_schedules_that_make_no_sense(kind: Any, given: dict[str, Any]) -> None:
    with pytest.raises(sec.InputError):
        kind(**given)
