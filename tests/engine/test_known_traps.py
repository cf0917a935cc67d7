"""The shapes of network that channel pruners get wrong, one named test each.

Each test states how many units can be removed (guards against freezing too much and tying too much), what must stay
and which operator the reason names, and cuts half of everything: `check_chain` compares the outputs with the masked
original in double precision.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sec
from secateurs.testing.chain import ChainReport, check_chain, half_kept
from secateurs.testing.layers import (
    BareConv,
    ChannelScale,
    FrozenBatchNorm,
    FusedAttention,
    GroupedQueryAttention,
    Head,
    NeighbourGate,
    PooledGate,
    Recurrent,
    SpatialGate,
    SqueezeExcite,
)
from secateurs.testing.networks import randomize

torch.set_num_threads(1)


def cut_half(model: nn.Module, *inputs: Tensor, unit="heads", compared: bool = True) -> ChainReport:
    """Random weights, every second unit of every free group removed, all oracles."""
    randomize(model.eval(), torch.Generator().manual_seed(0))
    report = check_chain(model, inputs, half_kept, unit=unit)
    assert report.compared == compared
    return report


def image(channels: int = 3, size: int = 6) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(width: int = 8, length: int = 5) -> Tensor:
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(1))


class Chain(nn.Module):
    """conv1 (3 -> width), something between, conv2 (middle -> 6), mean over space, linear (6 -> 3)."""

    def __init__(self, between, width: int = 8, middle: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.between = between if isinstance(between, nn.Module) else Function(between)
        self.conv2 = nn.Conv2d(middle or width, 6, 1)
        self.head = Head(6, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.between(torch.sigmoid(self.conv1(x)))))


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class SplitInTwo(nn.Module):
    """Sizes written into the code, so that only the rewritten graph can run after a cut."""

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.split([3, 5], dim=1)
        return torch.cat([torch.relu(one), torch.tanh(two)], dim=1)


def counts(report: ChainReport) -> tuple[int, int]:
    """Free units on conv1's outputs and on conv2's inputs."""
    assert report.free("conv2.weight", 0) == 6  # the end of the network is never affected by the trap
    return report.free("conv1.weight", 0), report.free("conv2.weight", 1)


# The image is not ours


def test_image_concatenated_with_features():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(11, 6, 1)
            self.head = Head(6, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv2(torch.cat([x, torch.relu(self.conv1(x))], 1)))

    report = cut_half(Net(), image())
    assert counts(report) == (8, 8)
    assert report.units("conv2.weight", 1)[:3] == [None] * 3
    assert report.units("conv2.weight", 1)[3:] == report.units("conv1.weight", 0)
    assert report.free("conv1.weight", 1) == 0
    assert report.small.conv2.in_channels == 3 + 4
    assert report.form == "native"


def test_residual_to_the_input():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
            self.conv2 = nn.Conv2d(3, 6, 1)
            self.head = Head(6, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv2(x + self.conv1(x)))

    report = cut_half(Net(), image())
    assert counts(report) == (0, 0)
    assert "add" in report.frozen("conv1.weight", 0) or "input" in report.frozen("conv1.weight", 0)


# Channels that move


def test_flip_of_channels():
    report = cut_half(Chain(lambda x: x.flip(1)), image())
    assert counts(report) == (8, 8)
    assert report.units("conv2.weight", 1) == report.units("conv1.weight", 0)[::-1]


def test_sum_with_flipped_self_ties_mirror_images():
    report = cut_half(Chain(lambda x: x + x.flip(1)), image())
    assert counts(report) == (4, 4)
    units = report.units("conv1.weight", 0)
    assert units == units[::-1]


def test_roll_of_channels():
    report = cut_half(Chain(lambda x: x.roll(3, 1)), image())
    assert counts(report) == (8, 8)
    units = report.units("conv1.weight", 0)
    assert report.units("conv2.weight", 1) == units[-3:] + units[:-3]


def test_sum_with_rolled_self_ties_everything():
    report = cut_half(Chain(lambda x: x + x.roll(1, 1)), image())
    assert counts(report) in ((1, 1), (0, 0))
    assert report.small.conv1.weight.shape[0] == 8


def test_zero_padding_of_channels():
    report = cut_half(Chain(lambda x: F.pad(x, (0, 0, 0, 0, 1, 3)), middle=12), image())
    assert report.free("conv1.weight", 0) == 8
    assert report.units("conv2.weight", 1)[1:9] == report.units("conv1.weight", 0)


def test_option_a_shortcut_pads_channels_of_the_trunk():
    """ResNet-20 of CIFAR: x[:, :, ::2, ::2] padded with zeros, added to a wider stage."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
            self.wide = nn.Conv2d(4, 8, 3, stride=2, padding=1)
            self.conv2 = nn.Conv2d(8, 6, 1)
            self.head = Head(6, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv1(x))
            short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
            return self.head(self.conv2(torch.relu(self.wide(x) + short)))

    report = cut_half(Net(), image())
    assert report.free("conv1.weight", 0) == 4
    assert report.units("wide.weight", 0)[2:6] == report.units("conv1.weight", 0)
    assert report.units("wide.weight", 1) == report.units("conv1.weight", 0)


