"""Small layers written the way users write them: hand-made attention, gates, bare parameters, buffers of channel size.

Shapes: `B` batch, `C` channels, `H, W` space, `T` tokens, `D` width of a token, `h` heads, `d` width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Apply(nn.Module):
    """A function of tensors as a module; sizes among the arguments are baked in, as in much of users' code."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, *values: Tensor) -> Any:
        return self.function(*values, *self.args, **self.kwargs)

    def extra_repr(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function))
        return ", ".join([name, *map(repr, self.args), *(f"{key}={value!r}" for key, value in self.kwargs.items())])


class BareConv(nn.Module):
    """A convolution whose kernel is the layer's own parameter: no `nn.Conv2d`, no attributes to repair."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(out, channels, kernel, kernel))
        self.shift = nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, self.shift, padding=self.kernel.shape[-1] // 2)


class FrozenBatchNorm(nn.Module):
    """Batch norm with fixed statistics held in four buffers, as detectors use it."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("weight") * (self.get_buffer("running_var") + self.eps).rsqrt()
        shift = self.get_buffer("bias") - self.get_buffer("running_mean") * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class ChannelScale(nn.Module):
    """One number per channel, from a parameter or a buffer shaped to broadcast over [B, C, H, W] or [B, T, D]."""

    scale: Tensor

    def __init__(self, channels: int, trailing: int, buffer: bool) -> None:
        super().__init__()
        scale = torch.ones(channels, *([1] * trailing))
        if buffer:
            self.register_buffer("scale", scale)
        else:
            self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ScalarGate(nn.Module):
    """`x + gain * x` with a single learned number (ReZero, SkipInit)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * torch.tanh(x)


class NormOverChannels(nn.Module):
    """LayerNorm over the channels of [B, C, H, W] by permuting there and back, as ConvNeXt does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return result


class Residual(nn.Module):
    """`x + body(x)`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


class SqueezeExcite(nn.Module):
    """A gate per channel from the mean over space: [B, C, H, W] * [B, C, 1, 1]."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class SpatialGate(nn.Module):
    """A gate per position from all channels: [B, C, H, W] * [B, 1, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


class PooledGate(nn.Module):
    """CBAM's spatial gate: mean and maximum over channels, a convolution from 2 to 1 channels, a sigmoid.

    `probe`, a buffer of ones where there is no `channels`, tells an oracle which channels stayed.
    """

    probe: Tensor | None

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        self.register_buffer("probe", None if channels is None else torch.ones(channels, 1, 1))
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.probe is None else x * self.probe
        pooled = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(pooled))


class NeighbourGate(nn.Module):
    """ECA's channel gate: a 1-d convolution that slides along the channel axis; `probe` as in `PooledGate`."""

    probe: Tensor | None

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        self.register_buffer("probe", None if channels is None else torch.ones(channels))
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)) if self.probe is None else x.mean((2, 3)) * self.probe
        return x * torch.sigmoid(self.conv(pooled.unsqueeze(1))).squeeze(1)[:, :, None, None]


class ProbedReduction(nn.Module):
    """Mean or sum over channels after a scale per channel; the scale's buffer tells an oracle which channels stayed."""

    probe: Tensor

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("probe", torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.probe
        return scaled.mean(1, keepdim=True) if self.kind == "mean" else scaled.sum(1, keepdim=True)


class Match(nn.Module):
    """Combine a second map with the first: pooled to its size, and projected to its channels where they differ."""

    def __init__(self, how: str, size: tuple[int, int], project: nn.Module | None) -> None:
        super().__init__()
        self.how, self.size = how, size
        self.project = project

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if y.shape[-2:] != self.size:
            y = F.adaptive_avg_pool2d(y, self.size)
        if self.project is not None:
            y = self.project(y)
        combine: dict[str, Callable[..., Tensor]] = {
            "add": torch.add,
            "mul": torch.mul,
            "sub": torch.sub,
            "max": torch.maximum,
        }
        result: Tensor = combine[self.how](x, y)
        return result


class Concat(nn.Module):
    """Join maps along channels, each pooled to the first one's size."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat([m if m.shape[-2:] == self.size else F.adaptive_avg_pool2d(m, self.size) for m in maps], dim=1)


class MaxOut(nn.Module):
    """The larger of every two neighbouring channels, [B, C, H, W] -> [B, C / 2, H, W]; `probe` as in `PooledGate`."""

    probe: Tensor | None

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        self.register_buffer("probe", None if channels is None else torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.probe is None else x * self.probe
        batch, count, height, width = x.shape
        return x.view(batch, count // 2, 2, height, width).amax(2)


class Modulate(nn.Module):
    """A map times a gate per channel computed from a vector: conditioning, class-conditional gates."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        return x * torch.sigmoid(self.linear(vector))[:, :, None, None]


class NonLocal(nn.Module):
    """Attention over positions with 1x1 convolutions and two batched matrix products; scores unscaled."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(q.transpose(1, 2) @ k, dim=-1)
        mixed = v @ weights.transpose(1, 2)
        result: Tensor = x + self.out(mixed.reshape(x.shape[0], -1, *x.shape[2:]))
        return result


class FusedAttention(nn.Module):
    """ViT attention with one `qkv` projection; `manual` multiplies matrices instead of calling the fused operator."""

    def __init__(self, width: int, heads: int, head_dim: int, manual: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.manual = heads, head_dim, manual
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.manual:
            mixed = torch.softmax((q * self.scale) @ k.transpose(-2, -1), dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return result


class GroupedQueryAttention(nn.Module):
    """More query heads than key/value heads; keys and values are repeated to match, as Llama does."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.k = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.o(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return result


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` with itself as query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return mixed


class Recurrent(nn.Module):
    """An LSTM or GRU over [B, T, D]; only the sequence of states is used."""

    def __init__(self, kind: str, width: int, hidden: int, layers: int, bidirectional: bool) -> None:
        super().__init__()
        cell = nn.LSTM if kind == "lstm" else nn.GRU
        self.cell = cell(width, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.cell(x)[0]
        return states


class GatedUnit(nn.Module):
    """SwiGLU: two projections, one through SiLU, multiplied, and a projection back; added to the input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return result


class Positions(nn.Module):
    """A learned token in front and a learned position per token: [B, T, D] -> [B, T + 1, D]."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, tokens + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1) + self.positions


class Head(nn.Module):
    """The end of a network: mean over everything but batch and channels, then a linear layer to a few numbers."""

    def __init__(self, channels: int, axis: int, out: int) -> None:
        super().__init__()
        self.axis = axis
        self.linear = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        rest = tuple(dim for dim in range(1, x.dim()) if dim != self.axis)
        result: Tensor = self.linear(x.mean(rest) if rest else x)
        return result
