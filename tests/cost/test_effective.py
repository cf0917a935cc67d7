"""MACs with zero weights left out: by loops that compute the layer, and per weight on random networks."""

from __future__ import annotations

import itertools
from math import prod

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import secateurs as sec
from secateurs.cost import EffectiveMacs, Macs, effective_macs
from secateurs.testing.networks import Program, Step

LAYERED = (
    "conv2d", "conv2d", "depthwise", "conv_transpose2d", "residual", "concat", "merge", "split", "batch_norm", "pool",
    "pixel_shuffle", "flatten", "linear", "again", "tied",
)  # fmt: skip
"""Steps that multiply nowhere but in modules; some run a module twice, some share its weight."""


def with_zeros(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """Zeros anywhere in weights, biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=generator) >= share)
    return model


def multiplied(layer: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """A convolution one product after the other, those with a zero weight left out; and how many there were."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    (down, across), (pad, _), groups = layer.stride, layer.padding, layer.groups  # type: ignore[misc]
    y, count = torch.zeros_like(layer(x)), 0
    first, second, height, width = layer.weight.shape
    each = first // groups
    for a, b, r, s in itertools.product(range(first), range(second), range(height), range(width)):
        weight = float(layer.weight[a, b, r, s].detach())
        turned = isinstance(layer, nn.ConvTranspose2d)
        i, o = (a, a // each * second + b) if turned else (a // each * second + b, a)
        small = x if turned else y  # every weight meets each place of the map that is not padded
        for n, p, q in itertools.product(range(len(x)), range(small.shape[2]), range(small.shape[3])):
            if weight == 0:
                continue
            count += 1
            u, v = int(p * down + r - pad), int(q * across + s - pad)
            large = y if turned else x
            if 0 <= u < large.shape[2] and 0 <= v < large.shape[3]:
                if turned:
                    y[n, o, u, v] += weight * x[n, i, p, q]
                else:
                    y[n, o, p, q] += weight * x[n, i, u, v]
    return y, count


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, bias=False),
        nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
    ],
    ids=str,
)
def test_products_of_a_convolution_one_by_one(layer: nn.Module) -> None:
    layer = with_zeros(layer, 0.6).double()
    x = torch.randn(2, layer.in_channels, 4, 5, generator=torch.Generator().manual_seed(1)).double()  # type: ignore[arg-type]
    y, count = multiplied(layer, x)
    torch.testing.assert_close(y, layer(x).detach())
    found = effective_macs(layer, x)
    assert 0 < found.total.effective == count < found.total.dense == sec.count(layer, x).macs


class PerWeight:
    """An independent counter: of every call, what each weight that is not zero does, from the module and shapes."""

    def __init__(self, model: nn.Module) -> None:
        self.macs = 0
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                module.register_forward_hook(self.seen)

    def seen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        if isinstance(module, nn.Linear):
            uses = x.numel() // x.shape[-1]
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            uses = len(x) * prod(x.shape[2:])
        else:
            uses = len(output) * prod(output.shape[2:])
        self.macs += sum(uses for weight in module.weight.flatten().tolist() if weight != 0)  # type: ignore[union-attr]


@settings(derandomize=True, deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.builds(Step, st.sampled_from(LAYERED), st.just((0, 1)), st.lists(st.integers(0, 11), max_size=5).map(tuple)),
        min_size=1, max_size=6,
    ),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.integers(0, 9),
)  # fmt: skip
def test_counts_agree_with_what_every_weight_does(steps: list[Step], share: float, seed: int) -> None:
    model, inputs = Program(("image",), tuple(steps), "heads", seed).build()
    with_zeros(model, share, seed)
    found, dense = effective_macs(model, inputs), sec.count(model, inputs)
    hooks = PerWeight(model)
    with torch.no_grad():
        model(*inputs)
    assert found.total == Macs(dense.macs, hooks.macs)
    assert {name: macs.dense for name, macs in found.modules.items()} == dense.by_module()
    assert (found.total.effective == 0) == (share == 1)


def test_masks_by_pattern_on_lenet() -> None:
    """20-50-500-10 at 90 %: what each layer does, times a tenth; the whole is not a tenth of the weights' share."""
    model = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip
    sec.sparsify(model, {"0": 0.5, "2": 0.75, nn.Linear: 0.9}).detach()
    found = effective_macs(model, torch.zeros(1, 1, 28, 28))
    assert found.weights == {
        "0.weight": Macs(288_000, 144_000), "2.weight": Macs(1_600_000, 400_000),
        "5.weight": Macs(400_000, 40_000), "7.weight": Macs(5_000, 500),
    }  # fmt: skip
    assert found.total == Macs(2_293_000, 584_500)
    assert found.total.speed_up == pytest.approx(2_293_000 / 584_500)
    assert found.total.to_json() == {"dense": 2_293_000, "effective": 584_500, "speed_up": found.total.speed_up}


