"""Operators of random networks on tokens and sequences, and from one kind of tensor to another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateurs.testing import layers
from secateurs.testing.menu import LARGEST, WIDEST, Picks, Spot, divisors, op

# Tokens and sequences


@op("tokens", gives="sequence")
def embedding(pick: Picks, x: Spot) -> nn.Module | None:
    return nn.Embedding(11, pick([4, 6, 8]))


@op("sequence|vector")
def linear(pick: Picks, x: Spot) -> nn.Module | None:
    return nn.Linear(x.shape[-1], pick([4, 6, 8, 3, 5]), bias=pick([True, False]))


@op("sequence")
def fused_attention(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.FusedAttention(x.shape[-1], pick([2, 3, 4]), pick([2, 3]), pick([False, True]))


@op("sequence")
def grouped_query_attention(pick: Picks, x: Spot) -> nn.Module | None:
    kv_heads = pick([2, 1, 3])
    return layers.GroupedQueryAttention(x.shape[-1], kv_heads * pick([2, 1, 3]), kv_heads, pick([2, 4]))


@op("sequence")
def self_attention(pick: Picks, x: Spot) -> nn.Module | None:
    width = x.shape[-1]
    return layers.SelfAttention(width, pick([h for h in divisors(width) if h > 1] or [1]))


@op("sequence")
def attention_block(pick: Picks, x: Spot) -> nn.Module | None:
    width = x.shape[-1]
    return layers.Residual(
        nn.Sequential(nn.LayerNorm(width), layers.FusedAttention(width, pick([2, 3]), 2, pick([False, True])))
    )


@op("sequence")
def feed_forward(pick: Picks, x: Spot) -> nn.Module | None:
    width, hidden = x.shape[-1], pick([4, 6, 7])
    norm: nn.Module = pick([nn.Identity, nn.LayerNorm, nn.RMSNorm])(width)
    return layers.Residual(nn.Sequential(norm, nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)))


@op("sequence")
def gated_unit(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.GatedUnit(x.shape[-1], pick([4, 5]))


@op("sequence")
def recurrent(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Recurrent(pick(["lstm", "gru"]), x.shape[-1], pick([3, 4, 5]), pick([1, 2]), pick([False, True]))


@op("sequence")
def positions(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Positions(x.shape[1], x.shape[2]) if x.shape[1] <= LARGEST else None


@op("sequence")
def move_tokens(pick: Picks, x: Spot) -> nn.Module | None:
    return pick([layers.Apply(torch.roll, 1, 1), layers.Apply(torch.flip, (1,))])


# From one kind to another


@op("map", gives="vector")
def flatten(pick: Picks, x: Spot) -> nn.Module | None:
    count = x.channels * x.shape[2] * x.shape[3]
    return layers.Apply(torch.flatten, 1) if count <= 400 else None


def map_to_sequence(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@op("map", gives="sequence")
def to_sequence(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Apply(map_to_sequence) if x.shape[2] * x.shape[3] <= 36 else None


def sequence_to_map(x: Tensor, height: int, width: int) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], -1, height, width)


@op("sequence", gives="map")
def to_map(pick: Picks, x: Spot) -> nn.Module | None:
    tokens = x.shape[1]
    height = max(d for d in divisors(tokens) if d * d <= tokens)
    return layers.Apply(sequence_to_map, height, tokens // height)


def windows(x: Tensor, size: int) -> Tensor:
    """Swin's partition: [B, C, H, W] -> [B * windows, size * size, C]."""
    batch, count, height, width = x.shape
    cells = x.permute(0, 2, 3, 1).view(batch, height // size, size, width // size, size, count)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, count)


def from_windows(x: Tensor, batch: int, height: int, width: int, size: int) -> Tensor:
    cells = x.view(batch, height // size, width // size, size, size, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)


@op("map")
def window_attention(pick: Picks, x: Spot) -> nn.Module | None:
    batch, count, height, width = x.shape
    if height % 2 or width % 2:
        return None
    return nn.Sequential(
        layers.Apply(windows, 2),
        layers.FusedAttention(count, pick([2, 3]), 2, pick([False, True])),
        layers.Apply(from_windows, batch, height, width, 2),
    )


@op("sequence", gives="vector")
def reduce_tokens(pick: Picks, x: Spot) -> nn.Module | None:
    kinds: list[nn.Module] = [
        layers.Apply(torch.mean, 1),
        layers.Apply(torch.select, 1, 0),
        layers.Apply(torch.amax, 1),
    ]
    return pick(kinds)


@op("sequence", gives="signal")
def to_signal(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Apply(torch.transpose, 1, 2)


@op("signal", gives="sequence")
def from_signal(pick: Picks, x: Spot) -> nn.Module | None:
    return layers.Apply(torch.transpose, 1, 2)


@op("vector", gives="map")
def to_pixels(pick: Picks, x: Spot) -> nn.Module | None:
    """[B, C * 4] -> [B, C, 2, 2], as a generator's first reshape does; else [B, C, 1, 1]."""
    count = x.channels
    side = 2 if count % 4 == 0 and count > 4 else 1
    return nn.Unflatten(1, (count // side**2, side, side)) if count // side**2 <= WIDEST else None


@op("volume", gives="map")
def flatten_depth(pick: Picks, x: Spot) -> nn.Module | None:
    """The mean over depth, or depth folded into the channels."""
    fold = layers.Apply(torch.flatten, 1, 2)
    return pick(
        [layers.Apply(torch.mean, 2), fold if x.shape[1] * x.shape[2] <= WIDEST else layers.Apply(torch.mean, 2)]
    )
