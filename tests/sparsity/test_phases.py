"""One part of a network after another: the zeros of the first are held while weights of the others come and go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparsity.held_network import OPTIMIZERS, check_zeros, loss_of, network, train
from torch import Tensor, nn

import secateurs as sec

CONVOLUTIONS = ["conv", "deep"]
SURGERY = sec.Surgery(c=0.3, gamma=0.0, biases=True)


def surgery(model: nn.Module, part: str, **options: Any) -> sec.Sparsifier:
    """Single weights of the convolutions, or of the rest, come and go at every second step."""
    layers: dict[str, Any] = {"only": CONVOLUTIONS} if part == "convolutions" else {"exclude": CONVOLUTIONS}
    return sec.sparsify(
        model, mode="dense-update", update=SURGERY, schedule=sec.Constant(every=2), seed=1, **layers, **options
    )  # fmt: skip


def first_phase() -> tuple[nn.Module, dict[str, Tensor]]:
    """The network after surgery on its convolutions, and their masks."""
    model = network()
    with surgery(model, "convolutions") as held:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        seen = []
        for step in range(8):
            train(model, optimizer, 1, start=step)
            held.step()
            seen.append(held.masks)
    assert sorted(held.masks) == ["conv.bias", "conv.weight", "deep.bias", "deep.weight"]
    assert any(bool((later["deep.weight"] & ~seen[0]["deep.weight"]).any()) for later in seen), "some came back"
    return model, held.masks


@pytest.mark.parametrize("how", ["within", "two sparsifiers"])
@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_zeros_of_the_first_phase_are_exact_throughout_the_second(how: str, name: str) -> None:
    model, masks = first_phase()
    before = {name: item.clone() for name, item in model.state_dict().items()}
    if how == "within":
        held = surgery(model, "rest", within=masks)
        assert sorted(held.masks) == [*sorted(masks), "head.bias", "head.weight"]
    else:
        sec.sparsify(model, masks)
        held = surgery(model, "rest")
        assert sorted(held.masks) == ["head.bias", "head.weight"]
    optimizer = OPTIMIZERS[name](model.parameters())
    seen = [held.masks["head.weight"]]
    for step in range(12):
        train(model, optimizer, 1, start=step)
        check_zeros(model, masks, optimizer)
        held.step()
        check_zeros(model, masks)
        seen.append(held.masks["head.weight"])
        assert torch.equal(model.get_parameter("head.weight") != 0, seen[-1])
    assert all(torch.equal(held.masks.get(name, mask), mask) for name, mask in masks.items())
    assert any(bool((later & ~seen[0]).any()) for later in seen), "of the second phase some came back"
    assert not torch.equal(model.get_parameter("deep.weight"), before["deep.weight"]), "kept ones go on training"


def test_both_ways_are_the_same_to_the_bits_also_from_a_state() -> None:
    (one, masks), (other, _), (third, _) = first_phase(), first_phase(), first_phase()
    whole = surgery(one, "rest", within=masks)
    sec.sparsify(other, masks)
    part = surgery(other, "rest")
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3) for model in (one, other)]
    for step in range(10):
        for model, held, optimizer in zip((one, other), (whole, part), optimizers, strict=True):
            train(model, optimizer, 1, start=step)
            held.step()
        if step == 4:
            state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
            assert {name for name in state if name.startswith("dense.")} == {"dense.head.weight", "dense.head.bias"}
            weights = {name: tensor.clone() for name, tensor in one.state_dict().items()}
            whole.detach()
            whole.attach().load_state_dict(state)
    third.load_state_dict(weights)
    again = surgery(third, "rest", within={name: torch.ones_like(mask) for name, mask in masks.items()})
    again.load_state_dict(state)
    optimizer = torch.optim.SGD(third.parameters(), lr=0.1, weight_decay=1e-3)
    for step in range(5, 10):
        train(third, optimizer, 1, start=step)
        again.step()
    for model in (other, third):
        assert all(torch.equal(tensor, one.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(mask, whole.masks[name]) for name, mask in part.masks.items())
    assert all(torch.equal(mask, again.masks[name]) for name, mask in whole.masks.items())


def test_a_closure_sees_and_leaves_zeros_of_both_kinds() -> None:
    model, masks = first_phase()
    held = surgery(model, "rest", within=masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        assert not model.get_parameter("head.weight")[~held.masks["head.weight"]].any()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        held.step()
        check_zeros(model, masks, optimizer)
    assert model.get_parameter("head.weight").grad is not None
    assert bool(model.get_parameter("head.weight").grad[~held.masks["head.weight"]].any())  # type: ignore[index]


def test_masks_of_left_out_layers_are_held_in_every_mode() -> None:
    for options in ({}, {"update": sec.RandomRegrowth(end=9), "schedule": sec.Constant(end=9)}, {"hold_zeros": True}):
        model = network()
        masks = sec.masks(model, 0.5, only=["conv"])
        with sec.sparsify(model, 0.6, exclude=["conv"], within=masks, **options) as held:  # type: ignore[arg-type]
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
            for step in range(9):
                train(model, optimizer, 1, start=step)
                held.step()
            check_zeros(model, masks, optimizer)
            assert set(held.masks) == {"conv.weight", "deep.weight", "head.weight"}
            assert int(held.masks["head.weight"].sum()) == 72 - 43


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"only": ["conv", "head"]}, "cannot be held in `conv.weight`"),
        ({"hold_zeros": True, "only": ["head"]}, "cannot be held in `head.weight`"),
        ({"within": {"stem.weight": torch.ones(1).bool()}}, "`stem.weight` does not fit"),
        ({"within": {"conv.weight": torch.ones(1).bool()}}, "`conv.weight` does not fit"),
        ({"only": ["head"], "update": None, "schedule": None}, "cannot be held in `conv.weight`"),
    ],
)
def test_what_comes_back_cannot_be_held(options: dict[str, Any], match: str) -> None:
    model = network()
    given = {"within": sec.masks(model, 0.5, only=["conv"]), "update": sec.Surgery(), "schedule": sec.Constant()}
    with pytest.raises(sec.InputError, match=match):
        sec.sparsify(model, mode="dense-update", **{**given, **options})
    sec.sparsify(model, 0.5)  # and nothing is held