def test_shuffle_of_channels_keeps_groups_equal():
    def shuffle(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    report = cut_half(Chain(shuffle), image())
    assert counts(report) == (4, 4)
    units = report.units("conv1.weight", 0)
    assert units[:4] == units[4:]
    assert report.units("conv2.weight", 1) == [unit for pair in zip(units[:4], units[4:], strict=True) for unit in pair]


def test_channel_shuffle_module():
    report = cut_half(Chain(nn.ChannelShuffle(2)), image())
    assert counts(report) == (4, 4)


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_shuffle_by_a_table(kind):
    """After the cut another table does the shuffling; a buffer is kept, although nothing reads it any more."""

    class Net(Chain):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            table = torch.tensor([3, 1, 7, 0, 2, 6, 4, 5])
            self.register_buffer("table", table) if kind == "buffer" else setattr(self, "table", table)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv2(torch.sigmoid(self.conv1(x))[:, self.table]))

    report = cut_half(Net(), image())
    assert counts(report) == (8, 8)
    units = report.units("conv1.weight", 0)
    assert report.units("conv2.weight", 1) == [units[i] for i in (3, 1, 7, 0, 2, 6, 4, 5)]
    assert ("table" in report.small.state_dict()) == (kind == "buffer")


def test_overlapping_slices_of_channels():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 10, 3, padding=1)
            self.first = nn.Conv2d(6, 5, 1)
            self.last = nn.Conv2d(7, 5, 1)
            self.head = Head(5, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv1(x))
            return self.head(self.first(x[:, :6]) + self.last(x[:, 3:]))

    report = cut_half(Net(), image())
    assert report.free("conv1.weight", 0) == 10
    assert report.units("first.weight", 1) == report.units("conv1.weight", 0)[:6]
    assert report.units("last.weight", 1) == report.units("conv1.weight", 0)[3:]


def test_uneven_split():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 10, 3, padding=1)
            self.a = nn.Conv2d(3, 5, 1)
            self.b = nn.Conv2d(7, 5, 1)
            self.head = Head(5, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.relu(self.conv1(x)).split([3, 7], dim=1)
            return self.head(self.a(a) * self.b(b))

    report = cut_half(Net(), image())
    assert report.free("conv1.weight", 0) == 10
    assert report.free("a.weight", 1) == 3
    assert report.free("b.weight", 1) == 7
    assert report.free("a.weight", 0) == 5


def test_pixel_shuffle():
    report = cut_half(Chain(nn.PixelShuffle(2), width=16, middle=4), image())
    assert counts(report) == (4, 4)
    units = report.units("conv1.weight", 0)
    assert units[::4] == report.units("conv2.weight", 1)
    assert units[0] == units[1] == units[2] == units[3] != units[4]


def test_pixel_unshuffle():
    report = cut_half(Chain(nn.PixelUnshuffle(2), width=4, middle=16), image())
    assert counts(report) == (4, 4)
    assert report.units("conv2.weight", 1)[::4] == report.units("conv1.weight", 0)


def test_flatten_before_a_linear_layer():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.fc = nn.Linear(8 * 36, 5)
            self.out = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.fc(torch.relu(self.conv1(x)).flatten(1))))

    report = cut_half(Net(), image())
    assert report.free("conv1.weight", 0) == 8
    assert report.units("fc.weight", 1)[::36] == report.units("conv1.weight", 0)
    assert report.free("fc.weight", 0) == 5
    assert report.small.fc.in_features == 4 * 36


