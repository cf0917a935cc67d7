"""Zeros without training: least squares on the mask by NumPy, never worse than before, and random networks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from secateurs.sparsity import density, layer_weights, parse_pattern
from secateurs.testing.networks import random_network
from secateurs.train.sparsify_once import SparsifiedOnce

pytestmark = pytest.mark.medium

Batch = tuple[Tensor, Tensor]


def images(count: int = 24, channels: int = 3, size: int = 7, batch: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)
    return [(part, torch.zeros(len(part))) for part in x.split(batch)]


def convolutional(bias: bool = True, groups: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1, 1, groups, bias), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(36, 2),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    return model.double().eval()


def outputs(model: nn.Module, data: list[Batch]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in data])


def distance(one: nn.Module, other: nn.Module, data: list[Batch]) -> float:
    return float((outputs(one, data) - outputs(other, data)).square().sum())


def test_the_weights_are_those_of_lstsq_on_the_mask() -> None:
    model, data = convolutional(), images(64)
    masks = sec.masks(model, 0.5, only=["3"])
    result = sec.sparsify_once(model, data, masks, samples_per_image=None, ridge=0.0)
    x = torch.cat([x for x, _ in data])
    with torch.no_grad():
        columns = F.unfold(model[:3](x), 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1).numpy()
        wanted = model[:4](x).movedim(1, -1).flatten(0, 2).numpy()
    weight, bias = (result.model.get_parameter(f"3.{name}").detach().numpy() for name in ("weight", "bias"))
    for row, mask in enumerate(masks["3.weight"].flatten(1).numpy()):
        inputs = np.concatenate([columns[:, mask], np.ones((len(columns), 1))], 1)
        solution = np.linalg.lstsq(inputs, wanted[:, row], rcond=None)[0]
        np.testing.assert_allclose(weight[row].reshape(-1)[mask], solution[:-1], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(bias[row], solution[-1], rtol=1e-6, atol=1e-8)
    assert torch.equal(result.model.get_parameter("3.weight") != 0, masks["3.weight"])
    share = float(
        (outputs(result.model[:4], data) - outputs(model[:4], data)).square().sum()  # type: ignore[index]
        / (outputs(model[:4], data) - outputs(model[:4], data).mean((0, 2, 3), keepdim=True)).square().sum()
    )
    assert result.errors == {"3.weight": pytest.approx(share, rel=1e-6)}


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize(("bias", "groups"), [(True, 1), (False, 1), (True, 2)])
def test_a_layer_is_never_worse_than_with_its_weights_set_to_zero(ridge: float, bias: bool, groups: int) -> None:
    model, data = convolutional(bias, groups), images()
    masks = sec.masks(model, 0.6, only=["3"], pattern="rows(2)")
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        zeroed[3].weight.mul_(masks["3.weight"])
    result = sec.sparsify_once(model, data, masks, samples_per_image=None, ridge=ridge)
    scale = 1.0 if bias else (model[4].running_var + model[4].eps).sqrt().view(-1, 1, 1)
    depth = 4 if bias else 5  # without a bias, the batch norm behind it takes the shift

    def error(other: nn.Module) -> float:
        found = [(outputs(net[:depth], data) * scale) for net in (other, model)]  # type: ignore[index]
        return float((found[0] - found[1]).square().sum())

    assert error(result.model) <= error(zeroed) * (1 + 1e-9)
    assert error(result.model) < 0.9 * error(zeroed) or ridge == 10.0


def test_choosing_with_the_data_beats_magnitude_and_seeing_the_loss_beats_not_seeing_it() -> None:
    model, data = convolutional(), images(64)
    ends = {
        "zeros": sec.sparsify_once(model, data, sec.masks(model, 0.6), ridge=1e9).model,
        "magnitude": sec.sparsify_once(model, data, sec.masks(model, 0.6)).model,
        "surgeon": sec.sparsify_once(model, data, 0.6).model,
        "blind": sec.sparsify_once(model, data, 0.6, inputs="original").model,
    }
    lost = {name: distance(model, end, data) for name, end in ends.items()}
    assert lost["surgeon"] < lost["magnitude"] < lost["zeros"]
    assert lost["surgeon"] < lost["blind"]


@pytest.mark.parametrize("pattern", ["weight", "rows(4)", "simd(4)", "2:4", "block(2,2)", "kernel", "vector", "filter"])
def test_masks_have_the_pattern_and_the_exact_count(pattern: str) -> None:
    model, data = convolutional(groups=2), images()
    sparsity = None if ":" in pattern else 0.5
    result = sec.sparsify_once(model, data, sparsity, pattern=pattern)
    counts = {name: int(mask.sum()) for name, mask in sec.masks(model, sparsity, pattern=pattern).items()}
    if pattern in ("weight", "2:4"):  # elsewhere groups at a tail differ in size
        assert {name: int(mask.sum()) for name, mask in result.masks.items()} == counts
    _check(model, result, pattern)


def _check(model: nn.Module, result: SparsifiedOnce, pattern: str) -> None:
    """Whole groups, exact +0.0, all other tensors but biases and means as they were, the model itself untouched."""
    layers = layer_weights(model)
    for name, mask in result.masks.items():
        weight = result.model.get_parameter(name)
        assert mask.dtype == torch.bool
        assert mask.shape == weight.shape
        zeros = weight.detach()[~mask]
        assert not bool(zeros.any())
        assert not bool(torch.signbit(zeros).any())
        grouping = parse_pattern(pattern).groups(tuple(mask.shape), layers[name].layout)
        assert torch.equal(mask, grouping.spread(grouping.kept(mask)))
    with sec.sparsify(copy.deepcopy(result.model), result.masks) as held:
        assert held.sparsity == pytest.approx(1 - density(result.masks))


def test_the_model_and_the_random_state_stay() -> None:
    model, data = convolutional(), images()
    state, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one, two = (sec.sparsify_once(model, data, 0.5, samples_per_image=4, recalibrate=2) for _ in range(2))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(
        torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True)
    )
    mean = one.model.get_buffer("1.running_mean")
    fresh = sec.recalibrate(sec.sparsify_once(model, data, 0.5, samples_per_image=4).model, data, batches=2)
    assert torch.equal(mean, fresh.get_buffer("1.running_mean"))


class Shared(nn.Module):
    """Sequences [N, T, 5] through one layer twice, then through a depthwise one over T, then two ways out."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(5, 5)
        self.over = nn.Conv1d(4, 4, 3, padding=1, groups=4)
        self.last = nn.Linear(5, 3)
        self.turned = nn.ConvTranspose1d(4, 6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.again(torch.tanh(self.again(x))))
        x = torch.tanh(self.over(x))
        return self.last(x), self.turned(x)


