"""Zeros survive training: any optimizer, the caller's own loop, nothing renamed. Oracles are loops of two lines."""

from __future__ import annotations

import copy
import gc
import io
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.sparsity.hold import Hold

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


MOMENTA = set(OPTIMIZERS) - {"rprop", "adamax"}
"""Others remember step sizes, or floors of them, which are not zero where the gradient always was."""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.deep, self.head = nn.Conv2d(6, 6, 3, groups=2), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(torch.relu(self.norm(self.conv(x)))).relu().flatten(1)
        result: Tensor = self.head(x)
        return result


def network(seed: int = 0) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    """An ordinary loop that knows nothing of masks."""
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int32)


def check_zeros(model: nn.Module, masks: dict[str, Tensor], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Value, gradient and memory at masked places: every bit is zero."""
    for name, parameter in model.named_parameters():
        if name in masks:
            gone = ~masks[name]
            assert gone.any()
            assert not bits(parameter)[gone].any(), name
            assert parameter.detach()[~gone].all(), f"{name}: kept weights train"
            if parameter.grad is not None:
                assert not bits(parameter.grad)[gone].any(), f"gradient of {name}"
            for key, item in (optimizer.state[parameter] if optimizer else {}).items():
                if isinstance(item, Tensor) and item.shape == gone.shape:
                    assert not item[gone].any(), f"{key} of {name}"


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


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
def test_dense_update_equals_a_straight_through_loop(name: str) -> None:
    """The oracle keeps W apart, computes with W * mask through `functional_call`, and gives the gradient to W."""
    model, oracle = network(), network()
    masks = sec.masks(oracle, 0.5)
    held = sec.sparsify(model, masks, mode="dense-update")
    optimizer, by_hand = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](oracle.parameters())
    train(model, optimizer, 5)
    parameters = dict(oracle.named_parameters())
    for step in range(5):
        by_hand.zero_grad()
        used = {
            key: (item.detach() * masks[key] if key in masks else item.detach()).requires_grad_()
            for key, item in parameters.items()
        }
        x, y = batch(step)
        nn.functional.cross_entropy(torch.func.functional_call(oracle, used, (x,)), y).backward()
        for key, item in parameters.items():
            item.grad = used[key].grad
        by_hand.step()
    for key, item in parameters.items():
        if key in masks:
            assert torch.equal(held.dense[key], item.detach()), key
            assert bool((held.dense[key] != 0).all())
    check_values(model, masks)
    held.detach()
    check_values(model, masks)


def check_values(model: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in masks:
            assert not bits(parameter)[~masks[name]].any()


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
