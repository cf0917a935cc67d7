"""Zeros survive training: any optimizer, the caller's own loop, nothing renamed. Oracles are loops of two lines."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from sparsity.held_network import (
    MOMENTA,
    OPTIMIZERS,
    batch,
    bits,
    check_values,
    check_zeros,
    loss_of,
    network,
    train,
)
from torch import Tensor, nn

import secateurs as sec
from secateurs.sparsity.hold import Hold


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_hard_zeros_under_every_optimizer(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](
        [{"params": [*model.conv.parameters(), *model.norm.parameters()]},
         {"params": [*model.deep.parameters(), *model.head.parameters()], "lr": 0.02}]
    )  # fmt: skip
    train(model, optimizer, 2)  # momentum is there before the masks are
    held = sec.sparsify(model, 0.6)
    for step in range(4):
        train(model, optimizer, 1, start=step)
        check_zeros(model, held.masks, optimizer if name in MOMENTA else None)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
def test_hard_training_equals_a_loop_that_masks_by_hand(name: str) -> None:
    """The oracle multiplies gradients and weights by the mask itself, and never had other momentum."""
    model, oracle = network(), network()
    found = sec.sparsify(model, 0.5).masks
    optimizer, by_hand = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](oracle.parameters())
    parameters = dict(oracle.named_parameters())
    with torch.no_grad():
        for key, mask in found.items():
            parameters[key].mul_(mask)
    train(model, optimizer, 5)
    for step in range(5):
        by_hand.zero_grad()
        loss_of(oracle, step).backward()
        with torch.no_grad():
            for key, mask in found.items():
                parameters[key].grad.mul_(mask)  # type: ignore[union-attr]
            by_hand.step()
            for key, mask in found.items():
                parameters[key].mul_(mask)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, oracle.state_dict()[key]), key


def straight_through(oracle: nn.Module, masks: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step of W, which stays dense, by the gradient at W * mask."""
    parameters = dict(oracle.named_parameters())
    optimizer.zero_grad()
    used = {
        key: (item.detach() * masks[key] if key in masks else item.detach()).requires_grad_()
        for key, item in parameters.items()
    }
    x, y = batch(step)
    nn.functional.cross_entropy(torch.func.functional_call(oracle, used, (x,)), y).backward()
    for key, item in parameters.items():
        item.grad = used[key].grad
    optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
def test_dense_update_equals_a_straight_through_loop(name: str) -> None:
    """The oracle keeps W apart, computes with W * mask through `functional_call`, and gives the gradient to W."""
    model, oracle = network(), network()
    masks = sec.masks(oracle, 0.5)
    held = sec.sparsify(model, masks, mode="dense-update")
    optimizer, by_hand = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](oracle.parameters())
    train(model, optimizer, 5)
    for step in range(5):
        straight_through(oracle, masks, by_hand, step)
    for key, item in oracle.named_parameters():
        if key in masks:
            assert torch.equal(held.dense[key], item.detach()), key
            assert bool((held.dense[key] != 0).all())
    check_values(model, masks)
    held.detach()
    check_values(model, masks)


@pytest.mark.parametrize("sigma", [-0.5, 0.4])
def test_pruning_by_the_statistics_of_dense_weights_equals_a_loop(sigma: float) -> None:
    """Hybrid pruning, convolutions only: t = mean |W| + sigma * deviation of all of W anew before each step, until the
    masks are fixed after the sixth; what is left at the end is W * mask."""
    model, oracle = network(), network()
    held = sec.sparsify(
        model, sec.Threshold("mean_std", sigma), mode="dense-update", schedule=sec.Constant(end=6), only=[nn.Conv2d]
    )
    optimizer, by_hand = (torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9) for net in (model, oracle))
    masks: dict[str, Tensor] = {}
    back = 0
    for step in range(9):
        if step <= 6:
            size = {key: oracle.get_parameter(key).detach().double().abs() for key in ("conv.weight", "deep.weight")}
            new = {key: item >= item.mean() + sigma * item.std(correction=0) for key, item in size.items()}
            back += sum(int((new[key] & ~mask).sum()) for key, mask in masks.items())
            masks = new
        assert {key: mask.tolist() for key, mask in held.masks.items()} == {k: m.tolist() for k, m in masks.items()}
        straight_through(oracle, masks, by_hand, step)
        train(model, optimizer, 1, start=step)
        held.step()
    assert back > 3
    held.detach()
    for key, item in oracle.named_parameters():
        assert torch.equal(model.get_parameter(key), item * masks[key] if key in masks else item), key


def test_names_objects_and_copies_stay_plain() -> None:
    model = network()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    held = sec.sparsify(model, 0.5)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert type(model.conv) is nn.Conv2d
    copied = copy.deepcopy(model)
    train(copied, torch.optim.SGD(copied.parameters(), lr=0.1), 2)
    gone = ~held.masks["head.weight"]
    assert bool(copied.head.weight[gone].any()), "a copy is free"
    sec.sparsify(copied, 0.5)  # and can be held by itself
    with pytest.raises(sec.InputError, match="held already"):
        sec.sparsify(model, 0.5)
    held.detach()
    sec.sparsify(model, 0.7).detach()
    assert not bool(model.head.weight[gone].any())
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert bool(model.head.weight[gone].any()), "a model let go is free"


def test_the_loop_need_not_keep_the_sparsifier_and_nothing_leaks() -> None:
    model = network()
    mask = sec.sparsify(model, 0.5).masks["head.weight"]
    gc.collect()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1), 2)
    assert not model.head.weight[~mask].any()
    gone = weakref.ref(model.conv.weight)
    del model
    gc.collect()
    assert gone() is None