def test_shared_depthwise_and_transposed_layers_and_sequences() -> None:
    torch.manual_seed(0)
    model = Shared().double().eval()
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(8, 4, 5, generator=generator, dtype=torch.float64) for _ in range(6)]
    result = sec.sparsify_once(model, data, 0.4, samples_per_image=None)
    assert set(result.masks) == {"again.weight", "over.weight", "last.weight", "turned.weight"}
    assert set(result.errors) == {"again.weight", "over.weight", "last.weight"}
    _check(model, result, "weight")
    turned = sec.masks(model, 0.4)["turned.weight"]
    assert torch.equal(result.masks["turned.weight"], turned)
    assert torch.equal(result.model.turned.weight, model.turned.weight * turned)

    masks = sec.masks(model, 0.4, only=["again"])
    fitted = sec.sparsify_once(model, data, masks, samples_per_image=None, ridge=0.0).model
    with torch.no_grad():
        x = torch.cat(data)
        second = torch.tanh(model.again(x))
        columns, wanted = (torch.cat([part.flatten(0, 1) for part in parts])
                           for parts in ((x, second), (model.again(x), model.again(second))))  # fmt: skip
        wanted = wanted - model.again.bias  # what two calls share is fitted without its bias
    for row, mask in enumerate(masks["again.weight"]):
        solution = torch.linalg.lstsq(columns[:, mask], wanted[:, row]).solution
        torch.testing.assert_close(fitted.again.weight[row, mask].detach(), solution, rtol=1e-6, atol=1e-8)


