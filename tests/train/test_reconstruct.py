"""Least-squares reconstruction: against lstsq on im2col matrices, and on networks where nothing needs to be lost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from secateurs.train.least_squares import Normal, Windows
from secateurs.train.reconstruct import reconstruct

pytestmark = pytest.mark.medium

Batch = tuple[Tensor, Tensor]


def images(count: int = 24, channels: int = 3, size: int = 7, batch: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)
    return [(part, torch.zeros(len(part))) for part in x.split(batch)]


def cut_of(model: nn.Module, keep: dict[str, list[int]], x: Tensor, form: str = "auto") -> tuple[nn.Module, sec.Plan]:
    graph = sec.capture(model, x)
    groups = sec.couple(graph)
    plan = sec.plan(graph, groups, keep=keep)
    return sec.cut_detailed(model, plan, x, form=form).model, plan


def convolutional(bias: bool = True, groups: int = 1, padding: int = 1, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, padding, 1, groups, bias), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    return model.double().eval()


class Residual(nn.Module):
    """A stem, two residual blocks whose inner channels can go, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(4, 6, 3, padding=1) for _ in range(2))
        self.second = nn.ModuleList(nn.Conv2d(6, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second, norm in zip(self.first, self.second, self.norms, strict=True):
            x = F.relu(norm(second(F.relu(first(x)))) + x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def residual() -> Residual:
    torch.manual_seed(1)
    model = Residual().double().eval()
    for norm in model.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model


def outputs(model: nn.Module, data: list[Batch]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in data])


@pytest.mark.parametrize("form", ["auto", "graph"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_duplicate_of_a_kept_channel_costs_nothing(form: str, groups: int, bias: bool) -> None:
    model = convolutional(bias, groups)
    with torch.no_grad():
        for tensor in (model[0].weight, model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
            tensor[2], tensor[5] = tensor[1], tensor[4]
    data = images()
    (group, *_) = sec.couple(sec.capture(model, data[0][0])).free
    keep = {group.name: [u for u in range(group.size) if u != 2]} if groups == 2 else {group.name: [0, 1, 3, 4]}
    small, plan = cut_of(model, keep, data[0][0], form)
    before = (outputs(small, data) - outputs(model, data)).abs().max()
    fitted = reconstruct(small, model, plan, data, samples_per_image=None, ridge=1e-12)
    after = (outputs(fitted, data) - outputs(model, data)).abs().max()
    assert before > 1e-2
    assert after < 1e-6


def test_the_weights_are_those_of_lstsq_on_unfolded_images() -> None:
    model, data = convolutional(), images(64)
    small, plan = cut_of(model, {"0": [0, 1, 3, 4]}, data[0][0])
    fitted = reconstruct(small, model, plan, data, samples_per_image=None, ridge=0.0)
    x = torch.cat([x for x, _ in data])
    with torch.no_grad():
        columns = F.unfold(small[:3](x), 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)  # type: ignore[index]
        wanted = model[:4](x).movedim(1, -1).flatten(0, 2)
    solution = torch.linalg.lstsq(torch.cat([columns, torch.ones(len(columns), 1).double()], 1), wanted).solution
    torch.testing.assert_close(fitted.get_parameter("3.weight").flatten(1), solution[:-1].T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fitted.get_parameter("3.bias"), solution[-1], rtol=1e-6, atol=1e-8)
    assert torch.equal(fitted.get_parameter("6.weight"), model[6].weight)  # lost no inputs


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_is_never_worse_than_before_on_what_it_was_fitted_to(ridge: float, bias: bool) -> None:
    model, data = convolutional(bias), images()
    small, plan = cut_of(model, {"0": [0, 1, 3]}, data[0][0])
    fitted = reconstruct(small, model, plan, data, samples_per_image=None, ridge=ridge)
    depth = 4 if bias else 5  # without a bias, the batch norm behind it takes the intercept
    scale = 1.0 if bias else (model[4].running_var + model[4].eps).sqrt().view(-1, 1, 1)

    def error(other: nn.Module) -> float:
        there = outputs(model[:depth], data)
        return float((((outputs(other[:depth], data) - there) * scale) ** 2).sum())  # type: ignore[index]

    assert error(fitted) <= error(small) * (1 + 1e-12)
    assert error(fitted) < (0.8 if ridge < 1 else 1.0) * error(small)


def test_a_large_ridge_leaves_the_weights_and_moves_the_mean() -> None:
    model, data = convolutional(), images()
    small, plan = cut_of(model, {"0": [0, 1, 3]}, data[0][0])
    fitted = reconstruct(small, model, plan, data, samples_per_image=None, ridge=1e9)
    torch.testing.assert_close(fitted.get_parameter("3.weight"), small.get_parameter("3.weight"), rtol=0, atol=1e-6)
    there, here = outputs(model[:4], data), outputs(small[:4], data)  # type: ignore[index]
    shift = (there - here).mean((0, 2, 3))
    torch.testing.assert_close(fitted.get_parameter("3.bias"), small.get_parameter("3.bias") + shift, atol=1e-6, rtol=0)


@pytest.mark.parametrize("target", ["sum", "output"])
def test_residual_blocks_are_refitted_one_after_the_other(target: str) -> None:
    model, data = residual(), images()
    small, plan = cut_of(model, {"first.0": [0, 1, 2, 4], "first.1": [1, 2, 3, 5]}, data[0][0])
    untouched = copy.deepcopy(small.state_dict())
    fitted = reconstruct(small, model, plan, data, target=target, samples_per_image=None)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in small.state_dict().items())
    there = outputs(model, data)
    before, after = ((outputs(m, data) - there).square().mean() for m in (small, fitted))
    assert after < 0.5 * before
    changed = [name for name, tensor in fitted.state_dict().items() if not torch.equal(tensor, untouched[name])]
    assert changed == ["second.0.weight", "second.1.weight", "norms.0.running_mean", "norms.1.running_mean"]


def test_the_sum_is_closer_to_the_original_when_the_sum_is_the_target() -> None:
    model, data = residual(), images()
    keep = {"first.0": [0, 4], "first.1": [1, 2, 3, 5]}
    small, plan = cut_of(model, keep, data[0][0])

    def before_the_last_relu(net: nn.Module) -> Tensor:
        x = net.get_submodule("stem")(torch.cat([x for x, _ in data]))
        for block in "01":
            y = F.relu(net.get_submodule(f"first.{block}")(F.relu(x) if block == "1" else x))
            y = net.get_submodule(f"norms.{block}")(net.get_submodule(f"second.{block}")(y))
            x = y + (F.relu(x) if block == "1" else x)
        return x.detach()

    there = before_the_last_relu(model)
    fitted = {t: reconstruct(small, model, plan, data, target=t, samples_per_image=None) for t in ("sum", "output")}
    error = {t: float((before_the_last_relu(net) - there).square().mean()) for t, net in fitted.items()}
    assert error["sum"] < error["output"]


def test_the_same_seed_gives_the_same_weights_and_batches_are_limited() -> None:
    model, data = convolutional(), images()
    small, plan = cut_of(model, {"0": [0, 1, 3]}, data[0][0])
    one, two, other = (reconstruct(small, model, plan, data, samples_per_image=4, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.get_parameter("3.weight"), two.get_parameter("3.weight"))
    assert not torch.equal(one.get_parameter("3.weight"), other.get_parameter("3.weight"))
    first = reconstruct(small, model, plan, data, batches=1, samples_per_image=None)
    alone = reconstruct(small, model, plan, data[:1], samples_per_image=None)
    assert torch.equal(first.get_parameter("3.weight"), alone.get_parameter("3.weight"))


def test_linear_layers_on_sequences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)).double().eval()
    data = [(torch.randn(4, 6, 5, dtype=torch.float64), torch.zeros(4)) for _ in range(3)]
    small, plan = cut_of(model, {"0": [0, 2, 5, 7]}, data[0][0])
    fitted = reconstruct(small, model, plan, data, samples_per_image=None, ridge=0.0)
    inputs = torch.cat([small[:2](x) for x, _ in data]).flatten(0, 1)  # type: ignore[index]
    ones = torch.ones(len(inputs), 1, dtype=torch.float64)
    wanted = outputs(model, data).flatten(0, 1)
    solution = torch.linalg.lstsq(torch.cat([inputs.detach(), ones], 1), wanted).solution
    torch.testing.assert_close(fitted.get_parameter("2.weight"), solution[:-1].T, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 2), (1, "same", 2, 4)])
def test_patches_times_weights_are_the_convolution(stride: int, padding: int | str, dilation: int, groups: int) -> None:
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64)
    conv = nn.Conv2d(4, 8, (3, 2), stride, padding, dilation, groups, bias=False).double()
    (node,) = sec.capture(conv, x).nodes
    windows = Windows.of(node, conv.weight.shape)
    expected = windows.channels_last(conv(x))
    patches = windows.patches(x, torch.arange(len(expected)))
    weight = conv.weight.reshape(groups, 8 // groups, -1)
    torch.testing.assert_close(torch.einsum("ngi,goi->ngo", patches, weight).flatten(1), expected)


def test_normal_equations_of_a_line() -> None:
    normal = Normal(intercept=True)
    x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    normal.add(x.unsqueeze(1), 3 * x + 1)  # y = 3x + 1
    slope, intercept = normal.solve(0.0)
    assert slope.item() == pytest.approx(3.0)
    assert intercept is not None and intercept.item() == pytest.approx(1.0)
    # penalty ridge * sum(x^2) = 5 ridge: sum (x - 1)(y - 4) = 6 over sum (x - 1)^2 + 5 ridge = 2 + 5 ridge
    slope, _ = normal.solve(0.8)
    assert slope.item() == pytest.approx(1.0)


def test_what_cannot_be_used_is_refused() -> None:
    model, data = convolutional(), images()
    small, plan = cut_of(model, {"0": [0, 1, 3]}, data[0][0])
    with pytest.raises(sec.InputError, match="not the original after this plan"):
        reconstruct(model, model, plan, data)
    with pytest.raises(sec.UnknownNameError, match="sum, output"):
        reconstruct(small, model, plan, data, target="loss")
    with pytest.raises(sec.InputError, match=r"ridge=-1"):
        reconstruct(small, model, plan, data, ridge=-1)
    with pytest.raises(sec.InputError, match=r"samples_per_image=0"):
        reconstruct(small, model, plan, data, samples_per_image=0)
    with pytest.raises(sec.TrainError, match="empty"):
        reconstruct(small, model, plan, [])
    with pytest.raises(sec.PlanError):
        reconstruct(small, small, plan, data)