# Gates


def test_squeeze_excite_leaves_the_trunk_free():
    report = cut_half(Chain(SqueezeExcite(8, 4)), image())
    assert counts(report) == (8, 8)
    assert report.units("between.expand.weight", 0) == report.units("conv1.weight", 0)
    assert report.free("between.reduce.weight", 0) == 4


def test_one_channel_spatial_gate_leaves_the_trunk_free():
    report = cut_half(Chain(SpatialGate(8)), image())
    assert counts(report) == (8, 8)
    assert report.small.between.gate.weight.shape[:2] == (1, 4)


def test_cbam_gate_leaves_the_trunk_free():
    report = cut_half(Chain(PooledGate(8)), image())
    assert counts(report) == (8, 8)
    assert report.small.between.conv.weight.shape[:2] == (1, 2)


def test_cbam_gate_without_probe_leaves_the_trunk_free():
    report = cut_half(Chain(PooledGate()), image(), compared=False)
    assert counts(report) == (8, 8)


def test_eca_gate_leaves_the_trunk_free():
    report = cut_half(Chain(NeighbourGate(8)), image())
    assert counts(report) == (8, 8)
    assert report.small.between.conv.weight.shape == (1, 1, 3)


def test_eca_gate_without_probe_leaves_the_trunk_free():
    report = cut_half(Chain(NeighbourGate()), image(), compared=False)
    assert counts(report) == (8, 8)


# Leaves that no module of torch owns


def test_functional_convolution_on_a_bare_parameter():
    report = cut_half(Chain(BareConv(8, 5, 3), middle=5), image())
    assert report.free("conv1.weight", 0) == 8
    assert report.units("between.kernel", 1) == report.units("conv1.weight", 0)
    assert report.units("between.kernel", 0) == report.units("conv2.weight", 1)
    assert report.units("between.shift", 0) == report.units("between.kernel", 0)
    assert report.free("conv2.weight", 1) == 5


@pytest.mark.parametrize("buffer", [False, True])
def test_channel_sized_leaf(buffer):
    report = cut_half(Chain(ChannelScale(8, 2, buffer)), image())
    assert counts(report) == (8, 8)
    assert report.units("between.scale", 0) == report.units("conv1.weight", 0)
    assert report.small.between.scale.shape == (4, 1, 1)


def test_frozen_batch_norm():
    report = cut_half(Chain(FrozenBatchNorm(8)), image())
    assert counts(report) == (8, 8)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert report.units(f"between.{name}", 0) == report.units("conv1.weight", 0)


def test_weight_norm_hook():
    net = Chain(nn.ReLU())
    net.conv1 = nn.utils.weight_norm(net.conv1)
    report = cut_half(net, image())
    assert report.free("conv2.weight", 1) == 8
    assert report.units("conv1.weight_g", 0) == report.units("conv1.weight_v", 0) == report.units("conv2.weight", 1)


def test_weight_norm_parametrization():
    net = Chain(nn.ReLU())
    nn.utils.parametrizations.weight_norm(net.conv1)
    randomize(net.eval(), torch.Generator().manual_seed(0))
    report = check_chain(net, (image(),), half_kept)
    name = "conv1.parametrizations.weight.original1"
    assert report.free(name, 0) == 8
    assert report.units("conv2.weight", 1) == report.units(name, 0)


