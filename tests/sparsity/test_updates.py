"""Surgery and regrowth: hysteresis, chance that decays, counts that stay; by hand and by a second way."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from sparsity.held_network import network, train
from torch import Tensor, nn

import secateurs as sec
from secateurs.sparsity import GradientRegrowth, RandomRegrowth, Surgery


def layer(values: list[float]) -> nn.Linear:
    made = nn.Linear(len(values), 1, bias=False)
    made.weight.data = torch.tensor([values])
    return made


def write(held: sec.Sparsifier, values: list[float]) -> list[int]:
    """The masks after the dense weights became these, by an optimizer step."""
    model = held.model
    model.weight.grad = held.dense["weight"] - torch.tensor([values])  # type: ignore[operator]
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    torch.testing.assert_close(held.dense["weight"], torch.tensor([values]))
    held.step()
    found: list[list[int]] = held.masks["weight"].int().tolist()
    return found[0]


def test_surgery_by_hand() -> None:
    """Mean .25, deviation .1118 and c = 0 give t = .25: below .225 a weight goes, above .275 it returns."""
    held = sec.sparsify(
        layer([0.1, -0.2, 0.3, -0.4]), mode="dense-update", update=Surgery(c=0.0, gamma=0.0), schedule=sec.Constant()
    )
    assert held.masks["weight"].int().tolist() == [[0, 0, 1, 1]]
    assert write(held, [0.1, -0.27, 0.23, -0.4]) == [0, 0, 1, 1]  # inside (a, b] nothing toggles
    assert write(held, [0.1, -0.23, 0.27, -0.4]) == [0, 0, 1, 1]
    assert write(held, [0.1, -0.28, 0.22, -0.4]) == [0, 1, 0, 1]  # beyond, it does
    assert write(held, [9.0, 0.25, 0.25, 0.25]) == [1, 1, 0, 1]  # t stays that of the beginning


def test_the_ends_of_the_band_of_surgery() -> None:
    """Of 1 and 3, t = 2, a = 1 and b = 3: what is at a goes, what is at b stays out."""
    rule = Surgery(c=0.0, below=0.5, above=1.5, gamma=0.0)
    held = sec.sparsify(layer([1.0, -3.0]), mode="dense-update", update=rule, schedule=sec.Constant())
    assert held.masks["weight"].int().tolist() == [[0, 1]]
    assert write(held, [-3.0, 1.25]) == [0, 1]
    assert write(held, [3.0, -1.0]) == [0, 0]
    assert write(held, [-3.25, 3.0]) == [1, 0]


def test_the_threshold_of_surgery_is_never_below_zero() -> None:
    """Of .5 and 1: mean .75, deviation .25, so that c = -9 gives 0: a weight of zero goes, and comes back with any."""
    held = sec.sparsify(
        layer([0.0, -0.5, 1.0]), mode="dense-update", update=Surgery(c=-9.0, gamma=0.0), schedule=sec.Constant()
    )
    assert held.rule.memory()["weight"].item() == 0.0
    assert held.masks["weight"].int().tolist() == [[0, 1, 1]]
    assert write(held, [0.125, 0.0, 1.0]) == [1, 0, 1]


def test_what_surgery_takes_where_nothing_is_said() -> None:
    assert Surgery() == Surgery(c=1.0, below=0.9, above=1.1, gamma=1e-4, power=1.0, biases=False, fixed=True)


@pytest.mark.filterwarnings("ignore:Nothing is left")
def test_the_threshold_of_surgery_pools_weights_and_bias() -> None:
    """Of .1 .2 .3 .4 and the bias 1.0: mean .4, deviation .3162; a bias of 0 does not count."""
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 1))
    for value, expected in ((1.0, 0.4 + 0.5 * 0.31623), (0.0, 0.25 + 0.5 * 0.11180)):
        model[0].weight.data, model[0].bias.data = torch.tensor([[0.1, -0.2, 0.3, -0.4]]), torch.tensor([value])
        rule = Surgery(c={"0": 0.5, "1.weight": 0.0})
        with sec.sparsify(model, mode="dense-update", update=rule, schedule=sec.Constant()) as held:
            assert held.rule.memory()["0.weight"].item() == pytest.approx(expected, abs=1e-4)
        assert not rule.thresholds, "the caller's own object stays as it is"


def test_biases_come_and_go_by_the_thresholds_of_their_weights() -> None:
    """Of .2 .2 .6 and biases .3 .2: mean .3 = t, so that .27 and below goes and what is above .33 returns."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[0.2, -0.2, 0.6], [0.0, 0.0, 0.0]])
    model[0].bias.data = torch.tensor([0.3, -0.2])
    model[1].weight.data.fill_(1.0)
    rule = Surgery(c=0.0, gamma=0.0, biases=True)
    with sec.sparsify(model, mode="dense-update", update=rule, schedule=sec.Constant()) as held:
        assert sorted(held.masks) == ["0.bias", "0.weight", "1.weight"]
        assert held.rule.memory()["0.weight"].item() == pytest.approx(0.3)
        assert held.masks["0.bias"].tolist() == [True, False]
        assert model[0].bias.tolist() == pytest.approx([0.3, 0.0])
        assert held.masks["0.weight"].int().tolist() == [[0, 0, 1], [0, 0, 0]]
        optimizer = torch.optim.SGD([model[0].bias], lr=1.0)
        for step, after in ((0.1, [False, False]), (0.05, [False, True])):  # .2 and -.3, then .15 and -.35
            optimizer.zero_grad()
            (model(torch.zeros(1, 3)) * step).sum().backward()
            optimizer.step()
            held.step()
            assert held.masks["0.bias"].tolist() == after
        again = sec.sparsify(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False)), mode="dense-update",
                             update=rule, schedule=sec.Constant())  # fmt: skip
        again.load_state_dict(held.state_dict())
        assert torch.equal(again.dense["0.bias"], held.dense["0.bias"])
    plain = sec.sparsify(model, mode="dense-update", update=Surgery(c=0.0), schedule=sec.Constant())
    assert sorted(plain.masks) == ["0.weight", "1.weight"], "off unless asked for"


