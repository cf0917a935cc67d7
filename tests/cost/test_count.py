"""Counts by hand on small networks, and against a counter made of module hooks on random ones."""

from __future__ import annotations

from math import prod

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sec
from secateurs.testing.networks import Program, Step

LAYERED = (
    "conv2d", "conv2d", "depthwise", "conv_transpose2d", "residual", "concat", "merge", "split", "batch_norm", "pool",
    "pixel_shuffle", "flatten", "linear",
)  # fmt: skip
"""Steps that multiply nowhere but in modules."""


def lenet_300_100() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def lenet_5() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def weights(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))


def test_multilayer_perceptron_6_4_2():
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    cost = sec.count(model, torch.zeros(1, 6))
    assert (cost.macs, cost.params, cost.bytes) == (32, 32, 128)
    graph = sec.capture(model, torch.zeros(1, 6))
    groups = sec.couple(graph)
    plan = sec.plan(graph, groups, keep={groups.free[0].name: [0, 1, 3]})
    assert (plan.before["macs"], plan.after["macs"], plan.after["params"]) == (32, 24, 24)
    small = sec.count(sec.cut(model, plan, torch.zeros(1, 6)), torch.zeros(1, 6))
    assert (small.macs, small.params) == (24, 24)


def test_lenet_300_100():
    cost = sec.count(lenet_300_100(), torch.zeros(1, 784))
    assert (cost.macs, cost.params) == (266_200, 266_610)
    assert weights(lenet_300_100()) == 266_200


def test_lenet_5():
    cost = sec.count(lenet_5(), torch.zeros(1, 1, 28, 28))
    assert cost.params == 431_080
    assert weights(lenet_5()) == 430_500
    assert cost.macs == 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 + 800 * 500 + 500 * 10


def test_batch_multiplies_macs_and_not_parameters():
    one, three = (sec.count(lenet_5(), torch.zeros(n, 1, 28, 28)) for n in (1, 3))
    assert three.macs == 3 * one.macs
    assert (three.params, three.bytes) == (one.params, one.bytes)
    assert three.peak_memory == 3 * one.peak_memory


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3), (1, 4, 8, 8), 6 * 6 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (1, 4, 8, 8), 4 * 4 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 8, 8), 6 * 6 * 6 * 2 * 9),
        (nn.Conv2d(4, 8, 3, groups=4), (1, 4, 8, 8), 6 * 6 * 8 * 9),
        (nn.Conv1d(3, 5, 2), (1, 3, 7), 6 * 5 * 3 * 2),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3), 2**3 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 5 * 5 * 4 * 6 * 4),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (1, 4, 5, 5), 5 * 5 * 4 * 3 * 4),
        (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 5 * 7),
        (nn.LSTM(3, 5, batch_first=True), (1, 4, 3), 4 * (4 * 5 * 3 + 4 * 5 * 5)),
        (nn.GRU(3, 5, num_layers=2, batch_first=True), (1, 4, 3), 4 * 3 * 5 * (3 + 5 + 5 + 5)),
        (nn.LSTM(3, 5, bidirectional=True), (4, 1, 3), 4 * 2 * 4 * 5 * (3 + 5)),
        (nn.BatchNorm2d(4), (1, 4, 8, 8), 0),
        (nn.AvgPool2d(2), (1, 4, 8, 8), 0),
    ],
)
def test_one_layer(layer: nn.Module, shape: tuple[int, ...], macs: int):
    assert sec.count(layer, torch.zeros(shape)).macs == macs


class Attend(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


def test_attention():
    """Query times key: 2·3·5·7·4; weights times value: 2·3·5·7·6."""
    inputs = tuple(torch.zeros(2, 3, *shape) for shape in ((5, 4), (7, 4), (7, 6)))
    assert sec.count(Attend(), inputs).macs == 2 * 3 * 5 * 7 * 4 + 2 * 3 * 5 * 7 * 6


class Formula(nn.Module):
    def __init__(self, formula: str) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum(self.formula, a, b)


@pytest.mark.parametrize(
    ("formula", "a", "b", "macs"),
    [
        ("ij,jk->ik", (3, 4), (4, 5), 60),
        ("bij,bjk->bik", (2, 3, 4), (2, 4, 5), 120),
        ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5), 2 * 3 * 4 * 6 * 5),
        ("...d,de->...e", (2, 3, 4), (4, 5), 120),
    ],
)
def test_einsum(formula: str, a: tuple[int, ...], b: tuple[int, ...], macs: int):
    assert sec.count(Formula(formula), (torch.zeros(a), torch.zeros(b))).macs == macs


