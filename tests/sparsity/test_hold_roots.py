"""Roots of masked second moments: none is taken of an exact zero, and nobody can tell from what is trained or saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sparsity.held_network import OPTIMIZERS, Make, batch, check_zeros
from torch import Tensor, nn

import secateurs as sec
from secateurs.sparsity.held import ROOTED
from secateurs.sparsity.hold import Hold


def wide() -> nn.Sequential:
    """Its layers are large enough for the detour around roots of zeros, and in channels-last in part."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 64, 8), nn.Flatten(), nn.Linear(64, 70), nn.ReLU(), nn.Linear(70, 3))
    model[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def images(step: int) -> Tensor:
    return torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(step))


def wide_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images(step)), batch(step)[1]).backward()
        optimizer.step()


def second_moments(model: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor]) -> Iterator[Tensor]:
    """Those of masked weights, of layers that are large enough."""
    for key in ("0.weight", "2.weight"):
        memory = optimizer.state[model.get_parameter(key)]
        yield from (memory[part][~masks[key]] for part in ROOTED if part in memory)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "nadam", "radam", "fast"])
def test_roots_of_zeros_are_not_taken_and_what_is_saved_is_zero(name: str) -> None:
    """While training, second moments are tiny where masked. The oracle masks by hand and takes roots of zeros."""
    makes: dict[str, Make] = {
        **OPTIMIZERS,
        "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
        "fast": lambda p: torch.optim.Adam(
            p, lr=0.001, betas=(0.9, 0.85)
        ),  # lifted once, they would be zero by the end
    }
    steps = 320 if name == "fast" else 5
    model, oracle = wide(), wide()
    held = sec.sparsify(model, 0.6)
    optimizer, by_hand = makes[name](model.parameters()), makes[name](oracle.parameters())
    parameters = dict(oracle.named_parameters())
    with torch.no_grad():
        for key, mask in held.masks.items():
            parameters[key].mul_(mask)
            parameters[key].register_hook(lambda slope, mask=mask: slope * mask)
    by_hand.register_step_post_hook(
        lambda *_: [parameters[key].data.mul_(mask) for key, mask in held.masks.items()]  # type: ignore[func-returns-value]
    )
    wide_steps(model, optimizer, 2)
    for step in range(2, steps):
        wide_steps(model, optimizer, 1, step)
        found = list(second_moments(model, optimizer, held.masks))
        assert len(found) == (4 if name == "amsgrad" else 2)
        assert all(0.0 < float(each.min()) <= float(each.max()) < 1e-29 for each in found)
    wide_steps(oracle, by_hand, steps)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, parameters[key]), key
    saved = optimizer.state_dict()["state"]
    assert not any(each.any() for each in second_moments(model, optimizer, held.masks))
    for number, memory in by_hand.state_dict()["state"].items():
        for key, item in memory.items():
            assert torch.equal(saved[number][key], item), key


def test_second_moments_are_zero_after_leaving_and_of_what_comes_back() -> None:
    model = wide()
    held = Hold(model, sec.masks(model, 0.6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    wide_steps(model, optimizer, 3)
    before, after = held.masks, {key: mask.roll(1, 0) for key, mask in held.masks.items()}
    held.put(after)
    for key, mask in after.items():
        memory = optimizer.state[model.get_parameter(key)]["exp_avg_sq"]
        assert not memory[~mask | ~before[key]].any(), key
    wide_steps(model, optimizer, 3, start=3)
    assert all(each.all() for each in second_moments(model, optimizer, after))
    held.release()
    assert not any(each.any() for each in second_moments(model, optimizer, after))
    assert not optimizer._optimizer_state_dict_pre_hooks


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw"])
def test_second_moments_of_dense_weights_stay_when_masks_change(name: str) -> None:
    """The oracle keeps W apart, and new masks are news to it, not to its optimizer."""
    model, oracle = wide(), wide()
    held = sec.sparsify(model, 0.3, mode="dense-update")
    optimizer, by_hand = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](oracle.parameters())
    parameters = dict(oracle.named_parameters())
    for step in range(8):
        if step in (3, 5):
            held.update()
        by_hand.zero_grad()
        used = {key: item.detach() for key, item in parameters.items()}
        used |= {key: used[key] * mask for key, mask in held.masks.items()}
        used = {key: item.requires_grad_() for key, item in used.items()}
        outputs = torch.func.functional_call(oracle, used, (images(step),))
        nn.functional.cross_entropy(outputs, batch(step)[1]).backward()
        for key, item in parameters.items():
            item.grad = used[key].grad
        by_hand.step()
        wide_steps(model, optimizer, 1, step)
    for key, mask in held.masks.items():
        assert not mask.all()
        assert torch.equal(held.dense[key], parameters[key].detach()), key


def test_a_step_that_fails_midway_leaves_no_trace_after_the_next() -> None:
    model = wide()
    held = sec.sparsify(model, 0.6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    wide_steps(model, optimizer, 1)

    def fails(*_: Any) -> None:
        raise KeyError

    handle = optimizer.register_step_pre_hook(fails)
    for _ in range(5):
        with pytest.raises(KeyError):
            wide_steps(model, optimizer, 1)
    handle.remove()
    wide_steps(model, optimizer, 2)
    check_zeros(model, held.masks, optimizer)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