def test_surgery_without_hysteresis_begins_as_the_threshold_does() -> None:
    model = nn.Linear(40, 30, bias=False)
    for c in (-0.5, 0.0, 1.0):
        expected = sec.masks(model, sec.Threshold("mean_std", c))["weight"]
        rule = Surgery(c={"weight": c}, below=1, above=1)
        other = nn.Linear(40, 30, bias=False)
        held = sec.sparsify(other, mode="dense-update", update=rule, schedule=sec.OneShot(9))
        held.model.load_state_dict(model.state_dict())
        held.update()
        assert torch.equal(held.masks["weight"], expected)


SIGMA = {"conv.weight": 0.3, "deep.weight": -0.5, "head.weight": 0.0}


def straight(target: Any = None, seed: int = 0, **options: Any) -> sec.Sparsifier:
    """The small network held straight-through, with masks anew at every second step."""
    return sec.sparsify(network(seed), target, mode="dense-update", schedule=sec.Constant(every=2), **options)


def masks_over(held: sec.Sparsifier, start: int, end: int) -> list[dict[str, Tensor]]:
    """The masks before, and after each step of training with weight decay."""
    optimizer = torch.optim.SGD(held.model.parameters(), lr=0.2, weight_decay=1e-3)
    found = [dict(held.masks)]
    for step in range(start, end):
        train(held.model, optimizer, 1, start=step)
        held.step()
        found.append(dict(held.masks))
    return found


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(item, other[name]) for name, item in one.items())


def changes(masks: list[dict[str, Tensor]]) -> tuple[int, int]:
    """How many weights came back from one moment to the next, and how many went."""
    pairs = [(before[name], after[name]) for before, after in itertools.pairwise(masks) for name in after]
    return sum(int((new & ~old).sum()) for old, new in pairs), sum(int((old & ~new).sum()) for old, new in pairs)


