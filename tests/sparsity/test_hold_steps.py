"""Holding zeros in steps of unusual optimizers, closures, and compiled models."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from sparsity.held_network import check_values, loss_of, network, train
from torch import Tensor, nn

import secateurs as sec


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_closures(mode: str) -> None:
    """SGD with a closure does what SGD without does; L-BFGS keeps the zeros."""
    plain, closed = network(), network()
    for model in (plain, closed):
        sec.sparsify(model, 0.5, mode=mode)
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), 3)
    optimizer = torch.optim.SGD(closed.parameters(), lr=0.1)
    for step in range(3):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(closed, step)
            loss.backward()
            return loss

        optimizer.step(closure)
    for a, b in zip(plain.parameters(), closed.parameters(), strict=True):
        assert torch.equal(a, b)
    masks = sec.sparsify(model := network(), 0.5, mode=mode).masks
    second = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def again() -> Tensor:
        second.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        check_values(model, masks)
        return loss

    second.step(closure=again)
    check_values(model, masks)


class AddsOne(torch.optim.Optimizer):
    """Nobody knows what it does to zeros: adds one to every weight, or breaks off halfway."""

    broken = False

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1.0)
                    if self.broken:
                        raise KeyError


def test_what_is_no_longer_held_is_left_alone_after_a_step_that_broke_off() -> None:
    model = network()
    held = sec.sparsify(model, 0.5)
    optimizer = AddsOne(model.parameters())
    optimizer.step()
    check_values(model, held.masks)
    optimizer.broken = True
    with pytest.raises(KeyError):
        optimizer.step()
    held.detach()
    check_values(model, held.masks)
    optimizer.broken = False
    optimizer.step()
    for name, mask in held.masks.items():
        assert torch.equal(model.get_parameter(name)[~mask], torch.ones(int((~mask).sum())))
    again = copy.deepcopy(optimizer)
    assert not [name for name in vars(again) if "secateurs" in name]


@pytest.mark.medium
def test_compiled_models() -> None:
    for mode in ("hard", "dense-update"):
        model, plain = network(), network()
        compiled = torch.compile(model, backend="aot_eager")
        held, _ = sec.sparsify(model, 0.5, mode=mode), sec.sparsify(plain, 0.5, mode=mode)
        train(compiled, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 3)
        train(plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), 3)
        for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            if name in held.masks:
                assert not a.detach()[~held.masks[name]].any()


def test_optimizers_that_hold_nothing_are_left_alone() -> None:
    class Unhashable(torch.optim.SGD):
        __hash__ = None  # type: ignore[assignment]

    sec.sparsify(network(), 0.5)  # the process listens to all steps now
    model = network()
    before = model.head.weight.detach().clone()
    train(model, Unhashable(model.parameters(), lr=0.1), 1)
    assert not torch.equal(model.head.weight, before)
