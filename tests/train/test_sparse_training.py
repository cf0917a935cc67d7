"""`FineTune(sparsity=...)`: what is zero, when, and that it is what a loop of one's own with a sparsifier gives."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train.networks import convolutional, images, loader, plain, points, same, state
from train.stopping import Interrupted, Stopping

import secateurs as sec
from secateurs import recipe
from secateurs.deliver.request import plain as as_plain
from secateurs.sparsity.time import steps_of

DATA = loader(points(40))
"""Five batches."""


def training(sparsity: sec.Sparsity | None, **more: Any) -> sec.FineTune:
    return sec.FineTune(**{"epochs": 4, "lr": 0.1, "progress": False, "sparsity": sparsity, **more})


def zeros(model: nn.Module) -> dict[str, int]:
    return {name: int((item == 0).sum()) for name, item in model.named_parameters() if item.dim() > 1}


def test_zeros_after_each_epoch_are_those_of_the_schedule() -> None:
    model = plain(width=10)
    before = state(model)
    schedule = sec.Gradual(begin=3, end=14, every=2)
    seen: list[dict[str, int]] = []

    def look(net: nn.Module) -> float:
        seen.append(zeros(net))
        return 0.0

    result = sec.finetune(model, DATA, training(sec.Sparsity(0.8, schedule=schedule), weight_decay=0.1), evaluate=look)
    assert same(state(model), before)
    for epoch, counts in enumerate(seen, start=1):
        last = max((step for step in range(epoch * 5 + 1) if schedule.due(step)), default=None)
        share = 0.0 if last is None else schedule.at(last, 0.8)
        assert counts == {"0.weight": math.floor(share * 40 + 0.5), "2.weight": math.floor(share * 30 + 0.5)}
        assert result.history[epoch - 1].sparsity == pytest.approx(sum(counts.values()) / 70)
    assert result.masks is not None
    for name, mask in result.masks.items():
        weight = result.model.get_parameter(name)
        assert torch.equal(mask, weight != 0)
        assert not torch.signbit(weight[~mask]).any()
    assert list(result.model.state_dict()) == list(before)
    assert "zeros" in str(result)
    assert "80.0%" in str(result)
    assert sec.finetune(model, DATA, training(None)).masks is None


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_it_is_what_a_loop_of_ones_own_gives(mode: str) -> None:
    """Without shuffling, and the learning rate constant, the loop is five lines."""
    data, model = loader(points(40), shuffle=False), plain(width=10)
    settings: dict[str, Any] = {"mode": mode, "schedule": sec.Gradual(begin=0, end=15, every=3)}
    own = copy.deepcopy(model)
    held = sec.sparsify(own, 0.7, **settings)
    optimizer = torch.optim.SGD(own.parameters(), 0.1, 0.9, weight_decay=0.01)
    for step in range(20):
        x, y = list(data)[step % 5]
        nn.functional.cross_entropy(own(x), y).backward()
        optimizer.step()
        held.step()
        optimizer.zero_grad()
    config = training(sec.Sparsity(0.7, **settings), schedule="constant", weight_decay=0.01)
    result = sec.finetune(model, data, config)
    assert result.masks is not None
    assert all(torch.equal(mask, held.masks[name]) for name, mask in result.masks.items())
    assert same(state(result.model), state(held.detach()))


@pytest.mark.parametrize(
    ("importance", "options"), [("taylor", None), ("obd", {"diagonal": "gauss_newton"}), ("taylor_weights", None)]
)
def test_importances_look_at_the_training_data_with_its_loss(importance: str, options: Any) -> None:
    """Before the first step, at the weights that come in; of DATA, the first two batches."""

    def halved(outputs: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, nn.functional.one_hot(target, 3).float()) / 2

    sparsity = sec.Sparsity(0.5, importance=importance, options=options, batches=2)
    data, model = loader(points(40), shuffle=False), plain()
    result = sec.finetune(model, data, training(sparsity, loss=halved))
    expected = sec.masks(model, 0.5, importance=importance, options=options, data=list(data)[:2], loss=halved)
    assert result.masks is not None
    assert all(torch.equal(mask, expected[name]) for name, mask in result.masks.items())
    assert zeros(result.model) == {"0.weight": 12, "2.weight": 9}


def test_nothing_left_of_a_layer_warns() -> None:
    sparsity = sec.Sparsity({"0": sec.Threshold("value", 1e3, start=0.0)}, schedule=sec.Gradual(0, 10))
    with pytest.warns(UserWarning, match=r"Nothing is left of `0\.weight`"):
        sec.finetune(plain(), loader(points(40)), training(sparsity))


def test_a_training_goes_on_from_data_that_an_update_has_looked_at() -> None:
    """Looking takes nothing from the training: the order of the data, chance and checkpoints are as without it."""
    sparsity = sec.Sparsity(0.0, importance="obd", schedule=sec.Constant(2, 18, every=8))
    looked = sec.finetune(convolutional(), loader(images(40)), training(sparsity))
    plainly = sec.finetune(convolutional(), loader(images(40)), training(sec.Sparsity(0.0)))
    assert same(state(looked.model), state(plainly.model))


@pytest.mark.parametrize(
    ("text", "steps"), [("2 epochs", 10), ("1 epoch", 5), ("0.5 epochs", 2), ("75%", 15), ("7.5 %", 2), (7, 7)]
)
def test_moments_in_words(text: str | int, steps: int) -> None:
    assert steps_of(text, 5, 4) == steps


def test_schedules_in_words_are_those_in_steps() -> None:
    pairs = [
        (sec.Gradual("1 epoch", "75%", every="10%"), sec.Gradual(5, 15, every=2)),
        (sec.Iterative(every="1 epoch", rounds=3), sec.Iterative(every=5, rounds=3)),
        (sec.Constant("5%", "100%", every="1%"), sec.Constant(1, 20, every=1)),
        (sec.OneShot("50%"), sec.OneShot(10)),
    ]
    for words, steps in pairs:
        one, other = (
            sec.finetune(plain(), DATA, training(sec.Sparsity(0.6, schedule=item))) for item in (words, steps)
        )
        assert same(state(one.model), state(other.model))
        assert one.history[-1].sparsity == pytest.approx(0.6, abs=0.02)


def test_a_pruned_model_stays_pruned() -> None:
    model = plain(width=12)
    with sec.sparsify(model, {"0.weight": 0.5, "2.weight": 0.75}) as held:
        masks = held.masks
    config = training(sec.Sparsity(hold_zeros=True), optimizer="adam", weight_decay=0.1)
    result = sec.finetune(model, DATA, config)
    assert result.masks is not None
    for name, mask in masks.items():
        assert torch.equal(result.model.get_parameter(name) != 0, mask)
        assert torch.equal(result.masks[name], mask)
        assert not torch.equal(result.model.get_parameter(name), model.get_parameter(name))
    assert [row.sparsity for row in result.history] == [pytest.approx((24 + 27) / 84)] * 4
    deeper = sec.finetune(model, DATA, training(sec.Sparsity(0.8, hold_zeros=True, only=["0"])))
    assert deeper.masks is not None
    assert set(deeper.masks) == {"0.weight"}
    assert int(deeper.masks["0.weight"].sum()) == 48 - 38
    assert not bool((deeper.masks["0.weight"] & ~masks["0.weight"]).any())
    dense = sec.finetune(model, DATA, training(None))
    assert zeros(dense.model) == {"0.weight": 0, "2.weight": 0}


def test_masks_that_are_given_are_held_though_a_kept_weight_is_zero() -> None:
    model = plain()
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[:, 1] = False
    with torch.no_grad():
        model[0].weight[:, 0] = 0.0
    result = sec.finetune(model, DATA, training(None), masks={"0.weight": mask})
    weight = result.model.get_parameter("0.weight")
    assert not weight[:, 1].any()
    assert bool((weight[:, 0] != 0).all())
    deeper = sec.finetune(model, DATA, training(sec.Sparsity(0.5)), masks={"0.weight": mask})
    assert deeper.masks is not None
    assert not bool((deeper.masks["0.weight"] & ~mask).any())
    assert int(deeper.masks["0.weight"].sum()) == 12


def test_phases_of_surgery_and_a_resume_at_every_step(tmp_path: Path) -> None:
    """First the convolutions, then the linear layer, while the masks of the first are held."""
    data = loader(images(20))
    surgery = {"mode": "dense-update", "update": sec.Surgery(c=0.5, gamma=0.05), "schedule": sec.Constant(end="90%")}
    first = sec.finetune(convolutional(), data, training(sec.Sparsity(**surgery, exclude=["8"])))
    assert first.masks is not None
    assert set(first.masks) == {"0.weight", "4.weight"}
    gone = {name: ~mask for name, mask in first.masks.items()}
    stopping = Stopping()

    def look(net: nn.Module) -> float:
        assert not any(bool(net.get_parameter(name)[mask].any()) for name, mask in gone.items())
        return 0.0

    common: dict[str, Any] = {"masks": first.masks, "evaluate": look}
    config = training(sec.Sparsity(**surgery, only=["8"]), epochs=3, optimizer="adamw", checkpoint_steps=1)
    undisturbed = sec.finetune(first.model, data, config, **common)
    for _ in range(20):
        try:
            result = sec.finetune(first.model, data, replace(config, loss=stopping), folder=tmp_path, **common)
            break
        except Interrupted:
            continue
    assert result.masks is not None
    assert undisturbed.masks is not None
    assert same(result.masks, undisturbed.masks)
    assert same(state(result.model), state(undisturbed.model))
    for name, mask in result.masks.items():
        weight = result.model.get_parameter(name)
        assert torch.equal(mask, weight != 0)
        assert not torch.signbit(weight[~mask]).any()
        if name != "8.weight":
            assert torch.equal(mask, first.masks[name])
    assert set(result.masks) == {*first.masks, "8.weight"}
    with pytest.raises(sec.InputError, match=r"cannot be held in `0.weight`"):
        sec.finetune(first.model, data, training(sec.Sparsity(**surgery)), masks=first.masks)


def test_the_best_epoch_is_one_of_final_sparsity() -> None:
    """The metric falls from epoch to epoch; the masks are final after the third, and change again after it."""
    metrics = iter([0.9, 0.8, 0.3, 0.2, 0.1])
    seen: list[dict[str, Tensor]] = []

    def falling(net: nn.Module) -> float:
        seen.append(state(net))
        return next(metrics)

    sparsity = sec.Sparsity(0.5, mode="dense-update", schedule=sec.Constant(begin=11))
    config = training(sparsity, epochs=5, keep="best", patience=2, lr=0.5)
    result = sec.finetune(plain(width=20), DATA, config, evaluate=falling)
    assert (result.best_epoch, result.stopped_early, len(result.history)) == (3, False, 5)
    assert same(state(result.model), seen[2])
    assert result.masks is not None
    assert all(torch.equal(mask, seen[2][name] != 0) for name, mask in result.masks.items())
    assert any(not torch.equal(mask, seen[-1][name] != 0) for name, mask in result.masks.items())


def test_with_distillation_penalty_and_clipping() -> None:
    config = training(
        sec.Sparsity(0.6, pattern="rows(2)", schedule=sec.Gradual(0, "50%", every=2)), distil=sec.Distill(),
        penalty=sec.Penalty(kind="l1", strength=0.01), clip_norm=0.5, optimizer="adamw", weight_decay=0.1,
        recalibrate=2,
    )  # fmt: skip
    result = sec.finetune(convolutional(), loader(images(40)), config, teacher=convolutional(seed=4))
    assert result.masks is not None
    assert set(result.masks) == {"0.weight", "4.weight", "8.weight"}
    for name, mask in result.masks.items():
        assert torch.equal(mask, result.model.get_parameter(name) != 0)


def test_no_training_at_all_prunes() -> None:
    model = plain()
    result = sec.finetune(model, DATA, training(sec.Sparsity(0.5), epochs=0))
    expected = sec.masks(model, 0.5)
    assert all(torch.equal(result.model.get_parameter(name) != 0, mask) for name, mask in expected.items())


KINDS = {
    "hard": sec.Sparsity(0.7, schedule=sec.Gradual(begin=1, end="80%", every=2)),
    "surgery": sec.Sparsity(mode="dense-update", update=sec.Surgery(c=0.5, gamma=0.5), schedule=sec.Constant()),
    "random": sec.Sparsity(0.6, update=sec.RandomRegrowth(end="100%"), schedule=sec.Constant()),
    "gradient": sec.Sparsity(0.6, update=sec.GradientRegrowth(end="100%"), schedule=sec.Constant(every=2)),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_step_can_be_the_last_before_a_resume(kind: str, tmp_path: Path) -> None:
    data = loader(images(20))
    common: dict[str, Any] = {"epochs": 3, "optimizer": "adamw", "checkpoint_steps": 1, "keep": "best"}
    check = loader(images(12, seed=9), shuffle=False)
    undisturbed = sec.finetune(convolutional(), data, training(KINDS[kind], **common), validation=check)
    stopping = Stopping()

    config = training(KINDS[kind], loss=stopping, **common)
    for _ in range(12):
        try:
            result = sec.finetune(convolutional(), data, config, validation=check, folder=tmp_path)
            break
        except Interrupted:
            continue
    assert stopping.calls == 9 + 8
    assert same(state(result.model), state(undisturbed.model))
    assert result.masks is not None
    assert undisturbed.masks is not None
    assert same(result.masks, undisturbed.masks)
    assert [row.sparsity for row in result.history] == [row.sparsity for row in undisturbed.history]
    again = sec.finetune(convolutional(), data, config, validation=check, folder=tmp_path)
    assert again.masks is not None
    assert same(again.masks, result.masks)


def test_a_folder_of_other_zeros_is_refused(tmp_path: Path) -> None:
    sec.finetune(plain(), DATA, training(sec.Sparsity(0.5)), folder=tmp_path / "a")
    with pytest.raises(sec.TrainError, match=r"`sparsity` `sparsity`.*was 0.5 and is now 0.6"):
        sec.finetune(plain(), DATA, training(sec.Sparsity(0.6)), folder=tmp_path / "a")
    masks = sec.masks(plain(), 0.5)
    sec.finetune(plain(), DATA, training(None), folder=tmp_path / "b", masks=masks)
    with pytest.raises(sec.TrainError, match="`masks`"):
        sec.finetune(plain(), DATA, training(None), folder=tmp_path / "b", masks=sec.masks(plain(), 0.6))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sec.Sparsity(), "give `sparsity`"),
        (lambda: sec.Sparsity(1.5), "from 0 to below 1"),
        (lambda: sec.Sparsity(0.5, mode="soft"), "give one of hard"),
        (lambda: sec.Sparsity(0.5, exclude="fc*"), r"exclude=\['fc\*'\]"),
        (lambda: sec.FineTune(soft=sec.Soft(), sparsity=sec.Sparsity(0.5)), "let one of them decide"),
        (lambda: sec.sparsify(plain(), sec.Threshold("std", 1, start=0), schedule=sec.Constant()), "Nothing moves"),
        (lambda: sec.masks(plain(), {"0": sec.Threshold("std", 1, start=0)}), "Nothing moves"),
        (lambda: sec.Threshold("std", 1, start=-1), ">= 0"),
        (lambda: sec.Gradual("a while", "75%"), "not a moment"),
        (lambda: sec.sparsify(plain(), 0.5, schedule=sec.Gradual(0, "75%")), "length of the training is not known"),
        (lambda: sec.finetune(plain(), DATA, training(sec.Sparsity(0.5, schedule=sec.Gradual(0, 21)))), "ends before"),
        (lambda: sec.sparsify(plain(), 0.5, hold_zeros=True, mode="dense-update"), "masked weights come back"),
        (lambda: sec.finetune(plain(), DATA, training(None), masks={"0.weight": torch.ones(1).bool()}), "does not fit"),
        (lambda: sec.sparsify(plain(), hold_zeros=True, schedule=sec.OneShot()), "no sparsity for the schedule"),
    ],
)  # fmt: skip
def test_bad_input(make: Any, match: str) -> None:
    with pytest.raises(sec.InputError, match=match):
        make()


@pytest.mark.parametrize(
    "given",
    [
        sec.Sparsity(0.9, schedule=sec.Gradual("1 epoch", "75%", every=10)),
        sec.Sparsity({"0": 0.5, "2": sec.Threshold("std", 1.0)}, exclude=["head.*"]),
        sec.Sparsity(sec.Threshold("mean_std", 0.5), mode="dense-update", schedule=sec.Constant()),
        sec.Sparsity(mode="dense-update", update=sec.Surgery(c={"0.weight": 2.0}), schedule=sec.Constant(end="80%")),
        sec.Sparsity({nn.Linear: 0.5, "2": sec.Threshold("std", 1.0)}, only=[nn.Linear, "3"]),
        sec.Sparsity(mode="dense-update", update=sec.Surgery(c={nn.Linear: 2.0}), schedule=sec.Constant()),
        sec.Sparsity(sec.Threshold("mean_std", 0.5, start=-1.0), schedule=sec.Gradual(0, "75%")),
        sec.Sparsity(pattern="2:4"),
        sec.Sparsity(0.6, update=sec.GradientRegrowth(end="75%"), distribution="erk"),
        sec.Sparsity(hold_zeros=True),
    ],
    ids=str,
)
def test_recipe_round_trip(given: sec.Sparsity) -> None:
    assert sec.Sparsity.from_plain(given.plain()) == given
    made = recipe.make(budget={"macs": 0.5}, finetune=sec.FineTune(sparsity=given))
    read = recipe.read(made.to_yaml())
    assert read.finetune == sec.FineTune(sparsity=given)
    assert as_plain(given) == given.plain()


def test_recipe_names_its_mistakes() -> None:
    text = "version: 1\nbudget: {macs: 0.5}\nfinetune:\n  sparsity:\n    "
    for line, match in (
        ("sparsty: 0.5", "did you mean 'sparsity'"),
        ("{sparsity: 0.5, schedule: gradul}", "did you mean 'gradual'"),
        ("{sparsity: 0.5, schedule: {gradual: {start: 1}}}", "start"),
        ("{sparsity: 0.5, update: {surgry: {}}}", "did you mean 'surgery'"),
    ):
        with pytest.raises(sec.RecipeError, match=match):
            recipe.read(text + line + "\n")
