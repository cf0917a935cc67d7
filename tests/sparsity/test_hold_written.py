"""Zeros under what others write: gradients, values, checkpoints, other parameters in their place, other layouts."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from sparsity.held_network import OPTIMIZERS, batch, check_values, check_zeros, loss_of, network, train
from torch import Tensor, nn

import secateurs as sec


@pytest.mark.parametrize("name", ["sgd", "adamw", "lbfgs"])
@pytest.mark.parametrize("closed", [False, True])
def test_gradients_that_others_write_do_not_move_masked_weights(name: str, closed: bool) -> None:
    """Noise after the backward pass, and gradients that no backward pass put there."""
    for written in ("added to", "set"):
        model = network()
        held = sec.sparsify(model, 0.6)
        make = OPTIMIZERS.get(name, lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2))
        optimizer = make(model.parameters())

        def closure(step: int, model: nn.Module = model, written: str = written) -> Tensor:
            loss = loss_of(model, step)
            for parameter, slope in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                if written == "set":
                    parameter.grad = slope + 1.0
            if written == "added to":
                model.zero_grad()
                loss_of(model, step).backward()
                for parameter in model.parameters():
                    parameter.grad.add_(1.0)  # type: ignore[union-attr]
            return loss

        for step in range(3):
            if closed or name == "lbfgs":
                optimizer.step(lambda step=step, closure=closure: closure(step))  # type: ignore[arg-type, misc]
            else:
                closure(step)
                optimizer.step()
            check_zeros(model, held.masks, None if name == "lbfgs" else optimizer)


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_loading_other_parameters_into_place_keeps_the_hold(mode: str) -> None:
    for part in ("", "head"):
        model, plain = network(), network()
        held, other = sec.sparsify(model, 0.5, mode=mode), sec.sparsify(plain, 0.5, mode=mode)
        given = {key: tensor.clone() for key, tensor in network(3).get_submodule(part).state_dict().items()}
        model.get_submodule(part).load_state_dict(copy.deepcopy(given), assign=True)
        plain.get_submodule(part).load_state_dict(given)
        check_zeros(model, held.masks)
        for item in (model, plain):
            train(item, torch.optim.AdamW(item.parameters(), lr=0.1), 2)
        for (name, one), two in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert torch.equal(one, two), name
        assert all(torch.equal(dense, other.dense[name]) for name, dense in held.dense.items())
        assert same_tensors(held.detach(), other.detach())
        sec.sparsify(model, 0.9)  # nothing is held any more


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(item, other.state_dict()[name]) for name, item in one.state_dict().items())


def test_a_parameter_that_was_replaced_is_noticed() -> None:
    model = network()
    held = sec.sparsify(model, 0.5, schedule=sec.Constant())
    model.head.weight = nn.Parameter(torch.ones(3, 24))
    with pytest.raises(sec.InputError, match=r"zeros of `head.weight` are not held"):
        held.step()
    with pytest.raises(sec.InputError, match="another parameter has taken its place"):
        held.detach()
    sec.sparsify(model, 0.5)  # the rest was let go


def test_a_held_model_can_be_saved_whole_and_the_copy_is_free() -> None:
    model = network()
    held = sec.sparsify(model, 0.5)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    file = io.BytesIO()
    torch.save(model, file)  # noqa: TID251  what others do
    file.seek(0)
    read = torch.load(file, weights_only=False)  # noqa: TID251
    assert same_tensors(read, model)
    train(read, torch.optim.SGD(read.parameters(), lr=0.1), 1)
    assert bool(read.head.weight[~held.masks["head.weight"]].any())
    sec.sparsify(read, 0.5)


def test_an_optimizer_that_moves_everything_still_leaves_zeros() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    masks = sec.sparsify(model, 0.5).masks

    class Shake(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(0.5)

    Shake(model.parameters(), {}).step()
    check_zeros(model, masks)


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_writes_by_others_count_where_weights_are_kept(mode: str) -> None:
    model = network()
    held = sec.sparsify(model, 0.5, mode=mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss_of(model, 0).backward()
    with torch.no_grad():
        model.head.weight.fill_(3.0)
    optimizer.step()
    assert torch.equal(model.head.weight, 3.0 * held.masks["head.weight"])
    model.head.weight.data.fill_(5.0)
    held.apply()
    assert torch.equal(model.head.weight, 5.0 * held.masks["head.weight"])
    optimizer.step()
    assert torch.equal(model.head.weight, 5.0 * held.masks["head.weight"])


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_another_memory_format_after_attaching(mode: str) -> None:
    model, plain = network(), network()
    first, second = sec.sparsify(model, 0.5, mode=mode), sec.sparsify(plain, 0.5, mode=mode)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for item in (model, plain):
        train(item, torch.optim.SGD(item.parameters(), lr=0.1, momentum=0.9), 3)
    for name, mask in first.masks.items():
        assert torch.equal(mask, second.masks[name])
        torch.testing.assert_close(first.dense[name], second.dense[name], rtol=1e-4, atol=1e-5)
    check_values(model, first.masks)


def test_another_dtype_after_attaching() -> None:
    for mode in ("hard", "dense-update"):
        model = network()
        held = sec.sparsify(model, 0.5, mode=mode)
        model.double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        x, y = batch(0)
        nn.functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            if name in held.masks:
                assert not parameter.detach()[~held.masks[name]].any()
                assert held.dense[name].dtype == torch.float64


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
@pytest.mark.parametrize("model_first", [True, False])
def test_resuming_in_any_order_gives_the_same_bits(mode: str, model_first: bool) -> None:
    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = network(seed)
        held = sec.sparsify(model, 0.8, mode=mode, schedule=sec.Gradual(begin=0, end=8, every=2))
        return model, torch.optim.AdamW(model.parameters(), lr=0.05), held

    def go(parts: tuple[nn.Module, torch.optim.Optimizer, Any], start: int, steps: int) -> None:
        for step in range(start, start + steps):
            train(parts[0], parts[1], 1, start=step)
            parts[2].step()

    whole, resumed = build(0), build(5)
    go(whole, 0, 5)
    saved = [copy.deepcopy(item.state_dict()) for item in whole]
    go(whole, 5, 5)
    for index in (0, 2, 1) if model_first else (2, 1, 0):
        resumed[index].load_state_dict(copy.deepcopy(saved[index]))
    go(resumed, 5, 5)
    for a, b in zip(whole, resumed, strict=True):
        first, second = a.state_dict(), b.state_dict()
        if isinstance(first.get("state"), dict):
            first, second = (
                {(i, key): item for i, state in found["state"].items() for key, item in state.items()}
                for found in (first, second)
            )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_dense_checkpoint_may_be_loaded_into_a_held_model() -> None:
    model, other = network(), network(3)
    held = sec.sparsify(model, 0.5)
    model.load_state_dict(other.state_dict())
    check_zeros(model, held.masks)
    kept = held.masks["head.weight"]
    assert torch.equal(model.head.weight[kept], other.head.weight[kept])
