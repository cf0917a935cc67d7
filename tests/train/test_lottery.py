"""Lottery tickets: how much is kept, that masks nest and rewinding is exact, the controls, resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train.networks import convolutional, images, loader, plain, points, same, state

import secateurs as sec
from secateurs.sparsity.masks import density
from secateurs.sparsity.remaining import prune_remaining, shuffled
from secateurs.train.lottery import Draw, Lottery

pytestmark = pytest.mark.medium

DATA, VALIDATION = loader(points(60)), loader(points(30, seed=5), shuffle=False)
TRAIN = sec.FineTune(epochs=3, lr=0.1, progress=False)


def drawn(model: nn.Module, **more: Any) -> sec.Lottery:
    given: dict[str, Any] = {
        "train": TRAIN, "validation": VALIDATION, "rounds": 3, "evaluate": sec.accuracy(VALIDATION)
    }  # fmt: skip
    return sec.lottery(model, DATA, **{**given, **more})


@pytest.mark.parametrize(("rounds", "percent"), [(3, 51.3), (7, 21.1), (15, 3.6)])
def test_what_rounds_keep_of_lenet(rounds: int, percent: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for _ in range(rounds):
        masks = prune_remaining(weights, masks, {"fc1": 0.2, "fc2": 0.2, "fc3": 0.1})
    assert round(100 * density(masks), 1) == percent
    assert density(masks) == pytest.approx((265200 * 0.8**rounds + 1000 * 0.9**rounds) / 266200, abs=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_the_smallest_of_what_remains_go(together: bool) -> None:
    weights = {"a": torch.tensor([[1.0, -5.0], [0.1, 3.0]]), "b": torch.tensor([[-2.0, 9.0, 4.0]])}
    masks = {"a": torch.tensor([[True, True], [False, True]]), "b": torch.ones(1, 3, dtype=torch.bool)}
    found = prune_remaining(weights, masks, {"a": 0.34, "b": 0.34}, together=together)
    assert found["a"].tolist() == [[False, True], [False, True]]
    assert found["b"].tolist() == [[False, True, True]]
    weights["b"] *= 10
    if together:
        found = prune_remaining(weights, masks, {"a": 0.34, "b": 0.34}, together=True)
        assert found["a"].tolist() == [[False, True], [False, False]]
        assert bool(found["b"].all())


def test_random_masks_keep_as_many_of_every_layer_elsewhere() -> None:
    masks = {"a": torch.rand(20, 30) > 0.7, "b": torch.rand(5, 8) > 0.2}
    other = shuffled(masks, 3)
    assert {name: int(mask.sum()) for name, mask in other.items()} == {n: int(m.sum()) for n, m in masks.items()}
    assert not torch.equal(other["a"], masks["a"])
    assert all(torch.equal(mask, other[name]) for name, mask in shuffled(masks, 3).items())
    assert not torch.equal(other["a"], shuffled(masks, 4)["a"])


def test_masks_nest_and_rewinding_is_exact() -> None:
    model = plain(width=20)
    before = state(model)
    result = drawn(model, seeds=(4, 9), controls=())
    assert same(state(model), before)
    assert {name: tuple(item) for name, item in result.masks.items()}.keys() == {4, 9}
    for seed, masks in result.masks.items():
        start = result.starts[seed]
        assert all(torch.equal(start[name], before[name]) for name in before) == (seed == 4)
        counts = []
        for number, mine in enumerate(masks):
            if number:
                assert not any(bool((mine[name] & ~masks[number - 1][name]).any()) for name in mine)
            counts.append({name: int(mask.sum()) for name, mask in mine.items()})
            ticket = result.ticket(number, seed)
            for name, item in ticket.named_parameters():
                kept = mine.get(name, torch.ones_like(item, dtype=torch.bool))
                assert torch.equal(item[kept], start[name][kept])
                assert not item[~kept].any()
                assert not torch.signbit(item[~kept]).any()
        assert counts == [  # n - floor(rate n + .5)
            {"0.weight": 80, "2.weight": 60}, {"0.weight": 64, "2.weight": 54}, {"0.weight": 51, "2.weight": 49},
            {"0.weight": 41, "2.weight": 44},
        ]  # fmt: skip


def test_a_round_by_hand() -> None:
    """Train, take the smallest, rewind, train with masks held: the second draw is that training."""
    model = plain(width=20)
    result = drawn(model, rounds=1, controls=())
    dense = sec.finetune(model, DATA, TRAIN)
    mask = {}
    for name, share in (("0.weight", 0.2), ("2.weight", 0.1)):
        size = dense.model.get_parameter(name).detach().abs()
        mask[name] = size > size.flatten().sort().values[int(share * size.numel()) - 1]
    assert same(dict(result.masks[0][1]), mask)
    ticket = result.ticket(1)
    losses: list[float] = []
    metrics: list[float] = []

    def watch(net: nn.Module) -> float:
        with torch.no_grad():
            rows = [nn.functional.cross_entropy(net(x), y, reduction="sum") for x, y in VALIDATION]
        losses.append(float(torch.stack(rows).sum()) / 30)
        metrics.append(sec.accuracy(VALIDATION)(net))
        return 0.0

    sec.finetune(ticket, DATA, TRAIN, evaluate=watch, masks=mask)
    draw = result.draws[1]
    best = min(range(3), key=losses.__getitem__)
    assert (draw.stop, draw.metric, draw.metric_end) == (8 * (best + 1), metrics[best], metrics[-1])
    assert draw.loss == pytest.approx(losses[best], rel=1e-5)
    assert draw.kept == pytest.approx(118 / 140)


def test_late_rewinding_takes_the_weights_of_that_step() -> None:
    data = loader(images(40))
    validation = loader(images(20, seed=7), shuffle=False)
    common: dict[str, Any] = {
        "train": sec.FineTune(epochs=3, lr=0.05, progress=False), "validation": validation, "rounds": 2,
        "evaluate": sec.accuracy(validation), "controls": (),
    }  # fmt: skip
    model = convolutional()
    late = sec.lottery(model, data, **common, rewind_to=7)
    noted = sec.finetune(model, data, common["train"], snapshot=7).snapshot
    assert noted is not None
    assert same(dict(late.starts[0]), noted)
    assert not torch.equal(noted["1.running_mean"], model.get_buffer("1.running_mean"))
    assert set(late.masks[0][2]) == {"0.weight", "4.weight", "8.weight"}
    ticket = state(late.ticket(2))
    assert ticket.keys() == noted.keys()
    for name, item in ticket.items():  # biases and norms whole, with their statistics
        assert torch.equal(item, noted[name] * late.masks[0][2].get(name, 1)), name
    epoch = sec.finetune(model, data, sec.FineTune(epochs=1, lr=0.05, schedule="constant", progress=False), snapshot=5)
    assert epoch.snapshot is not None
    assert same(dict(sorted(epoch.snapshot.items())), dict(sorted(state(epoch.model).items())))
    end = sec.lottery(model, data, **common, rewind_to=15)  # k = j: fine-tuning from trained weights
    trained = sec.finetune(model, data, common["train"])
    assert same(dict(sorted(end.starts[0].items())), dict(sorted(state(trained.model).items())))


def test_controls_are_what_they_say() -> None:
    seen: list[dict[str, Tensor]] = []

    def note(net: nn.Module) -> float:
        seen.append(state(net))
        return 0.0

    model = plain(width=20)
    still = sec.FineTune(epochs=1, lr=1e-12, momentum=0.0, progress=False)
    result = drawn(model, train=still, evaluate=note, rounds=2, control_rounds=[2])
    kinds = [(draw.round, draw.kind) for draw in result.draws]
    assert kinds == [(0, "ticket"), (1, "ticket"), (2, "ticket"), (2, "reinit"), (2, "random_mask")]
    ticket, reinit, random_mask = seen[4], seen[6], seen[8]  # each is judged twice: at its best, at its end
    mask = result.masks[0][2]["0.weight"]
    assert torch.equal(ticket["0.weight"] != 0, mask)
    assert torch.equal(reinit["0.weight"] != 0, mask)
    assert not torch.allclose(reinit["0.weight"], ticket["0.weight"])
    other = random_mask["0.weight"] != 0
    assert int(other.sum()) == int(mask.sum())
    assert not torch.equal(other, mask)
    assert torch.allclose(random_mask["0.weight"][other], model[0].weight[other])
    assert [draw.kept for draw in result.draws[2:]] == [result.draws[2].kept] * 3
    assert "reinit" in str(result)
    assert len(result.of("ticket", 2)) == 1


def test_an_output_layer_that_is_excluded_leaves_no_other_in_its_place() -> None:
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))
    result = drawn(model, rounds=1, controls=(), exclude=["4"])
    assert {name: int(mask.sum()) for name, mask in result.masks[0][1].items()} == {"0.weight": 64, "2.weight": 160}


def test_another_output_layer_loses_half_as_much() -> None:
    result = drawn(plain(width=20), rounds=1, controls=(), output="0")
    assert {name: int(mask.sum()) for name, mask in result.masks[0][1].items()} == {"0.weight": 72, "2.weight": 48}


def test_the_table_says_mean_and_range_over_the_seeds() -> None:
    draws = [
        Draw(seed, number, kind, 0.512 if number else 1.0, stop, 0.1, metric, 0.5 + metric / 4)
        for seed, (stop, metric) in enumerate([(10, 0.25), (30, 0.75), (50, 1.0)])
        for number, kind in ((0, "ticket"), (1, "ticket"))
    ]
    text = str(Lottery((*draws, Draw(0, 1, "reinit", 0.512, 8, 0.2, 0.5, 0.5)), {}, {}, plain()))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert rows[1:] == [
        "0 100.0% dense 30 (10-50) 0.6667 (0.2500-1.0000) 0.6667",
        "1 51.2% ticket 30 (10-50) 0.6667 (0.2500-1.0000) 0.6667",
        "1 51.2% reinit 8 (8-8) 0.5000 (0.5000-0.5000) 0.5000",
    ]


def test_tickets_and_draws_that_are_not_there() -> None:
    result = drawn(plain(), rounds=1, controls=())
    for wrong in ({"round": 2}, {"round": -1}, {"round": 1, "seed": 5}):
        with pytest.raises(sec.InputError, match="no ticket of round"):
            result.ticket(**wrong)
    with pytest.raises(sec.UnknownNameError, match="did you mean 'ticket'"):
        result.of("tickt", 1)
    assert result.of("reinit", 1) == ()


def test_global_scope_prunes_layers_unequally() -> None:
    result = drawn(plain(width=20), scope="global", rounds=2, controls=())
    masks = result.masks[0][2]
    assert sum(int(mask.sum()) for mask in masks.values()) == 90  # 140, 112, 90
    assert masks["0.weight"].float().mean() != masks["2.weight"].float().mean()


SCRIPT = """
    import os, signal, sys
    sys.path[:0] = {path!r}
    import torch, secateurs as sec
    from train.networks import convolutional, images, loader
    torch.set_num_threads(1)
    folder, stop = sys.argv[1], int(sys.argv[2])
    data, validation, calls = loader(images(40)), loader(images(20, seed=7), shuffle=False), [0]
    right = sec.accuracy(validation)
    def evaluate(model):
        calls[0] += 1
        if calls[0] == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return right(model)
    train = sec.FineTune(epochs=2, optimizer="adam", lr=0.01, progress=False)
    result = sec.lottery(convolutional(), data, train=train, validation=validation, evaluate=evaluate, rounds=2,
                         rewind_to=3, seeds=(1, 2), folder=folder)
    print(result.draws)
    print([[{{n: m.int().tolist() for n, m in masks.items()}} for masks in mine] for mine in result.masks.values()])