def test_weight_norm_on_the_reading_layer():
    """Removing an input changes the norm of what is left of a filter, so the axis is inexact or stays."""
    net = Chain(nn.ReLU())
    net.conv2 = nn.utils.weight_norm(net.conv2)
    randomize(net.eval(), torch.Generator().manual_seed(0))
    report = check_cut_by_shapes(net, image())
    groups = [g for g in report.groups if any(m.leaf == "conv1.weight" and m.dim == 0 for m in g.members)]
    assert groups and all(g.frozen or not g.exact for g in groups)


@pytest.mark.parametrize(
    "wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm], ids=["hook", "parametrization"]
)
def test_spectral_norm(wrap):
    """The largest singular value runs over both axes: cut with a changed value, or kept with the reason."""
    net = Chain(nn.ReLU())
    net.conv1 = wrap(net.conv1)
    report = check_cut_by_shapes(net, image())
    groups = [g for g in report.groups if any(m.leaf == "conv2.weight" and m.dim == 1 for m in g.members)]
    assert groups and all(g.frozen or not g.exact for g in groups)
    assert report.free("conv2.weight", 0) == 6


def check_cut_by_shapes(net: nn.Module, x: Tensor) -> ChainReport:
    """`check_chain` without the output oracle, which reads plain weights only; the proofs of `cut` still ran."""
    net = net.eval().double()
    x = x.double()
    graph = sec.capture(net, x)
    groups = sec.couple(graph)
    plan = sec.plan(graph, groups, keep=half_kept(groups))
    result = sec.cut_detailed(net, plan, x)
    assert sec.count(result.model, x).macs == plan.after["macs"]
    return ChainReport(graph, groups, plan, result.model, result.form, False)


# Sharing


def test_tied_embedding_stays_tied():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.up = nn.Linear(8, 10)
            self.down = nn.Linear(10, 8)
            self.out = nn.Linear(8, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            return self.out(x + self.down(torch.relu(self.up(x))))

    report = cut_half(Net(), torch.tensor([[1, 5, 3], [0, 10, 2]]))
    assert report.free("embed.weight", 1) == 8
    assert report.free("out.weight", 1) == 8
    assert report.free("up.weight", 0) == 10
    assert report.free("embed.weight", 0) == 0
    assert report.form == "native"
    assert report.small.out.weight is report.small.embed.weight
    assert report.small.out.weight.shape == (11, 4)


def test_module_used_twice():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.shared = nn.Conv2d(8, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 6, 1)
            self.head = Head(6, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x)
            x = torch.sigmoid(self.shared(x))
            return self.head(self.conv2(torch.sigmoid(self.shared(x))))

    report = cut_half(Net(), image())
    assert counts(report) == (8, 8)
    units = report.units("conv1.weight", 0)
    assert report.units("shared.weight", 0) == report.units("shared.weight", 1) == units


# Convolutions out of the ordinary


def test_grouped_convolution_loses_the_same_from_every_group():
    report = cut_half(Chain(nn.Conv2d(8, 12, 3, padding=1, groups=4), middle=12), image())
    assert counts(report) == (2, 3)
    units = report.units("conv2.weight", 1)
    assert units[0:3] == units[3:6] == units[6:9] == units[9:12]
    assert report.small.between.groups == 4


def test_grouped_transposed_convolution():
    report = cut_half(Chain(nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4), middle=12), image())
    assert counts(report) == (2, 3)
    assert report.units("between.weight", 0) == report.units("conv1.weight", 0)
    assert report.units("between.weight", 1) == report.units("conv2.weight", 1)[:3]


def test_depthwise_multiplier_two():
    report = cut_half(Chain(nn.Conv2d(6, 12, 3, padding=1, groups=6), width=6, middle=12), image())
    assert counts(report) == (6, 6)
    assert report.units("between.weight", 0)[::2] == report.units("conv1.weight", 0)
    assert report.units("between.weight", 0) == report.units("conv2.weight", 1)
    assert report.small.between.groups == 3
    assert report.small.between.out_channels == 6


def test_depthwise_transposed_convolution():
    report = cut_half(Chain(nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8)), image())
    assert counts(report) == (8, 8)
    assert report.small.between.groups == 4


# Operators that compare channels with each other


