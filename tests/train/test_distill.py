"""The distillation loss against its formula, and its effect on training."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train.networks import convolutional, images, loader, plain, points, same, state

import secateurs as sec
from secateurs.base.errors import InputError, TrainError, UnknownNameError
from secateurs.train.distill import Distill, kept_channels, soft_loss
from secateurs.train.finetune import FineTune, finetune


def test_soft_loss_is_the_formula() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(dim=1).mean()
    assert float(soft_loss(student, teacher, 3.0)) == pytest.approx(float(expected), rel=1e-12)


def test_soft_loss_is_zero_where_both_agree() -> None:
    logits = torch.randn(5, 7)
    assert float(soft_loss(logits, logits.clone(), 4.0)) == pytest.approx(0.0, abs=1e-6)


def test_soft_loss_averages_over_positions() -> None:
    student, teacher = torch.randn(2, 7, 3, 4), torch.randn(2, 7, 3, 4)
    rows = [t.permute(0, 2, 3, 1).reshape(-1, 7) for t in (student, teacher)]
    torch.testing.assert_close(soft_loss(student, teacher, 2.0), soft_loss(rows[0], rows[1], 2.0))
    torch.testing.assert_close(soft_loss(rows[0].T, rows[1].T, 2.0, dim=0), soft_loss(rows[0], rows[1], 2.0))


def test_the_gradient_hardly_depends_on_the_temperature() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(16, 10)
    norms = []
    for temperature in (4.0, 8.0, 16.0, 32.0):
        student = torch.zeros(16, 10, requires_grad=True)
        soft_loss(student, teacher, temperature).backward()
        assert student.grad is not None
        norms.append(float(student.grad.norm()))
    assert max(norms) / min(norms) < 1.2


def test_alpha_zero_is_plain_training_bit_for_bit() -> None:
    data = loader(images())
    plainly = finetune(convolutional(), data, FineTune(epochs=2, progress=False))
    config = FineTune(epochs=2, distil=Distill(alpha=0.0), progress=False)
    distilled = finetune(convolutional(), data, config, teacher=convolutional(seed=9))
    assert same(state(plainly.model), state(distilled.model))


def test_one_step_is_the_formula_and_the_teacher_is_unchanged() -> None:
    x, y = images()
    student, teacher = convolutional().eval(), convolutional(seed=9).train()
    student[3].p = 0.0
    before = state(teacher)
    distil = Distill(temperature=2.0, alpha=0.3)
    result = finetune(student, [(x, y)], FineTune(epochs=1, lr=0.1, distil=distil, progress=False), teacher=teacher)
    assert same(state(teacher), before)
    assert all(module.training for module in teacher.modules())
    assert all(parameter.requires_grad for parameter in teacher.parameters())

    student.train()
    outputs = student(x)
    with torch.no_grad():
        answer = teacher.eval()(x)
    soft = nn.functional.kl_div((outputs / 2).log_softmax(1), (answer / 2).softmax(1), reduction="batchmean")
    loss = 0.7 * nn.functional.cross_entropy(outputs, y) + 0.3 * 4 * soft
    loss.backward()
    assert result.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, new), old in zip(result.model.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, msg=name)  # type: ignore[operator]


def cut_twin(teacher: nn.Sequential, kept: list[int]) -> nn.Sequential:
    """The plain network with only the `kept` hidden neurons."""
    small = plain(width=len(kept))
    with torch.no_grad():
        small[0].weight.copy_(teacher[0].weight[kept])
        small[0].bias.copy_(teacher[0].bias[kept])
        small[2].weight.copy_(teacher[2].weight[:, kept])
        small[2].bias.copy_(teacher[2].bias)
    return small


def test_features_are_compared_on_the_kept_channels() -> None:
    teacher = plain()
    kept = [0, 2, 5]
    student = cut_twin(teacher, kept)
    x, y = points()

    def no_loss(outputs: Tensor, target: Tensor) -> Tensor:
        return outputs.sum() * 0.0

    equal = Distill(alpha=0.0, features={"1": kept})
    config = FineTune(epochs=1, loss=no_loss, distil=equal, progress=False)
    assert finetune(student, [(x, y)], config, teacher=teacher).history[0].loss < 1e-12

    other = Distill(alpha=0.0, features={"1": [0, 2, 4]}, feature_weight=2.0)
    config = FineTune(epochs=1, loss=no_loss, distil=other, progress=False)
    result = finetune(student, [(x, y)], config, teacher=teacher)
    hidden = teacher[:2](x)
    expected = 2.0 * nn.functional.mse_loss(hidden[:, kept], hidden[:, [0, 2, 4]])
    assert result.history[0].loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert not result.model[1]._forward_hooks
    assert not torch.equal(result.model[0].weight, student[0].weight)
    assert torch.equal(result.model[2].weight, student[2].weight)


def test_kept_channels_come_from_the_plan() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 5, 3))
    removed = {"0.weight": {0: (1, 3)}, "1.weight": {0: (1, 3)}, "2.weight": {0: (1, 3), 1: (0,)}}
    assert kept_channels(model, removed, ["0", "1", "2"]) == {"0": (0, 2), "1": (0, 2), "2": (1, 2, 3, 4)}
    with pytest.raises(UnknownNameError, match="'4'"):
        kept_channels(model, removed, ["4"])


STILL_TO_COME: dict[str, dict[str, Any]] = {
    "gradual": {"sparsity": sec.Sparsity(0.5, schedule=sec.Gradual(0, "75%"))},
    "at once": {"sparsity": sec.Sparsity(0.5)},
    "fixed": {"sparsity": sec.Sparsity(pattern="2:4")},
    "soft": {"soft": sec.Soft(fraction=0.4)},
    "gates": {"gates": sec.Gates(strength=0.02, start=0.82)},
}


@pytest.mark.parametrize("how", STILL_TO_COME)
def test_a_training_that_prunes_learns_by_default_from_the_model_as_it_comes_in(how: str) -> None:
    config = FineTune(epochs=2, lr=0.1, distil=Distill(alpha=1.0), progress=False, **STILL_TO_COME[how])
    data, model = loader(images()), convolutional()
    before = state(model)
    result = finetune(model, data, config)
    assert same(state(model), before)
    assert same(state(result.model), state(finetune(model, data, config, teacher=copy.deepcopy(model)).model))
    assert not same(state(result.model), state(finetune(model, data, config, teacher=convolutional(seed=9)).model))


def test_the_default_teacher_does_not_change_while_its_student_does() -> None:
    """Before the first step both agree and the loss is zero; at the second the student has moved, the teacher not."""
    x, y = points()
    model = plain()
    gates = sec.Gates(strength=0.0, start=0.9)  # all stay open
    config = FineTune(epochs=2, lr=0.5, schedule="constant", gates=gates, distil=Distill(alpha=0.5), progress=False)
    first, second = finetune(model, [(x, y)], config).history
    own = nn.functional.cross_entropy(model(x), y)
    assert first.loss == pytest.approx(0.5 * float(own.detach()), rel=1e-5)
    alone = replace(config, epochs=1)
    after = finetune(model, [(x, y)], alone).model
    with torch.no_grad():
        expected = 0.5 * nn.functional.cross_entropy(after(x), y) + 0.5 * soft_loss(after(x), model(x), 4.0)
    assert second.loss == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) > 0.5 * float(nn.functional.cross_entropy(after(x), y).detach())


def test_a_model_that_may_be_cut_already_is_no_teacher_by_default() -> None:
    data = [points()]
    masks = sec.masks(plain(), 0.5)
    for sparsity, held in ((None, None), (sec.Sparsity(hold_zeros=True), None), (None, masks),
                           (sec.Sparsity(0.8), masks), (sec.Sparsity(0.8, hold_zeros=True), None)):  # fmt: skip
        config = FineTune(distil=Distill(), sparsity=sparsity, progress=False)
        with pytest.raises(InputError, match=r"needs a teacher.*may be cut already.*before the cut"):
            finetune(plain(), data, config, masks=held)


def test_bad_settings_are_refused() -> None:
    data = [points()]
    with pytest.raises(InputError, match="needs a teacher"):
        finetune(plain(), data, FineTune(distil=Distill()))
    with pytest.raises(UnknownNameError, match="student has no module named 'layer'"):
        finetune(plain(), data, FineTune(distil=Distill(features={"layer": [0]}), progress=False), teacher=plain())
    with pytest.raises(TrainError, match=r"module `1`.*2 kept; teacher \[24, 2\], student \[24, 6\]"):
        finetune(plain(), data, FineTune(distil=Distill(features={"1": [0, 1]}), progress=False), teacher=plain())
    with pytest.raises(TrainError, match=r"teacher \[24, 6\], student \[24, 3\]"):
        finetune(plain(), data, FineTune(distil=Distill(), progress=False), teacher=plain()[:2])
    for settings in ({"temperature": 0.0}, {"alpha": 1.5}, {"alpha": -0.1}, {"feature_weight": float("inf")}):
        with pytest.raises(InputError, match=next(iter(settings))):
            Distill(**settings)  # type: ignore[arg-type]
