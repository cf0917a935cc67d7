"""An optimizer carried over a cut takes the step that the uncut one would have taken at the kept indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, Optimizer, RMSprop

from secateurs.base.errors import PlanError, TrainError
from secateurs.choose.plan import Plan
from secateurs.train.optimizer import cut_optimizer

GONE = (1, 4)
STAY = [0, 2, 3, 5]
PLAN = Plan(graph_hash="", removed={"first.weight": {0: GONE}, "first.bias": {0: GONE}, "second.weight": {1: GONE}})


class Net(nn.Module):
    """4 -> width -> 3 in double precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, width, dtype=torch.float64)
        self.second = nn.Linear(width, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return inputs, inputs[:, :3].argmax(dim=1)


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    inputs, target = batch(seed)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), target).backward()
    optimizer.step()


def kept(name: str, tensor: Tensor) -> Tensor:
    for dim in PLAN.removed.get(name, {}):
        tensor = tensor.index_select(dim, torch.tensor(STAY))
    return tensor


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda groups: SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda groups: Adam(groups, lr=0.02, betas=(0.8, 0.99)),
    "amsgrad": lambda groups: Adam(groups, lr=0.02, amsgrad=True),
    "adamw": lambda groups: AdamW(groups, lr=0.02, weight_decay=0.1),
    "rmsprop": lambda groups: RMSprop(groups, lr=0.02, momentum=0.5, centered=True),
    "adagrad": lambda groups: Adagrad(groups, lr=0.1),
    "adadelta": lambda groups: Adadelta(groups),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_the_same_at_the_kept_indices(name: str) -> None:
    old = Net(6)
    optimizer = OPTIMIZERS[name]([{"params": old.first.parameters()}, {"params": old.second.parameters(), "lr": 0.03}])
    for seed in range(3):
        step(old, optimizer, seed)

    small = Net(4)
    small.load_state_dict({key: kept(key, tensor) for key, tensor in old.state_dict().items()})
    carried = cut_optimizer(optimizer, old, small, PLAN)
    assert type(carried) is type(optimizer)
    assert [group["lr"] for group in carried.param_groups] == [optimizer.param_groups[0]["lr"], 0.03]

    for seed in range(3, 5):
        with torch.no_grad():
            old.second.weight[:, GONE] = 0.0  # what the removed neurons say is not heard, so they change nothing
        step(old, optimizer, seed)
        step(small, carried, seed)
        for key, tensor in small.state_dict().items():
            torch.testing.assert_close(tensor, kept(key, old.state_dict()[key]), rtol=1e-10, atol=1e-12, msg=key)


def test_without_its_state_the_next_step_would_differ() -> None:
    old, small = Net(6), Net(4)
    optimizer = SGD(old.parameters(), lr=0.1, momentum=0.9)
    step(old, optimizer, 0)
    small.load_state_dict({key: kept(key, tensor) for key, tensor in old.state_dict().items()})
    carried, fresh = cut_optimizer(optimizer, old, small, PLAN), SGD(small.parameters(), lr=0.1, momentum=0.9)
    start = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    step(small, fresh, 1)
    without = small.first.weight.detach().clone()
    small.load_state_dict(start)
    step(small, carried, 1)
    assert (small.first.weight - without).abs().max() > 1e-3


def test_nothing_that_was_given_changes() -> None:
    old, small = Net(6), Net(4)
    optimizer = Adam(old.parameters())
    step(old, optimizer, 0)
    before = [{key: value.clone() for key, value in state.items()} for state in optimizer.state.values()]
    weights = [parameter.detach().clone() for parameter in (*old.parameters(), *small.parameters())]
    carried = cut_optimizer(optimizer, old, small, PLAN)
    step(small, carried, 1)
    for state, copy in zip(optimizer.state.values(), before, strict=True):
        assert all(torch.equal(state[key], copy[key]) for key in copy)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), weights[:4], strict=True))


def test_settings_are_the_ones_of_now() -> None:
    old, small = Net(6), Net(4)
    optimizer = SGD(old.named_parameters(), lr=0.1, momentum=0.9)
    optimizer.param_groups[0].update(lr=0.007, initial_lr=0.1)
    group = cut_optimizer(optimizer, old, small, PLAN).param_groups[0]
    assert (group["lr"], group["initial_lr"], group["momentum"]) == (0.007, 0.1, 0.9)
    assert group["param_names"] == ["first.weight", "first.bias", "second.weight", "second.bias"]


class Tied(nn.Module):
    """An embedding that is also the output layer's weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, width, dtype=torch.float64)
        self.head = nn.Linear(width, 7, dtype=torch.float64)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


@pytest.mark.parametrize("listed", ["embed.weight", "head.weight"])
def test_tied_weights_under_either_name(listed: str) -> None:
    old, small = Tied(6), Tied(4)
    optimizer = Adam(old.parameters())
    tokens = torch.arange(7)
    nn.functional.cross_entropy(old(tokens), tokens).backward()
    optimizer.step()
    carried = cut_optimizer(optimizer, old, small, Plan(graph_hash="", removed={listed: {1: GONE}}))
    assert len(carried.param_groups[0]["params"]) == 2
    moment = carried.state[small.head.weight]["exp_avg"]
    assert torch.equal(moment, optimizer.state[old.embed.weight]["exp_avg"][:, STAY])
    assert carried.state[small.embed.weight] is carried.state[small.head.weight]


def test_an_optimizer_that_has_not_stepped() -> None:
    old, small = Net(6), Net(4)
    carried = cut_optimizer(AdamW(old.parameters(), lr=0.3), old, small, PLAN)
    assert not carried.state
    assert carried.param_groups[0]["lr"] == 0.3
    step(small, carried, 0)


def test_what_does_not_fit_is_refused() -> None:
    old, small = Net(6), Net(4)
    optimizer = SGD(old.parameters(), lr=0.1)
    with pytest.raises(TrainError, match=r"parameter 0 of group 0, shape \[6, 4\]"):
        cut_optimizer(optimizer, Net(6), small, PLAN)
    with pytest.raises(PlanError, match=r"`first.weight`.*\[6, 4\] cut by the plan is \[6, 4\].*\[4, 4\]"):
        cut_optimizer(optimizer, old, small, Plan(graph_hash="", removed={}))
    with pytest.raises(TrainError, match="None of the optimizer's parameters"):
        cut_optimizer(optimizer, old, nn.ReLU(), PLAN)
    factored = Adafactor(old.parameters())
    step(old, factored, 0)
    with pytest.raises(TrainError, match=r"'row_var' cannot be cut.*\[6, 1\] for a parameter of \[6, 4\]"):
        cut_optimizer(factored, old, small, PLAN)
