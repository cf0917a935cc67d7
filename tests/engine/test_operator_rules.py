"""Operators that common networks use and few pruners follow: each through the whole chain, with the units that it has.

What has no rule is refused with a reason and leaves the rest of the network free.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sec
from secateurs.testing.chain import ChainReport, check_chain, half_kept
from secateurs.testing.networks import randomize

torch.set_num_threads(1)


class Net(nn.Module):
    """Layers by name and what is done with them."""

    def __init__(self, run: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = run

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def cut_half(net: nn.Module, *inputs: Tensor) -> ChainReport:
    randomize(net.eval(), torch.Generator().manual_seed(0))
    return check_chain(net, inputs, half_kept)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("length", [(), (5,)])
def test_bilinear_loses_both_inputs_and_its_outputs(bias, length):
    net = Net(
        lambda m, x, y: m.head(torch.tanh(m.both(torch.sigmoid(m.p(x)), torch.sigmoid(m.q(y))))),
        p=nn.Linear(6, 8), q=nn.Linear(6, 4), both=nn.Bilinear(8, 4, 10, bias=bias), head=nn.Linear(10, 3),
    )  # fmt: skip
    report = cut_half(net, numbers(2, *length, 6), numbers(2, *length, 6, seed=2))
    assert [report.free(name, 0) for name in ("p.weight", "q.weight", "both.weight")] == [8, 4, 10]
    both = report.small.both
    assert tuple(both.weight.shape) == (5, 4, 2) and report.form == "native"
    rows = 2 * (length[0] if length else 1)
    assert sec.count(report.small, (numbers(2, *length, 6), numbers(2, *length, 6))).macs == rows * (
        6 * 4 + 6 * 2 + 5 * 4 * 2 + 5 * 2 + 5 * 3
    )


def test_bilinear_of_one_tensor_with_itself_loses_the_same_channels_twice():
    def run(m, x):
        h = torch.sigmoid(m.p(x))
        return m.head(torch.tanh(m.both(h, h)))

    net = Net(run, p=nn.Linear(6, 8), both=nn.Bilinear(8, 8, 10), head=nn.Linear(10, 3))
    report = cut_half(net, numbers(2, 6))
    assert report.units("both.weight", 1) == report.units("both.weight", 2) == report.units("p.weight", 0)


def test_bilinear_with_the_input_keeps_what_the_input_meets():
    net = Net(
        lambda m, x: m.head(torch.tanh(m.both(torch.sigmoid(m.p(x)), x))),
        p=nn.Linear(6, 8), both=nn.Bilinear(8, 6, 10), head=nn.Linear(10, 3),
    )  # fmt: skip
    report = cut_half(net, numbers(2, 6))
    assert (report.free("both.weight", 1), report.free("both.weight", 2)) == (8, 0)
    assert "`bilinear` in `both`" in report.frozen("both.weight", 2)
    assert "the model's input" in report.frozen("both.weight", 2)


def contracted(equation: str) -> Callable[..., Tensor]:
    return lambda m, x: m.head(torch.tanh(torch.einsum(equation, torch.sigmoid(m.a(x)), m.b.weight)))


@pytest.mark.parametrize(
    "product",
    [
        contracted("...i,oi->...o"),
        contracted("bti,oi->bto"),
        contracted("abi,oi"),
        lambda m, x: m.head(torch.tanh(torch.tensordot(torch.sigmoid(m.a(x)), m.b.weight, dims=([2], [1])))),
    ],
)
def test_contractions_spelled_out_are_linear_layers(product):
    net = Net(product, a=nn.Linear(6, 8), b=nn.Linear(8, 7, bias=False), head=nn.Linear(7, 3))
    report = cut_half(net, numbers(2, 5, 6))
    assert (report.free("a.weight", 0), report.free("b.weight", 0)) == (8, 7)
    assert tuple(report.small.b.weight.shape) == (4, 4)


def test_einsum_of_three_operands_loses_the_inner_axis_too():
    net = Net(
        lambda m, x: m.head(torch.tanh(torch.einsum("bi,ri,or->bo", torch.sigmoid(m.a(x)), m.v.weight, m.w.weight))),
        a=nn.Linear(6, 8), v=nn.Linear(8, 5, bias=False), w=nn.Linear(5, 7, bias=False), head=nn.Linear(7, 3),
    )  # fmt: skip
    report = cut_half(net, numbers(2, 6))
    assert [report.free(name, 0) for name in ("a.weight", "v.weight", "w.weight")] == [8, 5, 7]


@pytest.mark.parametrize("equation", ["btc->bc", "btc->btc", "btc->ctb"])
def test_einsum_of_one_operand_moves_and_sums(equation):
    def run(m, x):
        y = torch.einsum(equation, torch.sigmoid(m.a(x)))
        return m.head(y.permute(2, 1, 0) if equation.endswith("ctb") else y)

    report = cut_half(Net(run, a=nn.Linear(6, 8), head=nn.Linear(8, 3)), numbers(2, 5, 6))
    assert report.free("a.weight", 0) == 8


def test_einsum_that_takes_a_diagonal_is_refused_with_its_equation():
    net = Net(
        lambda m, x: m.head(torch.einsum("bii->bi", m.a(x).view(2, 4, 4))), a=nn.Linear(6, 16), head=nn.Linear(4, 3)
    )
    report = cut_half(net, numbers(2, 6))
    assert report.free("a.weight", 0) == 0
    assert "'bii->bi' repeats a letter in `einsum`" in report.frozen("a.weight", 0)


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_embedding_bag_loses_columns(mode):
    net = Net(lambda m, x: m.head(torch.tanh(m.e(x))), e=nn.EmbeddingBag(10, 8, mode=mode), head=nn.Linear(8, 3))
    report = cut_half(net, torch.arange(10).view(2, 5))
    assert report.free("e.weight", 1) == 8 and "by number" in report.frozen("e.weight", 0)
    assert report.small.e.embedding_dim == 4


def test_grid_sample_passes_channels_and_keeps_its_points():
    net = Net(
        lambda m, x, grid: m.c2(F.grid_sample(torch.sigmoid(m.c1(x)), grid, align_corners=False)).mean((2, 3)),
        c1=nn.Conv2d(3, 8, 1), c2=nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    report = cut_half(net, numbers(2, 3, 6, 6), numbers(2, 5, 5, 2, seed=2).tanh())
    assert report.free("c1.weight", 0) == 8 and report.form == "native"


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_every_padding_mode_of_convolutions(mode):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode), nn.Sigmoid(),
                        nn.Conv2d(8, 6, 3, padding=1, padding_mode=mode), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(6, 3))  # fmt: skip
    report = cut_half(net, numbers(2, 3, 6, 6))
    assert (report.free("0.weight", 0), report.free("2.weight", 0)) == (8, 6)


REFUSED = {
    "renorm": lambda x: torch.renorm(x, 2, 0, 1.0),
    "quantile": lambda x: x - x.quantile(0.5, 1, keepdim=True),
    "dist": lambda x: x * torch.dist(x, x.flip(0)),
    "cumsum": lambda x: x.cumsum(1),
    "topk": lambda x: x * (x >= x.topk(2, 1)[0][:, -1:]),
    "median": lambda x: x - x.median(1, keepdim=True)[0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_followed_keeps_its_channels_and_says_so(name):
    net = Net(
        lambda m, x: m.head(torch.tanh(m.b(REFUSED[name](torch.sigmoid(m.a(x)))))),
        a=nn.Linear(6, 8), b=nn.Linear(8, 7), head=nn.Linear(7, 3),
    )  # fmt: skip
    report = cut_half(net, numbers(2, 6))
    assert report.free("a.weight", 0) == 0 and report.free("b.weight", 0) == 7
    assert f"`{name}`" in report.frozen("a.weight", 0) and "test_operator_rules.py:" in report.frozen("a.weight", 0)
