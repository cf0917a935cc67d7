"""The loop: what it accepts, when it rolls back, that it resumes, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from train.networks import loader, points, same, state

import secateurs as sec
from secateurs.score import CRITERIA
from secateurs.train.loop import steps, train_prune_loop
from secateurs.train.penalty import Penalty

pytestmark = pytest.mark.medium

X = torch.zeros(1, 4)
RETRAIN = sec.FineTune(epochs=4, lr=0.1, progress=False)
PENALISE = sec.FineTune(epochs=6, lr=0.1, penalty=Penalty(strength=0.01), progress=False)
FREE = {"granularity": 1, "min_channels": 2}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def data():
    return loader(points(120), batch_size=30)


@pytest.fixture(scope="module")
def trained(data) -> nn.Module:
    return sec.finetune(network(), data, sec.FineTune(epochs=25, lr=0.2, progress=False)).model


def test_cuts_deeper_until_it_no_longer_comes_back(trained: nn.Module, data):
    evaluate = sec.accuracy(data)
    before = state(trained)
    seen = []
    result = train_prune_loop(
        trained, X, data, steps=steps("params", 0.02, 5), evaluate=evaluate, retrain=RETRAIN, penalise=PENALISE,
        tolerance=0.03, on_round=seen.append, **FREE,
    )  # fmt: skip
    assert same(state(trained), before)
    assert result.baseline == evaluate(trained)
    assert result.penalised is not None
    assert list(result.rounds) == seen
    verdicts = [row.verdict for row in result.rounds]
    assert verdicts[0] == "accepted"
    assert verdicts[-1] == "rolled back"
    assert len(verdicts) < 6
    good = [row for row in result.rounds if row.verdict == "accepted"]
    assert all(row.metric >= result.baseline - 0.03 for row in good)
    assert result.rounds[-1].metric < result.baseline - 0.03
    assert sec.count(result.model, X).params == good[-1].params
    assert evaluate(result.model) == good[-1].metric
    assert "rolled back" in str(result)


def test_plan_leads_from_the_original_to_the_result(trained: nn.Module, data):
    result = train_prune_loop(
        trained, X, data, steps=steps("macs", 0.4, 3), evaluate=lambda model: 1.0, retrain=None, **FREE
    )
    assert [row.verdict for row in result.rounds] == ["accepted"] * 3
    assert result.plan is not None
    once = sec.cut(trained, result.plan, X)
    assert same(state(once), state(result.model))
    assert result.plan.after["macs"] <= 0.4 * result.plan.before["macs"]


def test_fractions_are_of_the_original(trained: nn.Module, data):
    """Every round reaches its own step, whatever the rounds before left."""
    result = train_prune_loop(
        trained, X, data, steps=[sec.Budget(macs=0.7), sec.Budget(macs=0.5), sec.Budget(macs=0.5)],
        evaluate=lambda model: 1.0, **FREE,
    )  # fmt: skip
    shares = [row.macs / result.macs for row in result.rounds]
    assert 0.6 < shares[0] <= 0.7
    assert 0.4 < shares[1] <= 0.5
    assert result.rounds[2].verdict == "nothing to remove"
    channels = train_prune_loop(
        trained,
        X,
        data,
        steps=[sec.Budget(channels=0.75), sec.Budget(channels=0.5)],
        evaluate=lambda model: 1.0,
        **FREE,
    )
    assert [item.size - len(item.kept) for item in channels.plan.groups if not item.frozen] == [12, 8]


def test_one_step_is_one_shot_pruning(trained: nn.Module, data):
    loop = train_prune_loop(trained, X, data, steps=sec.Budget(threshold=0.5), evaluate=lambda model: 1.0, **FREE)
    graph = sec.capture(trained, X)
    groups = sec.couple(graph)
    scores = sec.score(groups, trained, "l2", normalizer="max", equalization="keep_any")
    plan = sec.choose(graph, groups, scores, sec.Budget(threshold=0.5), **FREE)
    assert loop.plan.removed == plan.removed
    assert not plan.empty


def test_a_cut_is_refitted_before_it_is_judged(trained: nn.Module, data):
    budget = sec.Budget(params=0.3)
    evaluate = sec.accuracy(data)
    plain = train_prune_loop(trained, X, data, steps=budget, evaluate=evaluate, tolerance=1.0, **FREE)
    refitted = train_prune_loop(trained, X, data, steps=budget, evaluate=evaluate, tolerance=1.0, reconstruct=2, **FREE)
    assert plain.plan is not None
    cut = sec.cut(trained, plain.plan, X)
    expected = sec.reconstruct(cut, trained, plain.plan, data, batches=2, target="sum", layers="all")
    assert same(state(refitted.model), state(expected))
    assert not same(state(refitted.model), state(plain.model))
    assert refitted.rounds[0].metric_cut == evaluate(expected)


def test_all_rounds_failing_gives_the_original_back(trained: nn.Module, data):
    metrics = iter([1.0, 0.0, 0.0])
    result = train_prune_loop(
        trained, X, data, steps=sec.Budget(macs=0.5), evaluate=lambda model: next(metrics), retrain=RETRAIN, **FREE
    )
    assert result.model is trained
    assert result.plan is None
    assert [row.verdict for row in result.rounds] == ["rolled back"]


def test_reference_is_the_original_or_the_penalised_model(trained: nn.Module, data):
    """Original 1.0, penalised 0.8, cut and retrained 0.75: good enough for the second only."""

    def verdict(reference: str) -> str:
        metrics = iter([1.0, 0.8, 0.3, 0.75])
        result = train_prune_loop(
            trained, X, data, steps=sec.Budget(macs=0.5), evaluate=lambda model: next(metrics), retrain=RETRAIN,
            penalise=PENALISE, tolerance=0.1, reference=reference, **FREE,
        )  # fmt: skip
        assert (result.baseline, result.penalised) == (1.0, 0.8)
        return result.rounds[0].verdict

    assert verdict("original") == "rolled back"
    assert verdict("penalised") == "accepted"


def test_rollbacks_try_halfway(trained: nn.Module, data):
    """Good down to 60 % of the MACs: 80 accepted, 40 fails, 60 accepted, then halfway to 40 fails."""
    whole = sec.count(trained, X).macs

    def evaluate(model: nn.Module) -> float:
        return float(sec.count(model, X).macs >= 0.55 * whole)

    result = train_prune_loop(
        trained, X, data, steps=[sec.Budget(macs=0.8), sec.Budget(macs=0.4)], evaluate=evaluate, rollbacks=2, **FREE
    )
    assert [row.verdict for row in result.rounds] == ["accepted", "rolled back", "accepted"]
    assert 0.55 <= result.rounds[-1].macs / whole <= 0.6


def test_halfway_to_a_count_starts_from_the_count_of_the_whole(trained: nn.Module, data):
    whole = sec.count(trained, X).params

    def evaluate(model: nn.Module) -> float:
        return float(sec.count(model, X).params >= 0.6 * whole)

    for first in ([], [sec.Budget(params=0.9)]):
        result = train_prune_loop(
            trained,
            X,
            data,
            steps=[*first, sec.Budget(params=int(0.5 * whole))],
            evaluate=evaluate,
            rollbacks=1,
            **FREE,
        )
        assert [row.verdict for row in result.rounds][-2:] == ["rolled back", "accepted"]
        assert 0.6 <= result.rounds[-1].params / whole <= 0.75


def test_steps_by_value():
    assert [step.macs for step in steps("macs", 0.25, 2)] == pytest.approx([0.5, 0.25])
    assert [step.threshold for step in steps("threshold", 0.3, 3)] == pytest.approx([0.1, 0.2, 0.3])
    assert [step.channels for step in steps("channels", 0.4, 1, start=0.8)] == pytest.approx([0.4])
    for bad in (("macs", 1.5, 2), ("macs", 0.5, 0), ("macs", 0.5, 2.5), ("threshold", -0.1, 1)):
        with pytest.raises(sec.InputError, match="cannot be used"):
            steps(*bad)
    with pytest.raises(sec.UnknownNameError, match="did you mean 'macs'"):
        steps("mac", 0.5, 2)


SCRIPT = """
    import os, signal, sys
    sys.path[:0] = {path!r}
    import torch, secateurs as sec
    from test_loop import FREE, PENALISE, RETRAIN, X, network
    from train.networks import loader, points
    from secateurs.train.loop import steps, train_prune_loop
    from safetensors.torch import save_file
    torch.set_num_threads(1)
    folder, stop, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    data, calls = loader(points(120), batch_size=30), [0]
    right = sec.accuracy(data)
    def evaluate(model):
        calls[0] += 1
        if calls[0] == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return right(model)
    result = train_prune_loop(network(), X, data, steps=steps("macs", 0.3, 3), evaluate=evaluate, retrain=RETRAIN,
                              penalise=PENALISE, tolerance=1.0, folder=folder, **FREE)
    save_file({{k: v.contiguous() for k, v in result.model.state_dict().items()}}, out)
    print([(row.metric_cut, row.metric, row.verdict) for row in result.rounds])
