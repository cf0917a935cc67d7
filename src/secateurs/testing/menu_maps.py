"""Operators of random networks on maps, signals, volumes and vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.testing import layers
from secateurs.testing.menu import LARGEST, WIDEST, Picks, Spot, divisors, op

# Convolutions


def _convolution(kind: type[Any], pick: Picks, x: Spot) -> nn.Module | None:
    """A plain, strided, dilated or grouped convolution over [B, C, ...], possibly transposed."""
    groups = pick([1, 1, 1, 2, 3, 4])
    if x.channels % groups:
        groups = 1
    out = groups * pick([2, 3, 4, 5, 6])
    kernel, stride, dilation = pick([1, 3, 2]), pick([1, 1, 2]), pick([1, 1, 2])
    transposed = kind in (nn.ConvTranspose1d, nn.ConvTranspose2d)
    if out > WIDEST or (transposed and stride * min(x.space) > LARGEST):
        return None
    if not transposed and dilation * (kernel - 1) + 1 > min(x.space) + 2 * (kernel // 2):
        return None
    bias = pick([True, False])
    layer: nn.Module = kind(
        x.channels, out, kernel, stride=stride, padding=kernel // 2, dilation=dilation, groups=groups, bias=bias
    )
    return layer


@op("map")
def conv2d(pick: Picks, x: Spot) -> nn.Module | None:
    return _convolution(nn.Conv2d, pick, x)


@op("signal")
def conv1d(pick: Picks, x: Spot) -> nn.Module | None:
    return _convolution(nn.Conv1d, pick, x)


@op("volume")
def conv3d(pick: Picks, x: Spot) -> nn.Module | None:
    return _convolution(nn.Conv3d, pick, x)


@op("map")
def conv_transpose2d(pick: Picks, x: Spot) -> nn.Module | None:
    if min(x.space) < 3:
        return None
    return _convolution(nn.ConvTranspose2d, pick, x)


@op("map|signal")
def depthwise(pick: Picks, x: Spot) -> nn.Module | None:
    count, multiplier = x.channels, pick([1, 1, 2])
    if count * multiplier > WIDEST:
        return None
    kind = nn.Conv2d if len(x.shape) == 4 else nn.Conv1d
    return kind(count, count * multiplier, 3, padding=1, groups=count, bias=pick([True, False]))


@op("map")
def bare_conv(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.BareConv(x.channels, pick([2, 3, 4, 6]), pick([1, 3]))


# Norms, scales, activations


@op("map|signal|vector|volume")
def batch_norm(pick: Picks, x: Spot) -> nn.Module | None:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(x.shape)]
    return kind(x.channels, affine=pick([True, True, False]))


@op("map|signal")
def group_norm(pick: Picks, x: Spot) -> nn.Module | None:
    count = x.channels
    groups = pick([g for g in divisors(count) if g < count] or [1])
    return nn.GroupNorm(groups, count)


@op("map")
def instance_norm(pick: Picks, x: Spot) -> nn.Module | None:
    if x.shape[2] * x.shape[3] < 2:
        return None
    return nn.InstanceNorm2d(x.channels, affine=pick([True, False]))


@op("map")
def norm_over_channels(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.NormOverChannels(x.channels)


@op("sequence|vector")
def layer_norm(pick: Picks, x: Spot) -> nn.Module | None:
    return nn.LayerNorm(x.shape[-1])


@op("sequence|vector")
def rms_norm(pick: Picks, x: Spot) -> nn.Module | None:
    return nn.RMSNorm(x.shape[-1], eps=1e-6)


@op("map")
def frozen_batch_norm(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.FrozenBatchNorm(x.channels)


@op("*")
def channel_scale(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.ChannelScale(x.channels, len(x.shape) - 1 - x.axis, buffer=pick([False, True]))


@op("*")
def activation(pick: Picks, x: Spot) -> nn.Module | None:
    kinds: list[Callable[[], nn.Module]] = [
        nn.ReLU,
        nn.GELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Hardswish,
        nn.Tanh,
        nn.LeakyReLU,
        nn.ELU,
    ]
    return pick(kinds)()


@op("map|signal|volume|vector")
def prelu(pick: Picks, x: Spot) -> nn.Module | None:
    return nn.PReLU(pick([x.channels, 1]))


@op("map")
def scalar_gate(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.ScalarGate()


# Space


@op("map")
def pool(pick: Picks, x: Spot) -> nn.Module | None:
    if min(x.space) < 2:
        return None
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.MaxPool2d(2),
        lambda: nn.AvgPool2d(2),
        lambda: nn.AdaptiveAvgPool2d(1),
        lambda: nn.AdaptiveMaxPool2d(2),
        lambda: nn.AvgPool2d(3, stride=1, padding=1),
    ]
    return pick(kinds)()


@op("map")
def interpolate(pick: Picks, x: Spot) -> nn.Module | None:
    if 2 * max(x.space) > LARGEST:
        return None
    mode = pick(["nearest", "bilinear"])
    return layers.Apply(F.interpolate, scale_factor=2.0, mode=mode)


@op("map")
def transpose_space(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Apply(torch.transpose, 2, 3)


@op("map")
def softmax_space(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Apply(torch.softmax, 3)


@op("map", gives="vector")
def reduce_space(pick: Picks, x: Spot) -> nn.Module | None:
    reductions: list[Callable[..., Tensor]] = [torch.mean, torch.sum, torch.amax]
    return layers.Apply(pick(reductions), (2, 3))


# Channels moved about


@op("map")
def pixel_shuffle(pick: Picks, x: Spot) -> nn.Module | None:
    if x.channels % 4 or 2 * max(x.space) > LARGEST:
        return None
    return nn.PixelShuffle(2)


@op("map")
def pixel_unshuffle(pick: Picks, x: Spot) -> nn.Module | None:
    if 4 * x.channels > WIDEST or x.shape[2] % 2 or x.shape[3] % 2:
        return None
    return nn.PixelUnshuffle(2)


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's shuffle: view, swap, flatten."""
    batch, count, height, width = x.shape
    return x.view(batch, groups, count // groups, height, width).transpose(1, 2).reshape(batch, count, height, width)


@op("map")
def channel_shuffle(pick: Picks, x: Spot) -> nn.Module | None:
    groups = pick([2, 3, 4])
    if x.channels % groups:
        return None
    return pick([layers.Apply(shuffle_channels, groups), nn.ChannelShuffle(groups)])


@op("map|signal|vector")
def reorder_channels(pick: Picks, x: Spot) -> nn.Module | None:
    count = x.channels
    order = torch.arange(count).roll(2).flip(0)
    return pick(
        [
            layers.Apply(torch.flip, (1,)),
            layers.Apply(torch.roll, 1, 1),
            layers.Apply(torch.index_select, 1, order),
        ]
    )


def pad_channels_by(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, [0, 0] * (x.dim() - 2) + [before, after])


@op("map|signal|vector")
def pad_channels(pick: Picks, x: Spot) -> nn.Module | None:
    before, after = pick([(0, 1), (1, 0), (2, 3), (1, 1)])
    if x.channels + before + after > WIDEST:
        return None
    return layers.Apply(pad_channels_by, before, after)


@op("map|signal|vector")
def slice_channels(pick: Picks, x: Spot) -> nn.Module | None:
    count = x.channels
    if count < 3:
        return None
    start, drop = pick([0, 1]), pick([0, 1])
    return layers.Apply(torch.narrow, 1, start, count - max(1, start + drop))


@op("*")
def split(pick: Picks, x: Spot) -> nn.Module | None:
    """Two or three parts, equal or not."""
    half, third = x.channels // 2, x.channels // 3
    sizes = pick([[half, x.channels - half], [1, x.channels - 1], [third, third + 1, x.channels - 2 * third - 1]])
    return layers.Apply(torch.split, sizes, x.axis) if min(sizes) > 0 else None


@op("*")
def chunk(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Apply(torch.chunk, pick([2, 3]), x.axis) if x.channels > 1 else None


@op("map|vector")
def gated_half(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Apply(F.glu, 1) if x.channels % 2 == 0 else None


@op("map")
def maxout(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.MaxOut(pick([None, x.channels])) if x.channels % 2 == 0 else None


@op("map")
def softmax_channels(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Apply(torch.softmax, 1)


@op("map")
def reduce_channels(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.ProbedReduction(x.channels, pick(["sum", "mean"]))


# Two or three values


def _project(pick: Picks, x: Spot, y: Spot) -> nn.Module | None:
    """A 1x1 convolution from y's channels to x's where they differ, and sometimes where they do not."""
    return None if x.channels == y.channels and pick([True, False]) else nn.Conv2d(y.channels, x.channels, 1)


@op("map", "map")
def merge(pick: Picks, x: Spot, y: Spot) -> nn.Module | None:
    height, width = x.space
    return layers.Match(pick(["add", "mul", "sub", "max"]), (height, width), _project(pick, x, y))


@op("map", "map")
def concat(pick: Picks, x: Spot, y: Spot) -> nn.Module | None:
    height, width = x.space
    return layers.Concat((height, width)) if x.channels + y.channels <= WIDEST else None


@op("map", "map", "map")
def concat3(pick: Picks, x: Spot, y: Spot, z: Spot) -> nn.Module | None:
    height, width = x.space
    return layers.Concat((height, width)) if x.channels + y.channels + z.channels <= WIDEST else None


def cat_two(x: Tensor, y: Tensor, axis: int) -> Tensor:
    return torch.cat([x, y], axis)


@op("vector", "vector")
def concat_vectors(pick: Picks, x: Spot, y: Spot) -> nn.Module | None:
    return layers.Apply(cat_two, 1) if x.channels + y.channels <= WIDEST else None


@op("map", "vector")
def modulate(pick: Picks, x: Spot, y: Spot) -> nn.Module | None:
    """A map times a gate computed from a vector: FiLM, conditioning, class-conditional gates."""
    return layers.Modulate(y.channels, x.channels)


# Blocks


@op("map")
def residual(pick: Picks, x: Spot) -> nn.Module | None:
    count, hidden = x.channels, pick([2, 3, 4, 6])
    bodies: list[Callable[[], nn.Module]] = [
        lambda: nn.Conv2d(count, count, 3, padding=1),
        lambda: nn.Sequential(
            nn.Conv2d(count, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, count, 1),
        ),
        lambda: nn.Sequential(
            nn.Conv2d(count, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, count, 1),
        ),
    ]
    return layers.Residual(pick(bodies)())


@op("map")
def squeeze_excite(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.SqueezeExcite(x.channels, pick([2, 3, 4]))


@op("map")
def spatial_gate(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.SpatialGate(x.channels)


@op("map")
def pooled_gate(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.PooledGate(pick([None, x.channels]))


@op("map")
def neighbour_gate(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.NeighbourGate(pick([None, x.channels]))


@op("map")
def non_local(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.NonLocal(x.channels, pick([2, 3, 4]))
