"""Zeros and what optimizers remember of them: masks that change, runs that go back, divisions by zero, broken steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sparsity.held_network import Make, bits, check_values, check_zeros, loss_of, network, train
from torch import Tensor, nn

import secateurs as sec

WIDE = 80
"""Squared, enough entries for second moments that are lifted."""


def wide() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, 3))


def train_wide(model: nn.Module, optimizer: torch.optim.Optimizer, held: sec.sparsity.Sparsifier, steps: int) -> None:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(held.steps)
        x, y = torch.randn(8, WIDE, generator=generator), torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        held.step()


def test_new_masks_leave_the_memory_of_dense_updates_alone() -> None:
    model = wide()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    held = sec.sparsify(model, 0.5, mode="dense-update", schedule=sec.Constant(every=100))
    train_wide(model, optimizer, held, 3)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    assert before[0]["exp_avg_sq"][~held.masks["0.weight"]].any()
    held.update()
    for number, memory in optimizer.state_dict()["state"].items():
        assert all(torch.equal(tensor, before[number][key]) for key, tensor in memory.items())


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_going_back_in_the_same_process_ends_with_the_same_bits(mode: str) -> None:
    """As where training went wrong and the last good state is loaded: weights, optimizer, masks."""

    def run(detour: int) -> dict[str, Tensor]:
        model = wide()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
        held = sec.sparsify(model, 0.9, mode=mode, schedule=sec.Gradual(0, 10, every=2))
        train_wide(model, optimizer, held, 4)
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), held.state_dict()))
        train_wide(model, optimizer, held, detour)
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        held.load_state_dict(state[2])
        train_wide(model, optimizer, held, 4)
        moments = {
            f"{n}.{key}": item for n, own in optimizer.state_dict()["state"].items() for key, item in own.items()
        }
        return {**model.state_dict(), **moments}

    straight, back = run(0), run(5)
    assert all(torch.equal(tensor, back[key]) for key, tensor in straight.items())


DIVIDING: dict[str, Make] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=0.0),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, eps=0.0, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, eps=0.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, eps=0.0, momentum=0.9),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01, eps=0.0),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, eps=0.0),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, eps=0.0),
}


@pytest.mark.parametrize("name", sorted(DIVIDING))
def test_zeros_divided_by_zero_are_zeros(name: str) -> None:
    """An eps of 0 is fine where every gradient is something; that of masked weights never is."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    held = sec.sparsify(model, 0.5)
    optimizer = DIVIDING[name](model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        check_zeros(model, held.masks, optimizer)
        assert all(bool(item.isfinite().all()) for item in model.parameters())


def test_the_smallest_eps_of_half_precision_counts_as_zero() -> None:
    """Adam's 1e-8 is 0 in float16."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4).half()
    held = sec.sparsify(model, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(5, 8).half()).square().sum().backward()
        optimizer.step()
        assert not model.weight[~held.masks["weight"]].any()
        assert all(bool(item.isfinite().all()) for item in model.parameters())


@pytest.mark.parametrize("name", ["momentum_buffer", "exp_avg"])
def test_memory_that_others_write_into_moves_no_masked_weight(name: str) -> None:
    """As those do who load an optimizer's state in place."""
    model = network()
    held = sec.sparsify(model, 0.6)
    make: Any = torch.optim.SGD if name == "momentum_buffer" else torch.optim.Adam
    optimizer = make(model.parameters(), lr=0.1, **({"momentum": 0.9} if make is torch.optim.SGD else {}))
    train(model, optimizer, 2)
    for memory in optimizer.state.values():
        memory[name].fill_(1.0)
    train(model, optimizer, 1, start=2)
    check_zeros(model, held.masks, optimizer)


def test_sparse_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Embedding(10, 4, sparse=True)
    masks = {"weight": torch.rand(10, 4) > 0.5}
    sec.sparsify(model, masks)
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([1, 2, 2, 5])).square().sum().backward()
        assert model.weight.grad is not None
        assert not model.weight.grad.to_dense()[~masks["weight"]].any()
        optimizer.step()
        check_values(model, masks)


def test_a_closure_that_fails_leaves_the_zeros_and_the_dense_weights() -> None:
    model = network()
    held = sec.sparsify(model, 0.5, mode="dense-update")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: item.clone() for name, item in held.dense.items()}

    def fail() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(fail)
    check_zeros(model, held.masks)
    assert all(torch.equal(item, before[name]) for name, item in held.dense.items())


@pytest.mark.parametrize("then", ["dense", "apply", "state", "update", "restore", "detach"])
def test_a_step_that_is_broken_off_loses_no_dense_weight(then: str) -> None:
    """The optimizer has the dense weights then. Whatever comes next finds them, and puts the zeros in place."""

    class Interrupted(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise KeyboardInterrupt

    model = network()
    held = sec.sparsify(model, 0.5, mode="dense-update", schedule=sec.Constant(every=100))
    state = held.state_dict()
    loss_of(model, 0).backward()
    with pytest.raises(KeyboardInterrupt):
        Interrupted(model.parameters(), lr=0.1).step()
    if then == "detach":
        masks = held.masks
        held.detach()
        check_values(model, masks)
        return
    if then in ("apply", "update"):
        getattr(held, then)()
    elif then == "restore":
        held.load_state_dict(state)
    found = held.dense if then == "dense" else held.state_dict()
    for name in held.masks:
        assert torch.equal(found[name if then == "dense" else f"dense.{name}"], state[f"dense.{name}"])
        assert not bits(model.get_parameter(name))[~held.masks[name]].any()


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_a_step_that_is_compiled(mode: str) -> None:
    model = network()
    held = sec.sparsify(model, 0.5, mode=mode)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step: Any = torch.compile(optimizer.step, backend="eager")
    for number in range(4):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        step()
        check_values(model, held.masks)
