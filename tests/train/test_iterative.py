"""Prune and retrain in rounds: exact counts, thresholds on what is left, dropout, phases, resume."""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train.networks import convolutional, images, loader, plain, points, same, state

import secateurs as sec

pytestmark = pytest.mark.medium

DATA = loader(points(60))
RETRAIN = sec.FineTune(epochs=2, lr=0.05, weight_decay=0.01, progress=False)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return sec.finetune(plain(width=30), DATA, sec.FineTune(epochs=10, lr=0.2, progress=False)).model


def test_every_round_leaves_the_same_share(trained: nn.Module) -> None:
    before, seen = state(trained), []
    evaluate = sec.accuracy(DATA)
    result = sec.iterative_prune(
        trained, DATA, sparsity=0.9, rounds=4, evaluate=evaluate, retrain=RETRAIN, on_round=seen.append
    )
    assert same(state(trained), before)
    assert tuple(seen) == result.rounds
    for number, row in enumerate(result.rounds, start=1):
        share = 1 - (1 - 0.9) ** (number / 4)
        removed = math.floor(share * 120 + 0.5) + math.floor(share * 90 + 0.5)
        assert (row.kept, row.sparsity) == (210 - removed, pytest.approx(removed / 210))
    assert result.rounds[-1].kept == 21
    assert result.sparsity == pytest.approx(0.9)
    assert result.baseline == evaluate(trained)
    assert result.rounds[-1].metric == evaluate(result.model)
    for name, mask in result.masks.items():
        assert torch.equal(result.model.get_parameter(name) != 0, mask)
        assert not torch.signbit(result.model.get_parameter(name)[~mask]).any()
    assert "90.0%" in str(result)


def test_parameters_and_macs_of_every_round() -> None:
    """Per row of inputs, whatever the batch; the whole by shape, and what weights that are not zero do."""
    model, data = convolutional(), loader(images(40))
    result = sec.iterative_prune(model, data, sparsity=0.75, rounds=2, evaluate=lambda _: 0.0, retrain=RETRAIN)
    one = next(iter(data))[0][:1]
    assert result.macs == sec.count(model, one).macs
    assert result.parameters == sum(item.numel() for item in model.parameters())
    last = result.rounds[-1]
    assert last.macs == sec.cost.effective_macs(result.model, one).total.effective
    assert last.parameters == sum(int(item.count_nonzero()) for item in result.model.parameters())
    assert last.kept < last.parameters < result.rounds[0].parameters
    assert last.macs is not None and result.speed_up == result.macs / last.macs
    assert 3.5 < result.speed_up < 4.5
    assert result.compression == result.parameters / last.parameters
    assert f"{last.macs:,}" in str(result) and "learning rate 0.05, seed 0" in str(result)
    assert result.retrain == result.final == RETRAIN


def test_what_cannot_be_captured_has_no_macs() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) < 2:
                raise ValueError("one row is not enough")
            return self.fc(x)

    still = sec.FineTune(epochs=0, progress=False)
    result = sec.iterative_prune(Listed(), DATA, sparsity=0.5, evaluate=lambda _: 0.0, retrain=still)
    assert result.macs is None and result.speed_up is None and result.rounds[-1].macs is None
    assert result.rounds[-1].parameters == 6 + 3
    assert "MACs" in str(result)


def test_retraining_has_l2_unless_told_otherwise(trained: nn.Module) -> None:
    common: dict[str, Any] = {"sparsity": 0.6, "rounds": 2, "evaluate": lambda _: 0.0}
    chance = torch.get_rng_state()
    default = sec.iterative_prune(trained, DATA, **common)
    assert torch.equal(chance, torch.get_rng_state())
    l2 = sec.iterative_prune(trained, DATA, retrain=sec.FineTune(weight_decay=5e-4), **common)
    none = sec.iterative_prune(trained, DATA, retrain=sec.FineTune(), **common)
    assert same(state(default.model), state(l2.model))
    assert not same(state(default.model), state(none.model))
    assert sec.FineTune().weight_decay == 0


def test_masks_nest_and_the_rest_goes_on_from_its_values(trained: nn.Module) -> None:
    """`evaluate` sees the model right after pruning and after retraining, in turn."""
    models: list[nn.Module] = []

    def watch(model: nn.Module) -> float:
        models.append(copy.deepcopy(model))
        return 0.0

    sec.iterative_prune(trained, DATA, sparsity=0.8, rounds=3, evaluate=watch, retrain=RETRAIN)
    assert len(models) == 1 + 2 * 3
    for before, pruned in zip(models[::2], models[1::2], strict=False):
        for name in ("0.weight", "2.weight"):
            one, other = before.get_parameter(name), pruned.get_parameter(name)
            kept = other != 0
            assert torch.equal(one[kept], other[kept])
            assert not bool((kept & (one == 0)).any())
            assert bool(one[kept].abs().min() >= one[~kept].abs().max())
    for pruned, after in zip(models[1::2], models[2::2], strict=True):
        assert torch.equal(pruned[0].weight != 0, after[0].weight != 0)
        assert not torch.equal(pruned[0].weight, after[0].weight)


