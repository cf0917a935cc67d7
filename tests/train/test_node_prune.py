"""Node pruning: closed units are gone after each stage, and nothing else changes by that."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train.networks import convolutional, images, loader, plain, points, same, state

import secateurs as sec
from secateurs.base.errors import ArtifactError, InputError
from secateurs.train.dropout import dropout_shares, scale_dropout_
from secateurs.train.finetune import finetune
from secateurs.train.node_prune import node_prune

IMAGE = torch.zeros(1, 1, 6, 6)


def stage(strength: float, *, gates: Any = None, **changes: Any) -> sec.FineTune:
    gates = gates or {}
    return sec.FineTune(
        epochs=2,
        lr=0.05,
        schedule="constant",
        progress=False,
        gates=sec.Gates(strength=strength, start=0.82, **gates),
        **changes,
    )


STAGES = (stage(0.02), stage(0.03))
FINISH = sec.FineTune(epochs=1, lr=0.05, progress=False)


def pruned(model: nn.Module, **changes: Any) -> sec.NodePruning:
    data = loader(images(40))
    given = {"stages": STAGES, "finetune": FINISH, "evaluate": sec.accuracy(data)}
    return node_prune(model, IMAGE, data, **{**given, **changes})


def test_stages_close_units_and_the_cut_removes_them():
    model = convolutional(width=12)
    before = state(model)
    result = pruned(model)
    assert same(state(model), before)
    first, second = result.stages
    assert first.closed > 0
    assert 12 >= first.widths["0"] > second.widths["0"] >= 2
    assert result.params > first.params >= second.params
    assert result.model[0].out_channels == second.widths["0"]
    assert type(result.model) is nn.Sequential
    assert first.worst is not None
    assert first.worst < 1e-12
    assert result.plan is not None
    assert sum(len(item.kept) for item in result.plan.groups if not item.frozen) == sum(second.widths.values())
    assert sec.count(sec.cut(model, result.plan, IMAGE), IMAGE).params == second.params
    assert "after fine-tuning" in str(result)


def test_removing_closed_units_changes_no_output():
    """In float64, on inputs that nothing was fitted to."""
    model = convolutional(width=12).double()
    data = [(x.double(), y) for x, y in loader(images(40), shuffle=False)]
    trained = finetune(model, data, stage(0.04))
    assert trained.gates is not None
    assert trained.gates.closed > 0
    result = node_prune(model, IMAGE.double(), data, stages=stage(0.04), evaluate=sec.accuracy(data), dropout=False)
    assert result.stages[0].closed == trained.gates.closed
    x = torch.randn(50, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    whole, small = trained.model.eval()(x), result.model.eval()(x)
    torch.testing.assert_close(small, whole, rtol=0, atol=1e-13)


def test_dropout_follows_the_share_of_nodes_that_is_left():
    model = convolutional(width=12)
    result = pruned(model, finetune=None)
    assert result.model[3].p == pytest.approx(0.3 * result.stages[-1].widths["0"] / 12)
    assert result.stages[-1].dropout == {"3": pytest.approx(result.model[3].p)}
    assert pruned(model, finetune=None, dropout=False).model[3].p == 0.3
    assert model[3].p == 0.3


def test_dropout_rates_are_linear_in_what_is_left():
    model = nn.Sequential(nn.Linear(4, 10), nn.Dropout(0.5), nn.Linear(10, 3), nn.Dropout(0.4))
    groups = sec.couple(sec.capture(model, torch.zeros(2, 4)))
    shares = dropout_shares(groups, groups.alive({"0": [0, 1, 2, 3]}))
    assert shares == {"1": 0.4}
    assert scale_dropout_(model, {**shares, "gone": 0.1, "0": 0.1}) == {"1": pytest.approx(0.2)}
    assert [model[1].p, model[3].p] == pytest.approx([0.2, 0.4])


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path):
    whole = pruned(convolutional())
    data = loader(images(40))
    for dies in (2, 3, 4, 6, 9):
        calls = 0

        def metric(model: nn.Module, dies: int = dies) -> float:
            nonlocal calls
            calls += 1
            if calls == dies:
                raise Killed
            return sec.accuracy(data)(model)

        place = tmp_path / str(dies)
        try:
            pruned(convolutional(), evaluate=metric, folder=place)
            assert dies > 4
        except Killed:
            assert dies <= 4
        again = pruned(convolutional(), folder=place)
        assert same(state(again.model), state(whole.model))
        assert again.plan == whole.plan
        assert [row.metric for row in again.stages] == [row.metric for row in whole.stages]
    with pytest.raises(ArtifactError, match="belongs to another run"):
        pruned(convolutional(), folder=place, stages=STAGES[0])


def test_nothing_closed_is_nothing_cut():
    model = plain()
    data = loader(points())
    result = node_prune(model, torch.zeros(1, 4), data, stages=stage(0.0), evaluate=sec.accuracy(data))
    assert (result.plan, result.stages[0].closed, result.stages[0].worst) == (None, 0, None)
    assert result.model[0].out_features == 6


def test_heads_and_hidden_units_of_a_transformer():
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Linear(4, 16)
            self.layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layer(self.embed(x)).mean(1))
            return out

    model = Small()
    x = torch.randn(32, 5, 4, generator=torch.Generator().manual_seed(0))
    data = loader((x, x[:, :, :3].mean(1).argmax(1)))
    original = copy.deepcopy(model)
    both = node_prune(model, x[:1], data, stages=stage(0.05), evaluate=sec.accuracy(data))
    assert same(state(model), state(original))
    assert both.stages[0].widths["layer.self_attn"] < 4
    assert both.form == "graph"
    assert "layer_norm" in both.missing["embed"]
    only = stage(0.05, gates={"only": ["*linear1"]})
    hidden = node_prune(model, x[:1], data, stages=only, evaluate=sec.accuracy(data))
    assert (hidden.form, list(hidden.stages[0].widths)) == ("native", ["layer.linear1"])
    assert isinstance(hidden.model, Small)
    assert hidden.model.layer.linear1.out_features == hidden.stages[0].widths["layer.linear1"] < 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, "Every stage of node pruning is a training with gates"),
        ({"stages": [STAGES[0], FINISH]}, "stage 1 is"),
        ({"finetune": STAGES[0]}, "The last training has gates"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        pruned(convolutional(), **changes)
