"""Penalties by value, by gradient, inside a run, and balanced against the loss."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from train.networks import convolutional, images, loader, plain, points, same, state

from secateurs.base.errors import InputError, UnknownNameError
from secateurs.train.finetune import FineTune, finetune
from secateurs.train.penalty import KINDS, Penalty


def pair() -> nn.Sequential:
    """Filters (3, 4) and (0, 0), then a layer of (2, -1); biases that no penalty may look at."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        model[1].weight.copy_(torch.tensor([[2.0, -1.0]]))
    return model


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("l1", 10.0), ("squared_l2", 30.0), ("layer_norm", 5 + 5**0.5), ("filter_norm", 5 + 5**0.5)],
)
def test_value_by_hand(kind: str, expected: float) -> None:
    assert float(Penalty(kind=kind).value(pair()).detach()) == pytest.approx(expected)


def test_norm_of_a_layer_is_not_that_of_its_filters() -> None:
    model = nn.Sequential(nn.Linear(1, 2))
    nn.init.ones_(model[0].weight)
    assert float(Penalty(kind="layer_norm").value(model)) == pytest.approx(2**0.5)
    assert float(Penalty(kind="filter_norm").value(model)) == pytest.approx(2)


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_a_transposed_convolution_are_what_produces_an_output(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    each = 6 // groups
    norms = [layer.weight[k // each * (4 // groups) :][: 4 // groups, k % each].norm() for k in range(6)]
    assert float(Penalty().value(layer)) == pytest.approx(float(sum(norms)))
    with torch.no_grad():  # output 4 is silent: its filter is at the norm's kink, all others are pushed
        layer.weight[4 // each * (4 // groups) :][: 4 // groups, 4 % each] = 0
    Penalty().value(layer).backward()
    silent = layer(torch.randn(1, 4, 5, 5))[0].flatten(1).abs().amax(1) == 0
    assert silent.tolist() == [k == 4 for k in range(6)]
    assert int((layer.weight.grad == 0).sum()) == 4 // groups * 9


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bn_scale"])
def test_gradient_is_finite_where_filters_are_zero(kind: str) -> None:
    model = pair()
    Penalty(kind=kind).value(model).backward()
    assert torch.isfinite(model[0].weight.grad).all()
    assert model[0].weight.grad[1].tolist() == [0, 0]
    assert model[0].bias.grad is None


def test_scales_of_batch_norms() -> None:
    model = convolutional()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0, 0.0]))
    penalty = Penalty(kind="bn_scale").value(model)
    assert float(penalty) == pytest.approx(3.5 + 5)
    penalty.backward()
    assert model[1].weight.grad.tolist() == [1, -1, 0, 1, 0, 0]


def test_exclusion_and_tied_weights() -> None:
    model = pair()
    assert float(Penalty(kind="l1", exclude=("1",)).value(model)) == 7
    assert float(Penalty(kind="l1", exclude=("0.weight",)).value(model)) == 3
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    assert float(Penalty(kind="l1").value(tied)) == pytest.approx(float(tied[0].weight.abs().sum()))


def test_exclusion_reaches_below_and_must_match_something() -> None:
    model = nn.Sequential(OrderedDict(body=pair(), head=nn.Linear(2, 2)))
    assert Penalty(exclude=["body"]).parameters(model).keys() == {"head.weight"}
    assert Penalty(exclude=["body.*", "head.bias"]).parameters(model).keys() == {"head.weight"}
    for glob, hint in (("hed", "did you mean head"), ("layer4", "such as body.0")):
        with pytest.raises(UnknownNameError, match=f"'{glob}' matches nothing.*{hint}"):
            Penalty(exclude=[glob]).value(model)
    ask = FineTune(epochs=1, penalty=Penalty(exclude=["hed"]), progress=False)
    with pytest.raises(UnknownNameError, match="'hed' matches nothing"):
        finetune(plain(), loader(points()), ask)


def test_run_equals_a_loop_by_hand() -> None:
    batches = [(x, y) for x, y in loader(points(), shuffle=False)]
    expected = plain()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for inputs, target in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(expected(inputs), target)
            (loss + 0.02 * sum(layer.weight.norm(dim=1).sum() for layer in (expected[0], expected[2]))).backward()
            optimizer.step()
    config = FineTune(epochs=2, lr=0.05, schedule="constant", penalty=Penalty(strength=0.02), progress=False)
    result = finetune(plain(), batches, config)
    for name, tensor in state(expected).items():
        torch.testing.assert_close(state(result.model)[name], tensor)
    assert result.history[-1].penalty == pytest.approx(0.02 * float(Penalty().value(expected)), rel=1e-5)


def test_balance_makes_penalty_and_loss_equal_at_the_start() -> None:
    data = loader(points(), shuffle=False)
    model = plain()
    config = FineTune(epochs=1, lr=1e-9, penalty=Penalty(kind="l1"), progress=False)
    row = finetune(model, data, config).history[0]
    assert row.penalty == pytest.approx(row.loss, rel=1e-4)


def test_balance_needs_something_to_balance() -> None:
    model = plain()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(InputError, match="cannot be balanced.*the penalty 0"):
        finetune(model, loader(points()), FineTune(epochs=1, penalty=Penalty(), progress=False))


def test_group_lasso_empties_filters_and_weight_decay_does_not() -> None:
    """The reason to have it: with the same main loss, whole filters shrink to almost nothing."""
    data = loader(points(96), batch_size=32)
    norms = {}
    for kind, strength in (("filter_norm", 0.03), ("squared_l2", 0.001)):
        config = FineTune(epochs=40, lr=0.1, penalty=Penalty(kind=kind, strength=strength), progress=False)
        first = finetune(plain(width=12), data, config).model[0]
        norms[kind] = (first.weight.norm(dim=1) / first.weight.norm(dim=1).max()).sort().values
    assert (norms["filter_norm"] < 0.1).sum() > (norms["squared_l2"] < 0.1).sum()


def test_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    data, config = loader(images()), FineTune(epochs=3, lr=0.05, penalty=Penalty(), progress=False)
    whole = finetune(convolutional(), data, config, folder=tmp_path / "whole", evaluate=lambda model: 0.0)
    calls = []

    def stop(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise Stop
        return 0.0

    with pytest.raises(Stop):
        finetune(convolutional(), data, config, folder=tmp_path / "broken", evaluate=stop)
    again = finetune(convolutional(), data, config, folder=tmp_path / "broken", evaluate=lambda model: 0.0)
    assert same(state(again.model), state(whole.model))


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"kind": "filter_nrom"}, UnknownNameError, "did you mean 'filter_norm'"),
        ({"strength": -1}, InputError, "at least 0"),
        ({"strength": "balanced"}, InputError, "or 'balance'"),
        ({"batches": 0}, InputError, "above 0"),
        ({"batches": 1.5}, InputError, "above 0"),
        ({"exclude": "head"}, InputError, r"exclude=\['head'\]"),
    ],
)
def test_bad_settings(settings: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Penalty(**settings)


def test_nothing_to_act_on() -> None:
    with pytest.raises(InputError, match="no trainable batch norm"):
        Penalty(kind="bn_scale").value(plain())
    with pytest.raises(InputError, match=r"besides those excluded by \*"):
        Penalty(exclude=("*",)).value(plain())