def test_surgery_with_thresholds_found_anew_is_the_threshold_of_mean_and_deviation() -> None:
    """The layers have biases, which do not count, and weights that are zero from the start, which do."""
    rule = Surgery(c=SIGMA, below=1, above=1, gamma=0, fixed=False)
    known = straight({name: sec.Threshold("mean_std", sigma) for name, sigma in SIGMA.items()})
    others = [straight(update=rule), straight(update=replace(rule, fixed=True))]
    for held in (known, *others):
        with torch.no_grad():
            held.dense["head.weight"][:, :5] = 0.0
        held.update()
    expected = masks_over(known, 0, 12)
    found, fixed = (masks_over(held, 0, 12) for held in others)
    assert all(alike(one, two) for one, two in zip(found, expected, strict=True))
    assert alike(others[0].dense, known.dense), "to the same bits"
    assert min(changes(found)) > 5
    assert not all(alike(one, two) for one, two in zip(fixed, expected, strict=True))
    for name, sigma in SIGMA.items():
        size = known.dense[name].abs().double()
        expected_t = float(size.mean()) + sigma * float(size.std(correction=0))
        assert others[0].rule.memory()[name].item() == pytest.approx(expected_t)


@pytest.mark.parametrize("fixed", [True, False])
def test_surgery_in_training_goes_on_from_its_state_to_the_same_bits(fixed: bool) -> None:
    rule = Surgery(c=0.2, gamma=0.3, fixed=fixed)
    held, again = straight(update=rule, seed=3), straight(update=rule, seed=4)
    first = held.rule.memory()
    masks_over(held, 0, 5)
    now = held.rule.memory()
    assert set(now) == set(held.masks)
    assert all(torch.equal(now[name], first[name]) == fixed for name in now)
    again.model.load_state_dict(held.model.state_dict())
    again.load_state_dict(held.state_dict())
    assert alike(again.rule.memory(), now)
    expected, found = masks_over(held, 5, 15), masks_over(again, 5, 15)
    assert min(changes(expected)) > 1
    assert all(alike(one, two) for one, two in zip(expected, found, strict=True))
    assert alike(held.dense, again.dense)


def test_chance_decays_as_it_should_and_is_seeded() -> None:
    def updates(seed: int, gamma: float, power: float) -> list[bool]:
        held = sec.sparsify(layer([0.1, 0.2, 0.3, 0.4]), mode="dense-update", seed=seed, schedule=sec.Constant(),
                            update=Surgery(c=0.0, below=1, above=1, gamma=gamma, power=power))  # fmt: skip
        changed = []
        for step in range(60):
            before = held.masks["weight"]
            write(held, [0.1, 0.2, 0.3, 0.4] if step % 2 else [0.4, 0.3, 0.2, 0.1])
            changed.append(not torch.equal(before, held.masks["weight"]))
        return changed

    assert sum(updates(0, 1.0, 60.0)) == 0  # never after the beginning
    assert sum(updates(1, 0.0, 1.0)) == 60  # always
    draws = torch.Generator().manual_seed(3)
    rising, expected = True, []
    torch.rand((), generator=draws, dtype=torch.float64)  # the first update is certain
    for step in range(60):
        made = float(torch.rand((), generator=draws, dtype=torch.float64)) < 1 / math.sqrt(1 + 0.2 * (step + 1))
        expected.append(made and rising != bool(step % 2))
        rising = bool(step % 2) if made else rising
    assert updates(3, 0.2, 0.5) == expected
    assert 0 < sum(expected) < 60


def test_surgery_goes_on_from_its_state() -> None:
    def build(values: list[float]) -> sec.Sparsifier:
        return sec.sparsify(layer(values), mode="dense-update", update=Surgery(c=0.0), schedule=sec.Constant())

    first, second = build([0.1, -0.2, 0.3, -0.4]), build([5.0, 6.0, 7.0, 8.0])
    second.load_state_dict(first.state_dict())
    for values in ([0.1, -0.28, 0.22, -0.4], [0.3, 0.1, 0.26, 0.2]):
        assert write(first, values) == write(second, values)


