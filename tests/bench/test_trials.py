"""The coverage benchmark's own judgement: its oracle complains about wrong cuts, its processes end, its rows stay."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import ledger, oracle, trial, warden
from benchmarks.zoo.entry import Inputs, randomise
from secateurs.choose.plan import GroupDecision, Plan
from secateurs.couple.group import ChannelGroup, Member

KEPT = (0, 2, 3, 5)
GONE = (1, 4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    randomise(model, INPUTS)
    return model


INPUTS = Inputs((torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),))


def cut_by_hand(model: nn.Sequential, kept: tuple[int, ...]) -> nn.Sequential:
    """The network with only these channels between its convolutions."""
    small = copy.deepcopy(model)
    index = list(kept)
    for layer in (small[0], small[1]):
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(parameter[index]))
    small[1].running_mean, small[1].running_var = small[1].running_mean[index], small[1].running_var[index]
    small[3].weight = nn.Parameter(small[3].weight[:, index])
    return small


def plan_and_groups(inexact_because: str | None = None) -> tuple[Plan, list[ChannelGroup]]:
    units = np.arange(6)
    members = (Member("0.weight", 0, units, "out"), Member("3.weight", 1, units, "in"))
    removed = {name: {0: GONE} for name in ("0.weight", "0.bias", "1.weight", "1.bias")} | {"3.weight": {1: GONE}}
    plan = Plan("hash", removed, (GroupDecision("g", 6, KEPT, "asked"),))
    return plan, [ChannelGroup("g", 6, members, inexact_because=inexact_because)]


def judge(small: nn.Module, inexact_because: str | None = None) -> oracle.Verdict:
    return oracle.check(network(), small, *plan_and_groups(inexact_because), INPUTS, native=True)


def test_a_right_cut_is_compared_and_accepted() -> None:
    verdict = judge(cut_by_hand(network(), KEPT))
    assert verdict.complaint == ""
    assert verdict.facts["masked"] == "float32"
    assert verdict.facts["masked_difference"] < 1e-5 < verdict.facts["effect"]
    assert verdict.facts["flops_left"] == pytest.approx(4 / 6, abs=1e-3)


def test_the_wrong_channels_are_noticed() -> None:
    assert "differs from the masked original" in judge(cut_by_hand(network(), (0, 1, 3, 5))).complaint


def test_a_wrong_parameter_shape_is_noticed() -> None:
    complaint = judge(cut_by_hand(network(), (0, 2, 3))).complaint
    assert "0.weight has shape [3, 3, 3, 3] instead of [4, 3, 3, 3]" in complaint


def test_a_wrong_output_shape_is_noticed() -> None:
    wrong = cut_by_hand(network(), KEPT)
    wrong[3].weight, wrong[3].bias = nn.Parameter(wrong[3].weight[:3]), nn.Parameter(wrong[3].bias[:3])
    assert "output shapes [(2, 3, 4, 4)] instead of [(2, 4, 4, 4)]" in judge(wrong).complaint


def test_a_difference_behind_an_inexact_group_is_not_held_against_the_cut() -> None:
    verdict = judge(cut_by_hand(network(), (0, 1, 3, 5)), inexact_because="layer_norm")
    assert verdict.complaint == ""
    assert verdict.facts["masked"].startswith("inconclusive (differs from the masked original")
    assert verdict.facts["masked"].endswith("g: layer_norm")


class Normed(nn.Module):
    """A layer norm between two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)))