def test_one_round_is_one_shot(trained: nn.Module) -> None:
    result = sec.iterative_prune(trained, DATA, sparsity=0.7, rounds=1, evaluate=lambda _: 0.0, retrain=RETRAIN)
    expected = sec.masks(trained, 0.7)
    assert all(torch.equal(mask, expected[name]) for name, mask in result.masks.items())
    by_hand = sec.finetune(trained, DATA, sec.FineTune(**{**vars(RETRAIN), "sparsity": sec.Sparsity(0.7)}))
    assert same(state(result.model), state(by_hand.model))


def test_thresholds_look_at_what_is_left() -> None:
    """w = [1, -2, 3, -4] has the deviation 2.6926; then [3, -4] has 3.5: nothing of it goes at q = 1 but the 3."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    data = [(torch.zeros(2, 4), torch.zeros(2, 1))]
    still = sec.FineTune(epochs=0, loss="mse", progress=False)
    for rounds, expected in ((1, [False, False, True, True]), (2, [False, False, False, True])):
        result = sec.iterative_prune(
            model, data, sparsity=sec.Threshold("std", 1.0), rounds=rounds, evaluate=lambda _: 0.0, retrain=still
        )
        assert result.masks["0.weight"].tolist() == [expected]
    by_layer = sec.iterative_prune(
        plain(), DATA, sparsity={"0": 0.75, "2": sec.Threshold("value", 0.2)}, rounds=2, evaluate=lambda _: 0.0,
        retrain=sec.FineTune(epochs=0, progress=False),
    )  # fmt: skip
    assert int(by_layer.masks["0.weight"].sum()) == 6
    assert torch.equal(by_layer.masks["2.weight"], plain()[2].weight.abs() >= 0.2)


def test_thresholds_that_rise_one_per_round(trained: nn.Module) -> None:
    """SIMD-aware pruning: groups of four by their RMS, within what the round before left."""
    thresholds, before = [0.2, 0.4, 0.6], {name: tensor != 0 for name, tensor in state(trained).items()}
    models: list[dict[str, torch.Tensor]] = []

    def watch(model: nn.Module) -> float:
        models.append(state(model))
        return 0.5

    result = sec.iterative_prune(
        trained, DATA, sparsity=[sec.Threshold("value", t) for t in thresholds], pattern="simd(4)", evaluate=watch,
        retrain=RETRAIN,
    )  # fmt: skip
    assert len(result.rounds) == 3
    current = models[0]
    for threshold, pruned, retrained in zip(thresholds, models[1::2], models[2::2], strict=True):
        weight = current["2.weight"].double() * before["2.weight"]
        parts = weight.split(4, dim=1)
        rms = torch.cat([part.square().mean(1, keepdim=True).sqrt().expand_as(part) for part in parts], 1)
        expected = (rms >= threshold) & before["2.weight"]
        assert torch.equal(pruned["2.weight"] != 0, expected)
        current, before = retrained, {"2.weight": expected}
    assert torch.equal(result.masks["2.weight"], before["2.weight"])
    with pytest.raises(sec.InputError, match="give one for every round"):
        sec.iterative_prune(trained, DATA, sparsity=[], evaluate=watch)


def test_layers_without_a_target_in_a_later_round_keep_their_zeros(trained: nn.Module) -> None:
    first, second = (name for name, item in trained.named_parameters() if item.dim() > 1)
    result = sec.iterative_prune(
        trained, DATA, sparsity=[0.5, {first: 0.8}], evaluate=sec.accuracy(DATA), retrain=RETRAIN
    )
    for name, share in ((first, 0.8), (second, 0.5)):
        zeros = result.model.get_parameter(name) == 0
        assert int(zeros.sum()) == math.floor(share * zeros.numel() + 0.5)
        assert torch.equal(result.masks[name], ~zeros)


def test_the_last_round_trains_as_said(trained: nn.Module) -> None:
    """No retraining between, two epochs at the end: that is one-shot to the same masks."""
    none, last = sec.FineTune(epochs=0, progress=False), RETRAIN
    result = sec.iterative_prune(
        trained, DATA, sparsity=0.7, rounds=3, evaluate=lambda _: 0.0, retrain=none, final=last, scope="global"
    )
    once = sec.iterative_prune(
        trained, DATA, sparsity=0.7, rounds=1, evaluate=lambda _: 0.0, retrain=last, scope="global"
    )
    assert same(state(result.model), state(once.model))


def test_zeros_that_a_round_finds_stay_also_in_layers_that_have_their_first_target_then() -> None:
    model, data = plain(), DATA
    with torch.no_grad():
        model[0].weight[:, 1] = 0.0
        model[2].weight[:, :3] = 0.0
    found = sec.iterative_prune(
        model, data, sparsity=[{"0": 0.1}, {"2": 0.1}], evaluate=lambda _: 0.0, retrain=RETRAIN,
        train_only=[["0"]],
    )  # fmt: skip
    assert torch.equal(found.masks["0.weight"], model[0].weight != 0)
    assert torch.equal(found.masks["2.weight"], model[2].weight != 0)
    assert torch.equal(found.model[2].weight != 0, model[2].weight != 0)


def test_five_rounds_unless_told_otherwise() -> None:
    still = sec.FineTune(epochs=0, progress=False)
    rounds = sec.iterative_prune(plain(width=100), DATA, sparsity=0.9, evaluate=lambda _: 0.0, retrain=still).rounds
    shares = [1 - 0.1 ** (number / 5) for number in range(1, 6)]
    assert [row.kept for row in rounds] == [
        700 - math.floor(share * 400 + 0.5) - math.floor(share * 300 + 0.5) for share in shares
    ]


def test_whole_kernels_go_in_rounds() -> None:
    """Of 30 kernels, by their sums of magnitudes at the weights of then; the linear layer loses single weights."""
    models: list[nn.Module] = []

    def watch(model: nn.Module) -> float:
        models.append(copy.deepcopy(model))
        return 0.0

    sec.iterative_prune(
        convolutional(), loader(images(40)), sparsity={"4": 0.75, "8": 0.75}, rounds=2, pattern="kernel",
        evaluate=watch, retrain=RETRAIN,
    )  # fmt: skip
    for before, pruned, gone, single in ((*models[:2], 15, 120), (*models[2:4], 23, 180)):
        sums = before.get_parameter("4.weight").detach().double().abs().sum((2, 3))
        kept = pruned.get_parameter("4.weight").detach() != 0
        assert torch.equal(kept.all(3).all(2), kept.any(3).any(2)), "kernels go whole"
        assert torch.equal(kept[:, :, 0, 0], sums > sums.flatten().sort().values[gone - 1])
        assert int((pruned.get_parameter("8.weight") == 0).sum()) == single


def test_parts_are_trained_in_turn() -> None:
    model, data = convolutional().train(), loader(images(40))
    models: list[nn.Module] = []

    class Watched(nn.Module):
        def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(outputs, target)

    def watch(net: nn.Module) -> float:
        models.append(copy.deepcopy(net))
        return 0.0

    retrain = sec.FineTune(epochs=1, lr=0.1, keep="best", loss=Watched(), progress=False)
    for phases, changed in (([["8"]], {"8"}), ([["0", "1"], ["8"]], {"0", "1", "8"})):
        models.clear()
        result = sec.iterative_prune(
            model, data, sparsity=0.5, rounds=1, evaluate=watch, retrain=retrain, train_only=phases
        )
        pruned, after = models[1], state(result.model)
        differs = {name.split(".")[0] for name, item in state(pruned).items() if not torch.equal(item, after[name])}
        assert differs == changed
        assert all(item.requires_grad for item in result.model.parameters())
        assert [module.training for module in result.model.modules()] == [module.training for module in model.modules()]
        assert all(torch.equal(mask, result.model.get_parameter(name) != 0) for name, mask in result.masks.items())
    with pytest.raises(sec.UnknownNameError, match="matches no parameter"):
        sec.iterative_prune(model, data, sparsity=0.5, evaluate=watch, retrain=retrain, train_only=[["conv*"]])


def test_pruned_retrained_and_removed() -> None:
    """The whole of Han's pipeline, with L1 in the retraining."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 3))
    data = loader(points(200), batch_size=20)
    evaluate = sec.accuracy(data)
    model = sec.finetune(model, data, sec.FineTune(epochs=12, lr=0.2, progress=False)).model
    retrain = sec.FineTune(epochs=4, lr=0.1, penalty=sec.Penalty(kind="l1", strength=1e-4), progress=False)
    one = sec.iterative_prune(model, data, sparsity=0.94, rounds=1, evaluate=evaluate, retrain=retrain)
    many = sec.iterative_prune(model, data, sparsity=0.94, rounds=4, evaluate=evaluate, retrain=retrain)
    assert one.rounds[0].metric_pruned < one.rounds[0].metric
    assert many.rounds[-1].metric > many.baseline - 0.08
    small = sec.remove_dead(many.model, torch.zeros(1, 4))
    assert small.removed["0"] > 10
    assert evaluate(small.model) == many.rounds[-1].metric