def test_in_steps_with_the_first_model_as_the_aim() -> None:
    model, data = convolutional(), images(48)
    half = sec.sparsify_once(model, data, 0.4)
    more = sec.sparsify_once(half.model, data, 0.7, within=half.masks, original=model)
    assert all(not bool((more.masks[name] & ~half.masks[name]).any()) for name in half.masks)
    assert density(more.masks) == pytest.approx(0.3, abs=0.01)
    again = sec.sparsify_once(half.model, data, half.masks, original=model)
    assert sum(again.errors.values()) <= 1.05 * sum(half.errors.values())


def test_sums_can_be_the_target() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(F.relu(x))
            return x

    torch.manual_seed(2)
    model, data = Residual().double().eval(), images(64)
    lost = {
        target: distance(model, sec.sparsify_once(model, data, 0.7, target=target).model, data)
        for target in ("output", "sum")
    }
    assert lost["sum"] < lost["output"]


@pytest.mark.parametrize("seed", range(30))
def test_random_networks(seed: int) -> None:
    model, inputs = random_network(seed)
    data = [(inputs, torch.zeros(()))]
    try:
        wanted = sec.masks(model, 0.5)
    except sec.InputError:
        with pytest.raises(sec.InputError):
            sec.sparsify_once(model, data, 0.5)
        return
    result = sec.sparsify_once(model, data, 0.5, samples_per_image=None)
    assert {name: int(mask.sum()) for name, mask in result.masks.items()} == {
        name: int(mask.sum()) for name, mask in wanted.items()
    }
    _check(model, result, "weight")
    assert all(0 <= error <= 1 + 1e-6 for error in result.errors.values())
    nothing = sec.sparsify_once(model, data, 0.0, samples_per_image=None).model
    for name, tensor in nothing.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"inputs": "both"}, "no inputs named"),
        ({"target": "logits"}, "no target named"),
        ({"inputs": "original", "target": "sum"}, "needs inputs='own'"),
        ({"sparsity": sec.Threshold("std", 1.0)}, "takes no thresholds"),
        ({"sparsity": {"3.weight": torch.ones(2, dtype=torch.bool)}}, "does not fit"),
        ({"sparsity": {"6.weight": torch.ones(4, 8, 1, 1, dtype=torch.bool), "3.weight": 0.5}}, "not both"),
        ({"original": nn.Flatten()}, "another network"),
        ({"ridge": -1}, "ridge=-1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], says: str) -> None:
    given = {"sparsity": 0.5, **wrong}
    with pytest.raises((sec.InputError, sec.UnknownNameError), match=says):
        sec.sparsify_once(convolutional(), images(), **given)  # type: ignore[arg-type]


def test_no_data_is_refused() -> None:
    with pytest.raises(sec.TrainError, match="empty"):
        sec.sparsify_once(convolutional(), [], 0.5)


def test_printing_has_a_line_per_layer_and_no_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    found = sec.sparsify_once(model, [torch.randn(32, 6)], {"0": 0.75, "2": 0.5})
    heading, first, second, whole = str(found).splitlines()
    assert heading.split() == ["layer", "zeros", "output", "changed"]
    assert first.split() == ["0.weight", "75.0%", f"{found.errors['0.weight']:.2%}"]
    assert second.split() == ["2.weight", "50.0%", f"{found.errors['2.weight']:.2%}"]
    assert whole.split() == ["all", "68.8%"]
    assert repr(found) == "<SparsifiedOnce: 68.8% of the weights of 2 layers are zero>"