@pytest.mark.parametrize("update", [RandomRegrowth(end=10, fraction=0.4), GradientRegrowth(end=10, fraction=0.4)])
def test_regrowth_keeps_counts_and_lets_the_smallest_go(update: sec.sparsity.updates.Update) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6))
    held = sec.sparsify(model, 0.75, distribution="erk", update=update, schedule=sec.Constant(every=2, end=10))
    counts = {name: int(mask.sum()) for name, mask in held.masks.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(1, 13):
        optimizer.zero_grad()
        model(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()
        before, values = held.masks, {name: item.clone() for name, item in held.dense.items()}
        share = 0.2 * (1 + math.cos(math.pi * step / 10))
        assert held.step() == (step % 2 == 0 and step <= 10)
        for name, mask in held.masks.items():
            assert int(mask.sum()) == counts[name]
            gone, new = before[name] & ~mask, mask & ~before[name]
            expected = math.floor(share * counts[name] + 0.5) if step % 2 == 0 and step <= 10 else 0
            assert int(gone.sum()) == int(new.sum()) == expected
            size = values[name].abs()
            if expected:
                assert float(size[gone].max()) <= float(size[before[name] & mask].min())
                assert not bool(dict(model.named_parameters())[name].detach()[new].any()), "they begin at zero"


def test_gradients_of_masked_weights_say_what_comes_back() -> None:
    model = layer([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    held = sec.sparsify(model, 0.5, update=GradientRegrowth(end=1000, fraction=0.5), schedule=sec.Constant(every=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([[0.1, 5.0, 0.2, 4.0, 9.0, 9.0, 9.0, 9.0]])).sum().backward()
        optimizer.step()
        assert not model.weight.grad[~held.masks["weight"]].any()  # type: ignore[index]
        held.step()
    assert held.masks["weight"].int().tolist() == [[0, 1, 0, 1, 0, 0, 1, 1]]
    assert model.weight.tolist() == [[0, 0, 0, 0, 0, 0, 7, 8]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "hard", "update": Surgery()}, 'give mode="dense-update"'),
        ({"sparsity": 0.5, "update": Surgery()}, "leave out `sparsity`"),
        ({"pattern": "rows(2)", "update": Surgery()}, "the pattern is `rows.2.`"),
        ({"update": Surgery(), "schedule": None}, r"Constant\(end"),
        ({"update": Surgery(c={"0": 1.0})}, "`2.weight` has no c"),
        ({"update": Surgery(c={"0": 1.0, "hed": 1.0})}, "no weight named 'hed'"),
        ({"sparsity": 0.5, "pattern": "simd(4)", "update": RandomRegrowth(end=9)}, "single weights"),
        ({"sparsity": 0.5, "update": RandomRegrowth(end=9), "schedule": None}, "schedule=Constant"),
        ({"sparsity": 0.5, "update": GradientRegrowth(end=9), "schedule": sec.Gradual(0, 9)}, "schedule=Constant"),
    ],
)
def test_what_an_update_cannot_do_is_refused(options: dict[str, Any], match: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    given: dict[str, Any] = {"mode": "dense-update", "schedule": sec.Constant(), **options}
    with pytest.raises(sec.InputError, match=match):
        sec.sparsify(model, **given)
    sec.sparsify(model, 0.5)  # and nothing is held


def test_what_makes_no_sense_is_refused() -> None:
    for make in (
        lambda: Surgery(below=1.2), lambda: Surgery(gamma=-1), lambda: Surgery(c={"0": math.nan}),
        lambda: RandomRegrowth(end=0), lambda: RandomRegrowth(end=5, fraction=1.0),
    ):  # fmt: skip
        with pytest.raises(sec.InputError):
            make()
    held = sec.sparsify(layer([1.0, 2.0]), 0.5, update=GradientRegrowth(end=5), schedule=sec.Constant())
    with pytest.raises(sec.InputError, match="no gradient to regrow by"):
        held.step()