SCRIPT = """
    import os, signal, sys
    sys.path[:0] = {path!r}
    import torch, secateurs as sec
    from train.networks import convolutional, images, loader
    from safetensors.torch import save_file
    torch.set_num_threads(1)
    folder, stop, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    data, calls = loader(images(40)), [0]
    right = sec.accuracy(data)
    def evaluate(model):
        calls[0] += 1
        if calls[0] == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return right(model)
    retrain = sec.FineTune(epochs=2, optimizer="adam", lr=0.01, keep="best", progress=False)
    result = sec.iterative_prune(convolutional(), data, sparsity=0.8, rounds=3, evaluate=evaluate, retrain=retrain,
                                 train_only=[["0", "4"], ["8"]], folder=folder)
    save_file({{k: v.contiguous() for k, v in result.model.state_dict().items()}}, out)
    print([(row.metric_pruned, row.metric, row.kept) for row in result.rounds])
"""


def test_killed_and_started_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT.format(path=[str(here.parent), str(here.parent.parent / "src")])))

    def run(folder: str, stop: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(tmp_path / folder), str(stop), str(tmp_path / f"{folder}.out")]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole = run("whole", 0)
    assert whole.returncode == 0, whole.stderr
    for stop in (4, 5):
        assert run("broken", stop).returncode == -signal.SIGKILL
    again = run("broken", 0)
    assert again.stdout == whole.stdout
    assert (tmp_path / "broken.out").read_bytes() == (tmp_path / "whole.out").read_bytes()


