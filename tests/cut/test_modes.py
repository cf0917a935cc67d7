"""A cut model is in training or eval mode as the original is, module by module; every figure is one of eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.cut.form import GraphModule

torch.set_num_threads(1)
X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


def mixed() -> nn.Module:
    """In training mode with one frozen batch norm."""
    net = network().train()
    net[1].eval()
    return net


def half(model: nn.Module, form: str) -> nn.Module:
    graph = sec.capture(model, X)
    plan = sec.plan(graph, sec.couple(graph), keep={"0": [0, 3, 5, 6], "4": [1, 2, 4]})
    return sec.cut_detailed(model, plan, X, form=form).model


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


MAKES = {"train": lambda: network().train(), "eval": lambda: network().eval(), "mixed": mixed}


@pytest.mark.parametrize("form", ["auto", "graph"])
@pytest.mark.parametrize("mode", MAKES)
def test_modes_are_those_of_the_original(mode: str, form: str):
    model = MAKES[mode]()
    before = modes(model)
    small = half(model, form)
    assert isinstance(small, GraphModule) == (form == "graph")
    assert modes(model) == before
    assert {name: before[name] for name in modes(small)} == modes(small)
    if form == "auto":
        assert modes(small) == before
    other = half(MAKES["eval"](), form)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), other.state_dict().values(), strict=True))
    torch.testing.assert_close(small.eval()(X), other(X))


def test_the_graph_form_runs_in_the_mode_it_is_given_back_in():
    small = half(mixed(), "graph")
    frozen, moving = small.state_dict()["1.running_mean"].clone(), small.state_dict()["5.running_mean"].clone()
    first, second = small(X), small(X)
    assert not torch.equal(first, second), "dropout is on"
    assert torch.equal(small.state_dict()["1.running_mean"], frozen)
    assert not torch.equal(small.state_dict()["5.running_mean"], moving)


class Looks(nn.Module):
    """Another layer in training mode, so that a proof or a count made there would show."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.net(x)) if self.training else self.net(x)


@pytest.mark.parametrize("training", [False, True])
def test_prune_does_not_depend_on_the_mode_and_keeps_it(training: bool):
    model = Looks().train(training)
    data = [(X, torch.tensor([0, 1, 2, 3]))]
    seen: list[bool] = []

    def evaluate(judged: nn.Module) -> float:
        seen.append(judged.training)
        return sec.accuracy(data)(judged)

    result = sec.prune(model, X, budget=sec.Budget(macs=0.6), data=data, evaluate=evaluate, recalibrate=1)
    assert modes(model) == dict.fromkeys(modes(model), training)
    assert modes(result.model) == modes(model)
    assert seen == [False] * 3
    other = sec.prune(Looks().eval(), X, budget=sec.Budget(macs=0.6), data=data, recalibrate=1)
    assert result.before.macs == other.before.macs and result.after.macs == other.after.macs
    assert result.plan.graph_hash == other.plan.graph_hash
    torch.testing.assert_close(result.model.eval()(X), other.model.eval()(X))


def test_a_patched_forward_of_a_model_in_training_mode_is_proven_in_eval_mode():
    model = network().train()
    inner = model.forward
    model.forward = lambda x: inner(x)  # bound to the original, whose dropout is on
    small = half(model, "graph")
    assert model.training and small.training