def test_softmax_over_channels_freezes_them():
    report = cut_half(Chain(lambda x: x.softmax(1)), image())
    assert counts(report) == (0, 0)
    assert "softmax" in report.frozen("conv1.weight", 0)
    assert "test_known_traps.py" in report.frozen("conv1.weight", 0)


def test_argmax_over_channels_freezes_them():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv2(torch.relu(self.conv1(x))).argmax(1)

    report = cut_half(Net(), image())
    assert report.free("conv1.weight", 0) == 8
    assert report.free("conv2.weight", 0) == 0
    assert "argmax" in report.frozen("conv2.weight", 0)


def test_softmax_over_space_freezes_nothing():
    report = cut_half(Chain(lambda x: x * x.softmax(3)), image())
    assert counts(report) == (8, 8)


def test_sort_over_channels_freezes_them():
    report = cut_half(Chain(lambda x: x.sort(1).values), image())
    assert counts(report) == (0, 0)
    assert "sort" in report.frozen("conv1.weight", 0)


# Attention


class Encoder(nn.Module):
    """embed (5 -> 8), attention + residual, linear (8 -> 6), head."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.attention = attention
        self.out = nn.Linear(8, 6)
        self.head = Head(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(torch.relu(self.out(x + self.attention(x))))


@pytest.mark.parametrize("manual", [False, True])
def test_heads_of_a_fused_projection(manual):
    report = cut_half(Encoder(FusedAttention(8, 4, 2, manual)), tokens(5))
    assert report.free("embed.weight", 0) == 8
    assert report.free("attention.qkv.weight", 0) == 4
    assert report.free("attention.proj.weight", 1) == 4
    assert report.units("attention.qkv.weight", 0)[:8] == report.units("attention.qkv.weight", 0)[8:16]


@pytest.mark.parametrize("manual", [False, True])
def test_columns_of_heads_keep_the_scale(manual):
    """With `unit="head_dim"` every head loses the same columns; the default scale must stay the original's."""
    report = cut_half(Encoder(FusedAttention(8, 2, 4, manual)), tokens(5), unit="head_dim")
    units = report.units("attention.qkv.weight", 0)
    assert units == units[:4] * 6  # queries, keys and values of both heads: one view makes them all equally wide
    assert len(set(units)) == 4
    assert report.free("attention.proj.weight", 1) == 4


def test_more_query_heads_than_key_heads():
    report = cut_half(Encoder(GroupedQueryAttention(8, 6, 2, 3)), tokens(5))
    assert report.free("attention.k.weight", 0) == 2
    assert report.free("attention.v.weight", 0) == 2
    assert report.free("attention.o.weight", 1) in (2, 6)
    assert report.free("embed.weight", 0) == 8