class Ways(nn.Module):
    """Weights that multiply outside of layers: transposed, cut, in products and formulas, masked on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mixed = nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(2, 4, 3))
        self.register_buffer("mask", torch.ones(6, 4))
        with torch.no_grad():
            self.table[0] = 0
            self.mixed[1, :, 0] = 0
            self.get_buffer("mask")[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.table * self.get_buffer("mask"))  # 5 x 6 x 4, 15 of 24 kept
        z = y @ self.table  # 5 x 4 x 6, 20 of 24
        z = z @ self.table[:3].T.contiguous()  # 5 x 3 x 4, 8 of 12
        out = torch.einsum("nd,hde->nhe", x, self.mixed)  # 5 x 2 x 4 x 3, 20 of 24
        return out.sum() + (z @ z.T).sum()  # 5 x 5 x 3, of activations


def test_weights_that_are_computed_or_multiply_outside_of_layers() -> None:
    found = effective_macs(Ways(), torch.zeros(5, 4))
    assert found.total == Macs(120 + 120 + 60 + 120 + 75, 75 + 100 + 40 + 100 + 75)
    assert found.weights == {"table": Macs(120, 100), "mixed": Macs(120, 100)}


def test_torch_s_own_masks_and_parametrizations_are_seen() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), weight_norm(nn.Linear(4, 5)))
    prune.random_unstructured(model[0], "weight", amount=9)
    with torch.no_grad():
        model[2].parametrizations.weight.original1[:, 1] = 0
    assert effective_macs(model, torch.zeros(3, 6)).total == Macs(3 * (24 + 20), 3 * (15 + 15))


def test_shared_weights_work_in_all_places() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    with_zeros(first, 0.5)
    kept = int(first.weight.count_nonzero())
    found = effective_macs(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), first), torch.zeros(2, 4))
    assert found.weights == dict.fromkeys(["0.weight", "2.weight", "4.weight"], Macs(96, 6 * kept))
    assert found.total == Macs(96, 6 * kept)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LSTM(3, 5, num_layers=2, bidirectional=True), (4, 2, 3)),
        (nn.GRU(3, 5), (4, 2, 3)),
        (nn.LSTM(3, 5, proj_size=2), (4, 2, 3)),
        (nn.GRUCell(3, 5), (2, 3)),
    ],
    ids=str,
)
def test_recurrent_weights_work_at_every_step(layer: nn.Module, shape: tuple[int, ...]) -> None:
    with_zeros(layer, 0.7)
    uses = prod(shape[:-1])
    kept = {name: uses * int(w.count_nonzero()) for name, w in layer.named_parameters() if w.dim() > 1}
    found = effective_macs(layer, torch.zeros(shape))
    assert {name: macs.effective for name, macs in found.weights.items()} == kept
    assert found.total == Macs(sec.count(layer, torch.zeros(shape)).macs, sum(kept.values()))


def test_attention_multiplies_activations_too() -> None:
    model = with_zeros(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 0.5).eval()
    found, dense = effective_macs(model, torch.zeros(1, 3, 8)), sec.count(model, torch.zeros(1, 3, 8))
    kept = sum(3 * int(w.count_nonzero()) for w in model.parameters() if w.dim() > 1)
    assert found.total == Macs(dense.macs, kept + 2 * 2 * 3 * 3 * 4)  # two heads of four columns, twice


def test_a_weight_that_follows_the_input_counts_whole() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make = nn.Linear(4, 12, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.make(x[0]).view(4, 3)

    model = Dynamic()
    model.make.weight.data.zero_()
    assert effective_macs(model, torch.zeros(2, 4)).total == Macs(48 + 24, 24)


def test_nothing_and_no_multiplication() -> None:
    assert effective_macs(nn.ReLU(), torch.zeros(2, 3)) == EffectiveMacs(Macs())
    assert Macs().speed_up == 1 and Macs(7, 0).speed_up == float("inf")
    assert Macs(7, 0).to_json() == {"dense": 7, "effective": 0, "speed_up": None}


def test_the_model_and_chance_are_left_alone() -> None:
    model = with_zeros(Ways(), 0.3)
    before = {name: item.clone() for name, item in model.state_dict().items()}
    chance = torch.get_rng_state()
    effective_macs(model, torch.zeros(5, 4))
    assert torch.equal(chance, torch.get_rng_state())
    assert all(torch.equal(item, before[name]) for name, item in model.state_dict().items())