"""


def test_killed_and_started_again_it_ends_the_same(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT.format(path=[str(here.parent), str(here.parent.parent / "src")])))

    def run(folder: str, stop: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(tmp_path / folder), str(stop)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole = run("whole", 0)
    assert whole.returncode == 0, whole.stderr
    for stop in (2, 7):
        assert run("broken", stop).returncode == -signal.SIGKILL
    again = run("broken", 0)
    assert again.stdout == whole.stdout


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"rate": 0.0}, "shares above 0"),
        ({"rounds": 0}, "one round"),
        ({"scope": "globl"}, "'global' with one rate"),
        ({"scope": "global", "output_rate": 0.1}, "one rate"),
        ({"rewind_to": 25}, "from 0 to 24"),
        ({"controls": ["reinitialised"]}, "some of reinit"),
        ({"rewind_to": "1 epoch"}, "from 0 to 24"),
        ({"rewind_to": 1.5}, "from 0 to 24"),
        ({"control_rounds": [4]}, "rounds from 1 to 3"),
        ({"exclude": "0"}, "give a list"),
        ({"evaluate": None}, "model -> float"),
        ({"seeds": []}, "different seeds"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"output": "3"}, "no weight named"),
        ({"train": sec.FineTune(sparsity=sec.Sparsity(0.5))}, "leave it out"),
    ],
)
def test_bad_input(more: dict[str, Any], match: str) -> None:
    with pytest.raises(sec.InputError, match=match):
        drawn(plain(), **more)


def test_a_module_that_cannot_draw_new_weights_is_refused() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model = nn.Sequential(plain(), Scale())
    with pytest.raises(sec.InputError, match="cannot draw new random weights"):
        drawn(model, rounds=1)

    def renew(net: nn.Module) -> None:
        net[0][0].reset_parameters()  # type: ignore[index]

    assert len(drawn(model, rounds=1, init=renew).draws) == 4
