"""`finetune` against loops written out by hand, and what it promises about the caller's things."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train.networks import convolutional, images, loader, plain, points, same, state

from secateurs.base.errors import InputError, TrainError, UnknownNameError
from secateurs.train.finetune import FineTune, finetune
from secateurs.train.schedule import factor


def by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]], lrs: list[float]
) -> None:
    step = 0
    for _ in range(len(lrs) // len(batches)):
        for inputs, target in batches:
            optimizer.param_groups[0]["lr"] = lrs[step]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
            step += 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_equals_a_loop_by_hand(name: str) -> None:
    batches = [(x, y) for x, y in loader(points(), shuffle=False)]
    config = FineTune(epochs=3, optimizer=name, lr=0.05, weight_decay=0.01, schedule="cosine", progress=False)
    expected = plain()
    lrs = [0.05 * (1 + math.cos(math.pi * step / 9)) / 2 for step in range(9)]
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(expected.parameters(), lr=1, momentum=0.9, weight_decay=0.01)
    elif name == "adam":
        optimizer = torch.optim.Adam(expected.parameters(), weight_decay=0.01)
    else:
        optimizer = torch.optim.AdamW(expected.parameters(), weight_decay=0.01)
    by_hand(expected, optimizer, batches, lrs)
    result = finetune(plain(), batches, config)
    assert same(state(result.model), state(expected))
    assert [row.lr for row in result.history] == [lrs[2], lrs[5], lrs[8]]
    assert [row.epoch for row in result.history] == [1, 2, 3]


def test_learns_and_reports() -> None:
    data = loader(points(96))
    result = finetune(plain(width=16), data, FineTune(epochs=10, lr=0.2, progress=False), validation=data)
    metrics = [row.metric for row in result.history]
    assert metrics[-1] is not None
    assert metrics[-1] > 0.85
    assert result.history[-1].loss < 0.5 * result.history[0].loss
    assert all(row.seconds > 0 for row in result.history)
    assert f"{metrics[-1]:.4f}" in str(result)


def test_progress_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    finetune(plain(), loader(points()), FineTune(epochs=2))
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "epoch 2/2" in shown.err
    assert "6/6" in shown.err
    finetune(plain(), loader(points()), FineTune(epochs=2, progress=False))
    assert capfd.readouterr().err == ""


def test_history_loss_is_the_mean_over_rows() -> None:
    batches = [(x, y) for x, y in loader(points(20), shuffle=False)]  # 8, 8 and 4 rows
    model = plain()
    result = finetune(model, batches, FineTune(epochs=1, lr=1e-30, progress=False))
    inputs, target = points(20)
    assert result.history[0].loss == pytest.approx(
        float(nn.functional.cross_entropy(model(inputs), target).detach()), rel=1e-6
    )


def test_the_callers_things_stay_as_they_are() -> None:
    model = convolutional().eval()
    model[3].train()
    teacher = convolutional(seed=4)
    generator = torch.Generator().manual_seed(3)
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*images()), batch_size=8, shuffle=True, generator=generator
    )
    before = (state(model), state(teacher), torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    modes = [module.training for module in model.modules()]
    order = generator.get_state()
    result = finetune(model, data, FineTune(epochs=1, recalibrate=1, progress=False), teacher=teacher, validation=data)
    assert same(state(model), before[0])
    assert same(state(teacher), before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert random.getstate() == before[3]
    assert str(np.random.get_state()) == before[4]
    assert torch.equal(generator.get_state(), order)
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in result.model.modules()] == modes
    assert all(parameter.grad is None for parameter in (*model.parameters(), *result.model.parameters()))
    assert not same(state(result.model), state(model))
    copy.deepcopy(result.model)


def test_the_seed_and_nothing_else_decides() -> None:
    data = loader(images())
    config = FineTune(epochs=1, progress=False)
    first = finetune(convolutional(), data, config)
    torch.manual_seed(77)
    torch.randn(5)
    second = finetune(convolutional(), data, config)
    other = finetune(convolutional(), data, FineTune(epochs=1, seed=1, progress=False))
    assert same(state(first.model), state(second.model))
    assert not same(state(first.model), state(other.model))


def test_what_the_data_draws_does_not_change_what_the_model_draws() -> None:
    def draws(noise: int) -> list[float]:
        def collate(rows: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
            torch.rand(noise)
            return [torch.stack(column) for column in zip(*rows, strict=True)]

        seen: list[float] = []
        model = plain()
        model.register_forward_hook(lambda module, inputs, output: seen.append(float(torch.rand(()))))
        data = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*points()), batch_size=8, shuffle=True, collate_fn=collate
        )
        finetune(model, data, FineTune(epochs=2, progress=False))
        return seen

    assert draws(0) == draws(5)
    assert len(set(draws(0))) == 6


def test_frozen_layers_stay_frozen() -> None:
    model = convolutional().train()
    model[1].eval()
    model[0].requires_grad_(False)
    result = finetune(model, loader(images()), FineTune(epochs=1, progress=False))
    assert torch.equal(result.model[1].running_mean, model[1].running_mean)
    assert same(state(result.model[0]), state(model[0]))
    assert not torch.equal(result.model[5].running_mean, model[5].running_mean)


def test_stops_when_patience_runs_out_and_gives_back_the_best() -> None:
    metrics = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    kept: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> float:
        assert not model.training
        kept.append(state(model))
        return next(metrics)

    config = FineTune(epochs=9, lr=0.1, patience=2, keep="best", progress=False)
    result = finetune(plain(), loader(points()), config, evaluate=evaluate)
    assert result.stopped_early
    assert [row.metric for row in result.history] == [0.1, 0.5, 0.4, 0.3]
    assert result.best_epoch == 2
    assert same(state(result.model), kept[1])
    assert "stopped early" in str(result)


def test_limits() -> None:
    data = loader(points(40), shuffle=False)
    limited = finetune(plain(), data, FineTune(epochs=2, batches=2, progress=False))
    whole = finetune(plain(), list(data)[:2], FineTune(epochs=2, progress=False))
    assert same(state(limited.model), state(whole.model))
    nothing = finetune(plain(), data, FineTune(epochs=0, progress=False))
    assert same(state(nothing.model), state(plain()))
    assert nothing.history == ()


def test_gradients_are_shortened() -> None:
    batches = [next(iter(loader(points(), shuffle=False)))]
    model = plain()
    nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
    config = FineTune(epochs=1, lr=1.0, schedule="constant", clip_norm=norm / 4, progress=False)
    result = finetune(plain(), batches, config)
    pairs = zip(result.model.parameters(), model.parameters(), strict=True)
    moved = math.sqrt(sum(float(((new - old) ** 2).sum().detach()) for new, old in pairs))
    assert moved == pytest.approx(norm / 4, rel=1e-4)


@pytest.mark.parametrize("inputs", ["tuple", "dict"])
def test_several_inputs(inputs: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 3)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(left + right)}

    x, y = points()
    batch = ((x, x), y) if inputs == "tuple" else ({"right": x, "left": x}, y)
    result = finetune(Two(), [batch], FineTune(epochs=1, progress=False))
    expected = Two()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.01, momentum=0.9)
    nn.functional.cross_entropy(expected(x, x)["logits"], y).backward()
    optimizer.step()
    assert same(state(result.model), state(expected))


def test_bf16_computes_in_bf16_and_keeps_float_weights() -> None:
    seen: list[torch.dtype] = []
    model = plain()
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    half = finetune(model, loader(points()), FineTune(epochs=1, precision="bf16-mixed", progress=False))
    full = finetune(plain(), loader(points()), FineTune(epochs=1, progress=False))
    assert set(seen) == {torch.bfloat16}
    for name, tensor in state(half.model).items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, state(full.model)[name], rtol=0.02, atol=0.02)
    assert not same(state(half.model), state(full.model))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    data = loader(points())
    config = FineTune(epochs=2, accelerator="gpu", devices=1, progress=False)
    there = finetune(plain(), data, config, validation=data)
    here = finetune(plain(), data, FineTune(epochs=2, progress=False))
    for name, tensor in state(there.model).items():
        assert tensor.device.type == "cpu"
        torch.testing.assert_close(tensor, state(here.model)[name], rtol=1e-3, atol=1e-4)


def test_an_optimizer_goes_on_with_its_momentum() -> None:
    batches = [(x, y) for x, y in loader(points(), shuffle=False)]
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    by_hand(model, optimizer, batches, [0.05] * 3)
    before = state(model)
    result = finetune(model, batches, FineTune(epochs=1, schedule="constant", progress=False), optimizer=optimizer)
    assert same(state(model), before)
    by_hand(model, optimizer, batches, [0.05] * 3)
    assert same(state(result.model), state(model))
    for mine, theirs in zip(result.optimizer.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])


def test_schedules() -> None:
    def curve(**settings: object) -> list[float]:
        config = FineTune(epochs=4, **settings)  # type: ignore[arg-type]
        return [factor(config, step, 5) for step in range(20)]

    assert curve(schedule="constant") == [1.0] * 20
    steps = curve(schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert steps == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)
    warm = curve(schedule="constant", warmup=0.8)
    assert warm == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 16)
    cosine = curve(schedule="cosine", warmup=0.8)
    assert cosine[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert cosine[12] == pytest.approx(0.5)
    assert cosine == sorted(cosine[:4]) + sorted(cosine[4:], reverse=True)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    x, y = points()
    bad = x.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(TrainError, match=r"not finite.*step 1 \(epoch 1, batch 1\).*loss nan at learning rate 0.02"):
        finetune(plain(), [(x, y), (bad, y)], FineTune(epochs=1, lr=0.02, schedule="constant", progress=False))


def test_batches_that_do_not_fit_are_named() -> None:
    x, y = points()
    quiet = FineTune(epochs=1, progress=False)
    with pytest.raises(TrainError, match=r"epoch 1, batch 1, module `0`.*inputs \[24, 3\]"):
        finetune(plain(), [(x, y), (x[:, :3], y)], quiet)
    with pytest.raises(TrainError, match=r"epoch 1, batch 0, loss 'cross_entropy'.*outputs \[24, 3\], target \[5\]"):
        finetune(plain(), [(x, y[:5])], quiet)
    with pytest.raises(TrainError, match=r"not a pair.*batch 0.*\[24, 4\]"):
        finetune(plain(), [x], quiet)
    with pytest.raises(TrainError, match=r"not one number.*\[24\]"):
        per_row = FineTune(epochs=1, loss=lambda outputs, target: outputs[:, 0], progress=False)
        finetune(plain(), [(x, y)], per_row)
    with pytest.raises(InputError, match="not one tensor"):
        finetune(nn.GRU(4, 3), [(x, y)], quiet)


def test_metrics_that_are_no_numbers_stop_the_run() -> None:
    quiet = FineTune(epochs=1, progress=False)
    data = loader(points())
    with pytest.raises(TrainError, match=r"finite number.*after epoch 1.*nan"):
        finetune(plain(), data, quiet, evaluate=lambda model: float("nan"))
    with pytest.raises(TrainError, match=r"did not give a number.*None"):
        finetune(plain(), data, quiet, evaluate=lambda model: None)  # type: ignore[arg-type,return-value]


def test_contradictions_are_refused() -> None:
    data = loader(points())
    with pytest.raises(InputError, match=r"patience.*needs a metric"):
        finetune(plain(), data, FineTune(patience=1))
    with pytest.raises(InputError, match="Both"):
        finetune(plain(), data, evaluate=lambda model: 0.0, validation=data)
    with pytest.raises(TrainError, match="data is empty"):
        finetune(plain(), [])
    with pytest.raises(InputError, match="no parameter to train"):
        finetune(plain().requires_grad_(False), data)
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        finetune("resnet", data)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"strategy.*fsdpp"):
        finetune(plain(), data, FineTune(strategy="fsdpp"))
    with pytest.raises(InputError, match="accelerator"):
        finetune(plain(), data, FineTune(accelerator="abacus"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamv"}, "'adamw'"),
        ({"schedule": "cosin"}, "'cosine'"),
        ({"loss": "crossentropy"}, "'cross_entropy'"),
        ({"precision": "bf16"}, "bf16-mixed"),
        ({"keep": "bst"}, "'best'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        FineTune(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": -1},
        {"epochs": 1.5},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": "fast"},
        {"momentum": -0.1},
        {"warmup": -1.0},
        {"batches": 0},
        {"patience": 0},
        {"clip_norm": 0.0},
        {"milestones": (0.5, 1.0)},
        {"recalibrate": -1},
        {"checkpoint_epochs": 0},
        {"seed": -1},
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings)) if "seed" not in settings else "seed"):
        FineTune(**settings)  # type: ignore[arg-type]