"""


@pytest.mark.medium
def test_killed_and_started_again_it_ends_with_the_same_bits(tmp_path: Path):
    here = Path(__file__).parent
    script = tmp_path / "run.py"
    path = [str(here), str(here.parent), str(here.parent.parent / "src")]
    script.write_text(textwrap.dedent(SCRIPT.format(path=path)))

    def run(folder: str, stop: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(tmp_path / folder), str(stop), str(tmp_path / f"{folder}.out")]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole = run("whole", 0)
    assert whole.returncode == 0, whole.stderr
    for stop in (3, 4):
        assert run("broken", stop).returncode == -signal.SIGKILL
    again = run("broken", 0)
    assert again.stdout == whole.stdout
    assert (tmp_path / "broken.out").read_bytes() == (tmp_path / "whole.out").read_bytes()


def test_folder_of_another_run_is_refused(trained: nn.Module, data, tmp_path: Path):
    def go(limit: float) -> object:
        return train_prune_loop(
            trained, X, data, steps=sec.Budget(macs=limit), evaluate=lambda model: 1.0, folder=tmp_path, **FREE
        )

    go(0.5)
    for limit in (0.4, 0.504):
        with pytest.raises(sec.ArtifactError, match="belongs to another run"):
            go(limit)


def test_what_the_scores_are_made_of_is_part_of_the_run(trained: nn.Module, data, tmp_path: Path):
    """Functions by their names, which the next process gives them as well, not by where they lie in memory."""

    def go(loss: object, metric: object) -> object:
        return train_prune_loop(
            trained, X, data, steps=sec.Budget(macs=0.5), evaluate=lambda model: 1.0, folder=tmp_path,
            criterion="oracle", options={"metric": metric}, loss=loss, **FREE,
        )  # fmt: skip

    def made() -> object:
        return lambda outputs, target: (outputs.argmax(1) == target).float().mean()

    go("cross_entropy", made())
    go("cross_entropy", made())
    with pytest.raises(sec.ArtifactError, match="`loss` was 'cross_entropy' and is now"):
        go(lambda outputs, target: outputs.sum(), made())


def test_a_criterion_object_is_known_by_its_name(trained: nn.Module, data, tmp_path: Path):
    result = train_prune_loop(
        trained, X, data, steps=sec.Budget(macs=0.5), evaluate=lambda model: 1.0, criterion=CRITERIA["l1"],
        folder=tmp_path, **FREE,
    )  # fmt: skip
    assert result.plan is not None
    assert result.plan.criterion == "l1"
    assert " at 0x" not in (tmp_path / "loop.jsonl").read_text()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"criterion": "l3"}, "no criterion named 'l3'"),
        ({"criterion": 3}, "3 is no criterion"),
        ({"options": {"eps": 1}}, "no option 'eps'"),
        ({"normalizer": "maxx"}, "did you mean 'max'"),
        ({"equalization": "keep"}, "no equalization named"),
        ({"search": "globl"}, "did you mean 'global'"),
        ({"exclude": ["5"]}, "matches no module"),
        ({"exclude": "0"}, r"exclude=\['0'\]"),
        ({"granularity": 0}, "make no sense"),
        ({"batches": 0}, "batches=0"),
        ({"recalibrate": -1}, "recalibrate=-1"),
        ({"reconstruct": 0.5}, "reconstruct=0.5"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_training(more: dict[str, object], match: str, data):
    judged = []
    with pytest.raises(sec.SecateursError, match=match):
        train_prune_loop(
            network(), X, data,
            **{"steps": sec.Budget(macs=0.5), "evaluate": judged.append, "penalise": PENALISE, **FREE, **more},
        )  # fmt: skip
    assert not judged


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"steps": []}, "no steps"),
        ({"steps": [0.1]}, "no steps"),
        ({"penalise": sec.FineTune()}, "no penalty"),
        ({"tolerance": float("nan")}, "finite"),
        ({"rollbacks": -1}, "at least 0"),
        ({"reference": "best"}, "give 'original' or 'penalised'"),
        ({"reference": "penalised"}, "no training with a penalty"),
    ],
)
def test_bad_input(more: dict[str, object], match: str, trained: nn.Module, data):
    with pytest.raises(sec.InputError, match=match):
        train_prune_loop(trained, X, data, **{"steps": sec.Budget(macs=0.5), "evaluate": lambda model: 1.0, **more})


def test_unreachable_first_step_is_an_error_and_a_later_one_ends_the_loop(trained: nn.Module, data):
    with pytest.raises(sec.BudgetError, match="can not be reached"):
        train_prune_loop(trained, X, data, steps=sec.Budget(macs=0.001), evaluate=lambda model: 1.0, **FREE)
    result = train_prune_loop(
        trained, X, data, steps=[sec.Budget(macs=0.5), sec.Budget(macs=0.001)], evaluate=lambda model: 1.0, **FREE
    )
    assert [row.verdict for row in result.rounds] == ["accepted"]