def test_few_key_heads_repeated_by_expand():
    """As in Llama and Qwen; the axis of repetitions (7) is longer than that of key and value heads (2)."""

    class Attention(GroupedQueryAttention):
        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q, k, v = (layer(x).view(b, t, -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
            q, k = (y * self.table + torch.cat([-y[..., 2:], y[..., :2]], -1) * self.table for y in (q, k))
            k, v = (y[:, :, None].expand(b, 2, 7, t, self.head_dim).reshape(b, 14, t, self.head_dim) for y in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v)
            return self.o(mixed.transpose(1, 2).reshape(b, t, -1))

    attention = Attention(8, 14, 2, 4)
    attention.register_buffer("table", torch.rand(5, 4))  # in the place of sines and cosines
    report = cut_half(Encoder(attention), tokens(5))
    assert report.free("attention.k.weight", 0) == 2
    assert report.free("attention.v.weight", 0) == 2
    assert report.units("attention.q.weight", 0) == report.units("attention.o.weight", 1)


def test_grouped_query_flag_of_the_operator():
    class Attention(GroupedQueryAttention):
        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q, k, v = (layer(x).view(b, t, -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            return self.o(mixed.transpose(1, 2).reshape(b, t, -1))

    report = cut_half(Encoder(Attention(8, 4, 2, 3)), tokens(5))
    assert report.free("attention.k.weight", 0) == 2
    assert report.free("attention.v.weight", 0) == 2


def test_multihead_attention_module():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x, need_weights=False)[0]

    report = cut_half(Encoder(Attention()), tokens(5))
    assert report.free("attention.inner.in_proj_weight", 0) == 4
    assert report.free("attention.inner.out_proj.weight", 1) == 4
    assert report.free("embed.weight", 0) == 8


def test_head_dim_divided_in_forward():
    """`head_dim = width // num_heads` computed in `forward`: silently wrong once heads are gone and width is not."""

    class Attention(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.num_heads = heads
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            b, t, width = x.shape
            head_dim = width // self.num_heads
            qkv = self.qkv(x).reshape(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
            weights = (q @ k.transpose(-2, -1) * head_dim**-0.5).softmax(-1)
            return self.proj((weights @ v).transpose(1, 2).reshape(b, t, -1))

    class Net(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(torch.relu(self.out(x + self.attention(x))))

    report = cut_half(Net(Attention(8, 4)), tokens(5))
    assert report.free("attention.qkv.weight", 0) == 4


def test_view_with_heads_and_width_as_attributes():
    """`x.view(B, T, self.h, self.d)` with attribute names that no library can know."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h, self.d = 4, 2
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
            self.o = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q = self.q(x).view(b, t, self.h, self.d).transpose(1, 2)
            k = self.k(x).view(b, t, self.h, self.d).transpose(1, 2)
            v = self.v(x).view(b, t, self.h, self.d).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(q, k, v)
            return self.o(mixed.transpose(1, 2).reshape(b, t, self.h * self.d))

    report = cut_half(Encoder(Attention()), tokens(5))
    for name in "qkv":
        assert report.free(f"attention.{name}.weight", 0) == 4
    assert report.free("attention.o.weight", 1) == 4
    assert report.small.attention.q.weight.shape[0] == 4 if report.form == "native" else True


# Recurrent cells, checkpointing


@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3)])
def test_recurrent_cells(kind, gates):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.recurrent = Recurrent(kind, 8, 6, 1, False)
            self.head = Head(6, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(torch.sigmoid(self.embed(x))))

    report = cut_half(Net(), tokens(5))
    assert report.free("embed.weight", 0) == 8
    hidden = report.units("head.linear.weight", 1)
    assert report.free("head.linear.weight", 1) == 6
    assert report.units("recurrent.cell.weight_hh_l0", 1) == hidden
    assert report.units("recurrent.cell.weight_ih_l0", 0) == hidden * gates
    assert report.units("recurrent.cell.bias_hh_l0", 0) == hidden * gates


def test_cell_that_starts_from_zeros_made_in_forward():
    """The size of the state is a literal, so that only a graph runs; its zeros are of the default type."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.cell = nn.LSTMCell(8, 6)
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.embed(x))
            state = torch.zeros(x.shape[0], 6), torch.zeros(x.shape[0], 6)
            for step in x.unbind(1):
                state = self.cell(step, state)
            return self.out(state[0])

    model, x = Net(), tokens(5)
    groups = sec.couple(sec.capture(model, x))
    scores = sec.score(groups, model, "l1")
    cut = sec.cut_detailed(model, sec.choose(groups.graph, groups, scores, sec.Budget(channels=0.5)), x)
    assert cut.form == "graph"
    assert cut.model(x).shape == (2, 3)
    with torch.no_grad():  # the original, its consumers reading zero
        removed = cut.plan.removed
        model.cell.weight_ih[:, list(removed["cell.weight_ih"][1])] = 0
        model.cell.weight_hh[:, list(removed["cell.weight_hh"][1])] = 0
        model.out.weight[:, list(removed["out.weight"][1])] = 0
        torch.testing.assert_close(cut.model(x), model(x))


def test_two_bidirectional_layers():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.recurrent = Recurrent("lstm", 8, 6, 2, True)
            self.head = Head(12, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(torch.sigmoid(self.embed(x))))

    report = cut_half(Net(), tokens(5))
    assert report.free("embed.weight", 0) == 8
    assert 6 <= report.free("head.linear.weight", 1) <= 12


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_block(reentrant):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.block = nn.Sequential(nn.Conv2d(8, 10, 1), nn.ReLU(), nn.Conv2d(10, 8, 1))
            self.conv2 = nn.Conv2d(8, 6, 1)
            self.head = Head(6, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv1(x))
            x = x + torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=reentrant)
            return self.head(self.conv2(x))

    report = cut_half(Net(), image())
    assert counts(report) == (8, 8)
    assert report.free("block.0.weight", 0) == 10


# Normalisation over what is removed


def test_layer_norm_is_inexact_and_free():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.norm = nn.LayerNorm(8)
            self.head = Head(8, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.embed(x)))

    report = cut_half(Net(), tokens(5))
    assert report.free("embed.weight", 0) == 8
    (group,) = [g for g in report.groups.free if any(m.leaf == "embed.weight" for m in g.members)]
    assert not group.exact and "layer_norm" in str(group.inexact_because)
    assert report.small.norm.normalized_shape == (4,)


def test_group_norm_loses_whole_groups():
    """A group of channels with statistics of its own is the unit, so that the rest is untouched."""
    report = cut_half(Chain(nn.GroupNorm(4, 8)), image())
    assert counts(report) == (4, 4)
    units = report.units("conv1.weight", 0)
    assert units[::2] == units[1::2]
    assert all(group.exact for group in report.groups.free)
    assert report.small.between.num_groups == 2
    assert report.small.between.num_channels == 4


def test_group_norm_of_one_group_is_inexact():
    report = cut_half(Chain(nn.GroupNorm(1, 8)), image())
    assert counts(report) == (8, 8)
    (group,) = [g for g in report.groups.free if any(m.leaf == "conv1.weight" for m in g.members)]
    assert not group.exact and "group_norm" in str(group.inexact_because)


def test_batch_norm_and_instance_norm_are_exact():
    report = cut_half(Chain(nn.Sequential(nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True))), image())
    assert counts(report) == (8, 8)
    assert all(group.exact for group in report.groups.free)
    assert report.units("between.0.running_var", 0) == report.units("conv1.weight", 0)
    assert report.small.between[0].num_features == 4


# Flags of parameters


@pytest.mark.parametrize(("between", "form"), [(nn.ReLU(), "native"), (SplitInTwo(), "graph")], ids=["native", "graph"])
def test_frozen_parameters_stay_frozen(between, form):
    net = Chain(between)
    net.conv1.weight.requires_grad_(False)
    net.head.linear.bias.requires_grad_(False)
    report = cut_half(net, image())
    assert report.form == form
    trained = {name: parameter.requires_grad for name, parameter in report.small.named_parameters()}
    assert trained == {name: parameter.requires_grad for name, parameter in net.named_parameters()}


# Rounding of widths


@pytest.mark.parametrize("search", ["uniform", "global"])
def test_rounding_never_reaches_zero_and_never_skips_silently(search):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 6, 3, padding=1)
            self.b = nn.Conv2d(6, 24, 3, padding=1)
            self.c = nn.Conv2d(24, 5, 1)
            self.head = Head(5, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))

    net = Net().eval()
    randomize(net, torch.Generator().manual_seed(0))
    graph = sec.capture(net, image())
    groups = sec.couple(graph)
    scores = sec.score(groups, net, "l1")
    plan = sec.choose(graph, groups, scores, sec.Budget(macs=0.6), search=search, granularity=8)
    free = {group.name for group in groups.free}
    decisions = {decision.size: decision for decision in plan.groups if decision.name in free}
    assert set(decisions) == {5, 6, 24}
    for decision in decisions.values():
        assert len(decision.kept) >= 1
        assert len(decision.kept) % 8 == 0 or len(decision.kept) == decision.size
    assert len(decisions[24].kept) in (8, 16)
    assert all("granularity" in d.why or "budget" in d.why for d in decisions.values() if len(d.kept) == d.size)
    assert plan.after["macs"] <= 0.6 * plan.before["macs"]
    sec.cut(net, plan, image())