def test_leaving_the_block_keeps_the_zeros_also_after_an_error() -> None:
    model = network()

    def fails() -> None:
        with sec.sparsify(model, 0.5):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert int((model.head.weight == 0).sum()) == 36
    with pytest.raises(sec.InputError, match="attach"), sec.sparsify(model, 0.5) as held:
        held.detach()
        held.step()
    held.attach()
    train(model, torch.optim.Adam(model.parameters(), lr=0.1), 2)
    check_zeros(model, held.masks)


def test_what_fails_leaves_the_model_free_and_as_it_was() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    wrong: list[dict[str, Any]] = [
        {"importance": "taylor"}, {"schedule": sec.Gradual("1 epoch", "75%")}, {"schedule": "gradual"},
        {"schedule": sec.Gradual}, {"update": "surgery"}, {"seed": -1},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(sec.InputError) as caught:
            sec.sparsify(model, 0.5, **options)
        assert "held already" not in str(caught.value), options
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    check_zeros(model, sec.sparsify(model, 0.5).masks)


def test_zeros_are_positive() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    sec.sparsify(layer, 0.5).detach()
    assert bits(layer.weight)[0, :2].tolist() == [0, 0]


def test_leaving_before_the_schedule_ends_warns() -> None:
    model = network()
    with pytest.warns(UserWarning, match=r"0.0% zeros after 0 calls of step"):  # noqa: SIM117
        with sec.sparsify(model, 0.5, schedule=sec.Gradual(begin=0, end=9)):
            train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sec.sparsify(model, 0.5, schedule=sec.Gradual(begin=0, end=1)) as held:
            held.step()
        with pytest.raises(KeyError), sec.sparsify(model, 0.6, schedule=sec.Gradual(begin=0, end=9)):
            raise KeyError


def test_leaving_with_nothing_left_of_a_layer_warns() -> None:
    model = network()
    names = list(sec.masks(model, 0.5))
    with pytest.warns(UserWarning, match=f"Nothing is left of `{names[0]}`"):  # noqa: SIM117
        with sec.sparsify(model, {names[0]: sec.Threshold("value", 1e3), names[1]: 0.5}):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sec.sparsify(network(), sec.Threshold("value", 0.01)):
            pass


def test_clipping_sees_the_sparse_network_alone() -> None:
    model = network()
    masks = sec.sparsify(model, 0.5).masks
    loss_of(model, 0).backward()
    kept = [p.grad[masks.get(name, torch.ones_like(p, dtype=torch.bool))] for name, p in model.named_parameters()
            if p.grad is not None]  # fmt: skip
    expected = torch.cat(kept).norm()
    torch.testing.assert_close(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0), expected)


def test_accumulated_gradients_and_frozen_layers() -> None:
    model = network()
    model.conv.weight.requires_grad_(False)
    held = sec.sparsify(model, 0.5)
    assert not model.conv.weight.requires_grad
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    frozen = model.conv.weight.clone()
    for step in range(3):
        loss_of(model, step).backward()
    optimizer.step()
    assert torch.equal(frozen, model.conv.weight)
    model.conv.weight.requires_grad_(True)  # thawed later
    train(model, optimizer, 2)
    check_zeros(model, held.masks, optimizer)


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_autocast_and_gradient_scaler(mode: str) -> None:
    model = network()
    held = sec.sparsify(model, 0.5, mode=mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    skipped = 0
    for step in range(6):
        optimizer.zero_grad()
        x, y = batch(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x).float() * (1e30 if step == 0 else 1.0), y)
        before, scale = model.head.weight.detach().clone(), scaler.get_scale()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale:
            skipped += 1
            assert torch.equal(before, model.head.weight), "a skipped step changes nothing"
        check_values(model, held.masks)
    assert skipped == 1
    if mode == "hard":
        check_zeros(model, held.masks, optimizer)


def test_what_cannot_be_held_is_refused() -> None:
    model = network()
    for bad in (
        {"head.weight": torch.ones(3, 24)},
        {"head.weight": torch.ones(24, 3, dtype=torch.bool)},
        {"tail.weight": torch.ones(3, 24, dtype=torch.bool)},
    ):
        with pytest.raises(sec.InputError, match="does not fit"):
            sec.sparsify(model, bad)
    with pytest.raises(sec.InputError, match="mode="):
        sec.sparsify(model, 0.5, mode="soft")
    with pytest.raises(sec.InputError, match="nothing is left to compute"):
        sec.sparsify(model, sec.masks(model, 0.5), schedule=sec.OneShot())
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    ones = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(sec.InputError, match="tied"):
        Hold(tied, {"0.weight": ones, "1.weight": ones})
    with pytest.raises(sec.InputError, match="does not fit"):
        Hold(tied, {"0.weight": ones}).put({"1.weight": ones})


def test_printing_says_how_many_weights_of_each_layer_are_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    held = sec.sparsify(model, {"0": 0.75, "1": 0.5})
    assert str(held).splitlines() == [
        "66.7% of 48 weights are zero, held in mode 'hard'",
        "0.weight   75.0%  8 of 32 kept",
        "1.weight   50.0%  8 of 16 kept",
    ]
    held.detach()
    assert repr(held) == "<66.7% of 48 weights are zero, detached>"
    later = sec.sparsify(model, 0.9, schedule=sec.Gradual(begin=5, end=9))
    later.step()
    assert "0.0% of 48" in repr(later) and "step 1 of Gradual(begin=5, end=9" in repr(later)