def test_norms_are_masked_over_the_channels_that_stay() -> None:
    torch.manual_seed(0)
    inputs, original = Inputs((torch.randn(4, 5),)), Normed(6).eval()
    randomise(original, inputs)
    small, index = Normed(4).eval(), list(KEPT)
    weights = {
        name: value[index] if name.startswith(("up", "norm")) else value
        for name, value in original.state_dict().items()
    }
    small.load_state_dict({**weights, "down.weight": original.down.weight[:, index]})
    removed = {name: {0: GONE} for name in ("up.weight", "up.bias", "norm.weight", "norm.bias")} | {
        "down.weight": {1: GONE}
    }
    members = (Member("up.weight", 0, np.arange(6), "out"), Member("down.weight", 1, np.arange(6), "in"))
    group = ChannelGroup("g", 6, members, inexact_because="layer_norm")
    plan = Plan("hash", removed, (GroupDecision("g", 6, KEPT, "asked"),))
    verdict = oracle.check(original, small, plan, [group], inputs, native=True)
    assert (verdict.complaint, verdict.facts["masked"]) == ("", "float32")
    assert verdict.facts["masked_difference"] < 1e-5 < verdict.facts["effect"]


def test_no_constant_is_left_in_a_zoo_model() -> None:
    model = network()
    tensors = [*model.parameters(), model[1].running_mean, model[1].running_var]
    assert all(float(tensor.detach().std()) > 0.01 for tensor in tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].weight.data.add_(1e-6),
        lambda model: model.train(),
        lambda model: setattr(model[0], "in_channels", 7),
        lambda model: model[1].running_var.data.mul_(2),
    ],
)
def test_the_fingerprint_sees_any_change_of_the_callers_model(change) -> None:
    model = network()
    before = trial.fingerprint(model)
    assert trial.fingerprint(model) == before
    change(model)
    assert trial.fingerprint(model) != before


def test_tying_two_weights_changes_the_fingerprint() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.detach().clone())
    before = trial.fingerprint(model)
    model[1].weight = model[0].weight
    assert trial.fingerprint(model) != before


def write_module(folder: Path, body: str) -> str:
    (folder / "staged.py").write_text("import sys, time\nout = open(sys.argv[3], 'a', buffering=1)\n" + body)
    return "staged"


@pytest.mark.medium
def test_a_hanging_trial_is_killed_in_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    body = 'out.write(\'{"stage": "build"}\\n{"nodes": 3}\\n{"stage": "couple"}\\n\')\n\nwhile True: pass\n'
    facts = warden.watch("s", "m", limit=0.5, module=write_module(tmp_path, body))
    assert (facts["status"], facts["nodes"]) == ("timeout", 3)
    assert facts["reason"].startswith("killed in couple after ")


@pytest.mark.medium
def test_a_waiting_trial_is_killed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    body = 'out.write(\'{"stage": "cut"}\\n\')\ntime.sleep(60)\n'
    facts = warden.watch("s", "m", limit=0.2, module=write_module(tmp_path, body))
    assert facts["status"] == "timeout"
    assert facts["reason"].startswith("killed in cut after 0 s of one core, ")


@pytest.mark.medium
def test_a_dying_trial_says_where_and_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    facts = warden.watch("s", "m", limit=5, module=write_module(tmp_path, "print('last words')\nsys.exit(3)\n"))
    assert (facts["status"], facts["reason"]) == ("crashed", "died in start with code 3")
    assert "last words" in facts["trace"]


def test_rows_outlive_the_process_and_belong_to_their_code(tmp_path: Path) -> None:
    facts = {"suite": "timm", "kind": "family", "model": "a", "status": "proven", "cut_s": 1.5, "macs_left": 0.3}
    ledger.Ledger(tmp_path, "one").add(facts)
    again = ledger.Ledger(tmp_path, "one")
    assert again.has("timm", "a")
    assert not ledger.Ledger(tmp_path, "two").has("timm", "a")
    again.add({**facts, "model": "b", "status": "timeout", "reason": "killed\nin cut"})
    summary = ledger.Ledger(tmp_path, "one").write_summary(["--suite", "timm"], limit=60)
    assert {key: summary["suites"]["timm"][key] for key in ("models", "proven", "timeout")} == {
        "models": 2,
        "proven": 1,
        "timeout": 1,
    }
    assert summary["bars"]["timm"] == {
        "asked": 0.95,
        "proven": 0.5,
        "wrong_or_hanging": ["b"],
        "above_40_percent_macs": [],
        "met": False,
    }
