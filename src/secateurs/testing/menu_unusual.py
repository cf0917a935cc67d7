"""Rarer operators of random networks: in-place changes, unusual attention, mixtures, spelled-out convolutions."""

from __future__ import annotations

from torch import nn

from secateurs.testing import unusual
from secateurs.testing.menu import WIDEST, Picks, Spot, divisors, op


@op("map")
def in_place(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.InPlace(x.channels) if x.channels > 1 else None


@op("map")
def temporal_shift(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.TemporalShift(max(1, x.channels // 4)) if x.channels > 2 and x.shape[2] > 1 else None


@op("map")
def respelled_convolution(pick: Picks, x: Spot) -> nn.Module | None:
    kinds = [unusual.EinsumLinear, unusual.Unfolded, unusual.SlimmableConv, unusual.StandardizedConv]
    return pick(kinds)(x.channels, pick([4, 3, 6]))


@op("map")
def mixture(pick: Picks, x: Spot) -> nn.Module | None:
    kinds = [unusual.StackedExperts, unusual.SelectiveKernel, unusual.SplitAttention, unusual.ConvRecurrent]
    return pick(kinds)(x.channels, pick([4, 3, 6]))


@op("map")
def norm_among_channels(pick: Picks, x: Spot) -> nn.Module | None:
    kinds: list[nn.Module] = [unusual.UnitLength(), unusual.ResponseNorm(), unusual.GlobalResponseNorm(x.channels)]
    return pick(kinds)


@op("map")
def dynamic_filter(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.DynamicFilter(x.channels)


@op("map")
def repeated(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.Repeated(pick([False, True])) if 2 * x.channels <= WIDEST else None


@op("map")
def interleaved(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.Interleaved(x.channels) if 2 * x.channels <= WIDEST else None


@op("map")
def group_sum(pick: Picks, x: Spot) -> nn.Module | None:
    groups = pick([d for d in divisors(x.channels) if d > 1] or [1])
    return unusual.GroupSum(groups) if groups > 1 else None


@op("*")
def masked(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.Masked()


@op("map")
def channel_order(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.ChannelOrder(pick(["cumsum", "sort", "topk"]), x.channels)


@op("map")
def channels_as_height(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.ChannelsAsHeight(x.shape[2])


@op("map")
def rows_as_batch(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.DoubledBatch(x.channels)


@op("map", gives="vector")
def gram_matrix(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.GramMatrix() if x.channels <= 8 else None


@op("vector")
def bilinear(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.BilinearFusion(x.channels, pick([3, 4])) if x.channels <= WIDEST else None


@op("sequence")
def unusual_attention(pick: Picks, x: Spot) -> nn.Module | None:
    kinds = [
        unusual.MultiQueryAttention,
        unusual.TalkingHeads,
        unusual.LinearAttention,
        unusual.CrossCovariance,
    ]
    return pick(kinds)(x.channels, pick([2, 3, 4]), pick([2, 3]))


@op("sequence")
def biased_attention(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.BiasedAttention(x.channels, pick([2, 3]), 2, x.shape[1]) if x.shape[1] <= 16 else None


@op("sequence")
def rotary_attention(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.RotaryAttention(x.channels, pick([2, 3]), pick([1, 2]), pick([False, True]))


@op("sequence", "sequence")
def cross_attention(pick: Picks, x: Spot, y: Spot) -> nn.Module | None:
    return unusual.CrossAttention(x.channels, y.channels, pick([h for h in divisors(x.channels) if h > 1] or [1]))


@op("sequence")
def token_mixing(pick: Picks, x: Spot) -> nn.Module | None:
    if pick([False, True]) and x.channels % 2 == 0:
        return unusual.SpatialGatingUnit(x.shape[1])
    return unusual.TokenMixing(x.shape[1], pick([3, 4]))


@op("sequence")
def cell_loop(pick: Picks, x: Spot) -> nn.Module | None:
    return unusual.CellLoop(pick(["lstm", "gru"]), x.channels, pick([3, 4])) if x.shape[1] <= 6 else None


@op("sequence")
def encoder_layer(pick: Picks, x: Spot) -> nn.Module | None:
    heads = pick([h for h in divisors(x.channels) if h > 1] or [1])
    first = pick([False, True])
    return nn.TransformerEncoderLayer(x.channels, heads, pick([4, 6]), norm_first=first, batch_first=True)


@op("sequence", "sequence")
def decoder_layer(pick: Picks, x: Spot, y: Spot) -> nn.Module | None:
    if x.channels != y.channels:
        return None
    heads = pick([h for h in divisors(x.channels) if h > 1] or [1])
    return nn.TransformerDecoderLayer(x.channels, heads, 4, batch_first=True)