@pytest.mark.parametrize("importance", ["obd", "random", "taylor"])
def test_rounds_by_what_the_data_says(trained: nn.Module, importance: str) -> None:
    """The first round's masks are those of the model as it comes in; later ones nest, with the counts of all rounds."""
    rounds: list[nn.Module] = []

    def watch(model: nn.Module) -> float:
        rounds.append(copy.deepcopy(model))
        return 0.0

    result = sec.iterative_prune(
        trained, DATA, sparsity=0.75, rounds=2, evaluate=watch, retrain=RETRAIN, importance=importance, batches=None
    )
    assert [row.kept for row in result.rounds] == [105, 52]
    _, first, _, second, _ = rounds
    zeros = [{name: item == 0 for name, item in model.named_parameters() if item.dim() > 1} for model in rounds]
    assert all(bool(zeros[3][name][mask].all()) for name, mask in zeros[1].items())
    if importance != "random":
        expected = sec.masks(trained, 0.5, importance=importance, data=DATA)
        assert all(torch.equal(~mask, zeros[1][name]) for name, mask in expected.items())
    assert not same(state(first), state(second))


def test_bad_input(trained: nn.Module, tmp_path: Path) -> None:
    common: dict[str, Any] = {"evaluate": lambda _: 0.0, "retrain": sec.FineTune(epochs=0, progress=False)}
    for more, match in (
        ({"sparsity": 1.0}, "from 0 to below 1"),
        ({"sparsity": "90%"}, "give the share"),
        ({"sparsity": 90}, "from 0 to below 1"),
        ({"sparsity": {"0": "most"}}, "from 0 to below 1"),
        ({"sparsity": None}, "give the share"),
        ({"sparsity": None, "pattern": "2:4"}, "fixes what stays"),
        ({"sparsity": 0.5, "evaluate": None}, "model -> float"),
        ({"sparsity": 0.5, "retrain": 3}, "retrain=3"),
        ({"sparsity": 0.5, "train_only": ["0", "2"]}, "give a list"),
        ({"sparsity": 0.5, "rounds": 0}, "at least 1"),
        ({"sparsity": 0.5, "final": sec.FineTune(sparsity=sec.Sparsity(0.5))}, "sparsity of its own"),
    ):
        with pytest.raises(sec.InputError, match=match):
            sec.iterative_prune(trained, DATA, **{**common, **more})  # type: ignore[arg-type]
    sec.iterative_prune(trained, DATA, sparsity=0.5, folder=tmp_path, **common)
    with pytest.raises(sec.ArtifactError, match="belongs to another run"):
        sec.iterative_prune(trained, DATA, sparsity=0.6, folder=tmp_path, **common)


def test_rounds_of_the_schedule_are_those_of_the_method() -> None:
    kept = [1 - sec.Iterative(every=1, rounds=5, begin=1).at(number, 0.9) for number in range(6)]
    assert kept[0] == 1
    assert [b / a for a, b in itertools.pairwise(kept)] == pytest.approx([0.1**0.2] * 5)