class Matmul(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


@pytest.mark.parametrize(
    ("a", "b", "macs"), [((3, 4), (4, 5), 60), ((2, 3, 4), (4, 5), 120), ((3, 4), (4,), 12), ((4,), (4,), 4)]
)
def test_matrix_product(a: tuple[int, ...], b: tuple[int, ...], macs: int):
    assert sec.count(Matmul(), (torch.zeros(a), torch.zeros(b))).macs == macs


def test_tied_weights_count_once_and_run_twice():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    cost = sec.count(nn.Sequential(first, nn.ReLU(), second), torch.zeros(1, 4))
    assert (cost.params, cost.macs) == (16, 32)


def test_a_module_used_twice_runs_twice():
    layer = nn.Linear(4, 4, bias=False)
    cost = sec.count(nn.Sequential(layer, layer), torch.zeros(1, 4))
    assert (cost.params, cost.macs) == (16, 32)


def test_bytes_follow_the_precision_and_include_buffers():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    counted = sec.count(model, torch.zeros(1, 3, 2, 2))
    tensors = [*model.parameters(), *model.buffers()]
    assert counted.bytes == sum(t.numel() * t.element_size() for t in tensors) == (12 + 4 + 4 + 4 + 4 + 4) * 4 + 8
    half = sec.count(model.bfloat16(), torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16))
    assert half.bytes == (12 + 4 + 4 + 4 + 4 + 4) * 2 + 8


def test_parameters_that_the_run_does_not_read_count():
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_parameter("idle", nn.Parameter(torch.zeros(5)))
    assert sec.count(model, torch.zeros(1, 3)).params == 6 + 2 + 5


# Peak memory: bytes of the activations alive at the worst node, float32


def test_peak_memory_of_three_layers():
    """Inputs and results of each layer in turn: 5 + 40, 40 + 30, 30 + 2 numbers; the second is the worst."""
    model = nn.Sequential(nn.Linear(5, 40), nn.Linear(40, 30), nn.Linear(30, 2))
    assert sec.count(model, torch.zeros(1, 5)).peak_memory == 4 * (40 + 30)


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 40), nn.Linear(40, 30), nn.Linear(30, 8)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y


def test_peak_memory_holds_what_a_skip_connection_waits_for():
    assert sec.count(Skip(), torch.zeros(1, 8)).peak_memory == 4 * (8 + 40 + 30)


def test_peak_memory_of_views_and_in_place_operators_is_shared():
    """10 in, 20 made, changed in place and seen under another shape, 3 out."""
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(inplace=True), nn.Unflatten(1, (4, 5)), nn.Flatten())
    assert sec.count(model, torch.zeros(1, 10)).peak_memory == 4 * (10 + 20)


# The parts agree with the total


class Hooks:
    """An independent counter: MACs of layers, from the modules' attributes and the shapes that pass through them."""

    def __init__(self, model: nn.Module) -> None:
        self.macs = 0
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                module.register_forward_hook(self.seen)

    def seen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            self.macs += output.numel() * module.in_features
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            self.macs += inputs[0].numel() * module.out_channels // module.groups * prod(module.kernel_size)
        elif isinstance(module, nn.modules.conv._ConvNd):
            self.macs += output.numel() * module.in_channels // module.groups * prod(module.kernel_size)


@settings(derandomize=True, deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.builds(Step, st.sampled_from(LAYERED), st.just((0, 1)), st.lists(st.integers(0, 11), max_size=5).map(tuple)),
        min_size=1, max_size=5,
    ),
    st.integers(0, 9),
)  # fmt: skip
def test_counts_agree_with_hooks_on_modules(steps: list[Step], seed: int):
    model, inputs = Program(("image",), tuple(steps), "heads", seed).build()
    cost = sec.count(model, inputs)
    hooks = Hooks(model)
    with torch.no_grad():
        model(*inputs)
    assert cost.macs == hooks.macs > 0
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.bytes == sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    assert sum(cost.by_module().values()) == sum(cost.by_op().values()) == cost.macs
    assert sum(cost.module_params.values()) == cost.params


def test_by_module_by_operator_and_the_table():
    cost = sec.count(lenet_5(), torch.zeros(1, 1, 28, 28))
    assert cost.by_module() == {"0": 288_000, "2": 1_600_000, "5": 400_000, "7": 5_000}
    assert list(cost.by_op().items()) == [("conv2d", 1_888_000), ("linear", 405_000)]
    last = cost.table().splitlines()[-1].split()
    assert last == ["total", "2,293,000", "431,080"]
    assert cost.to_dict() == {
        "macs": cost.macs, "params": cost.params, "bytes": cost.bytes, "peak_memory": cost.peak_memory,
    }  # fmt: skip
