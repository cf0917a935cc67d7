"""Layers that are rarer than those of `layers`, each taken from a family of published networks.

A layer with `mixes_channels = True` reduces over channels without a weight that says which stayed, so the oracle has no
answer for networks that contain it; the proofs of `cut` still run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InPlace(nn.Module):
    """Features changed where they lie: `+=`, `relu_`, a slice of channels scaled, another set to zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.middle = channels // 2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        y += x
        y.relu_()
        y[:, : self.middle].mul_(0.5)
        y[:, self.middle :] += 1.0
        return y


class TemporalShift(nn.Module):
    """TSM: the first channels come from the row above, the next from the row below, the rest stays."""

    def __init__(self, fold: int) -> None:
        super().__init__()
        self.fold = fold

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, : self.fold, :-1] = x[:, : self.fold, 1:]
        out[:, self.fold : 2 * self.fold, 1:] = x[:, self.fold : 2 * self.fold, :-1]
        out[:, 2 * self.fold :] = x[:, 2 * self.fold :]
        return out


class StandardizedConv(nn.Module):
    """A convolution whose kernel is standardised per filter in every forward (BiT, NFNet)."""

    mixes_channels = True

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, w, self.conv.bias, padding=1)


class SlimmableConv(nn.Module):
    """A convolution that uses the first filters of a larger kernel."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out + 2, channels, 1, 1))
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[: self.out])


class StackedExperts(nn.Module):
    """Two convolutions mixed by weights that a pooled vector chooses: stack, softmax, weighted sum."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(channels, out, 1) for _ in range(2))
        self.router = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.router(x.mean((2, 3))), dim=-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (outputs * weights[:, :, None, None, None]).sum(1)


class SelectiveKernel(nn.Module):
    """SKNet: two branches, attention between them per channel (softmax over the branches, not over channels)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)])
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.ModuleList(nn.Linear(hidden, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([branch(x) for branch in self.branches])
        squeezed = torch.relu(self.squeeze(maps.sum(0).mean((2, 3))))
        weights = torch.softmax(torch.stack([layer(squeezed) for layer in self.excite]), dim=0)
        return (maps * weights[..., None, None]).sum(0)


class SplitAttention(nn.Module):
    """ResNeSt's radix: one convolution of twice the width viewed as two halves that are summed and gated."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * out, 3, padding=1)
        self.gate = nn.Linear(out, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        halves = self.conv(x).view(batch, 2, -1, height, width)
        gates = torch.softmax(self.gate(halves.sum(1).mean((2, 3))).view(batch, 2, -1), dim=1)
        result: Tensor = (halves * gates[..., None, None]).sum(1)
        return result


class Unfolded(nn.Module):
    """A 3x3 convolution spelled as `unfold` and a matrix product."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(9 * channels, out)

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(x, 3, padding=1).transpose(1, 2)
        mixed: Tensor = self.linear(columns)
        return mixed.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


class EinsumLinear(nn.Module):
    """A linear layer over channels as an einsum with a bare parameter."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.einsum("bchw,oc->bohw", x, self.weight)
        return result


class UnitLength(nn.Module):
    """Each position's channels divided by their Euclidean length."""

    mixes_channels = True

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1, eps=1e-6)


class ResponseNorm(nn.Module):
    """AlexNet's normalisation over neighbouring channels."""

    mixes_channels = True

    def forward(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, 3)


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2: each channel's length over space relative to the mean of all channels' lengths."""

    mixes_channels = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.empty(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        result: Tensor = self.gamma * (x * (length / (length.mean(1, keepdim=True) + 1e-6))) + self.beta + x
        return result


class CrossCovariance(nn.Module):
    """XCiT: attention between the columns of a head, softmax over columns."""

    mixes_channels = True

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = torch.softmax((q @ k.transpose(-2, -1)) * self.temperature, dim=-1)
        mixed: Tensor = self.proj((weights @ v).permute(0, 3, 1, 2).reshape(batch, tokens, -1))
        return mixed


class LinearAttention(nn.Module):
    """Keys and values are multiplied first: [d, d] per head."""

    mixes_channels = True

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q, self.k, self.v = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (f(x).view(batch, tokens, self.heads, self.head_dim) for f in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = torch.einsum("bthd,bthe->bhde", k, v)
        mixed = torch.einsum("bthd,bhde->bthe", q, state) / torch.einsum("bthd,bhd->bth", q, k.sum(1)).unsqueeze(-1)
        result: Tensor = self.proj(mixed.reshape(batch, tokens, -1))
        return result


class RotaryAttention(nn.Module):
    """Rotary positions (halves of every head rotated against each other), norms on queries and keys."""

    mixes_channels = True

    def __init__(self, width: int, heads: int, head_dim: int, normalize: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, 2 * head_dim
        self.qkv = nn.Linear(width, 3 * heads * self.head_dim, bias=False)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-6) if normalize else None
        self.proj = nn.Linear(heads * self.head_dim, width, bias=False)
        self.register_buffer("frequency", torch.ones(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.view(batch, tokens, self.heads, self.head_dim).transpose(1, 2) for t in (q, k, v))
        if self.norm is not None:
            q, k = self.norm(q), self.norm(k)
        angle = torch.arange(tokens, dtype=x.dtype)[:, None] * self.get_buffer("frequency")
        cos, sin = (torch.cat([part, part], dim=-1) for part in (angle.cos(), angle.sin()))
        q, k = (t * cos + self.rotate(t) * sin for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return result

    def rotate(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=-1)
        return torch.cat([-two, one], dim=-1)


class BiasedAttention(nn.Module):
    """Swin's table of biases per head, looked up by relative position, and a scale per head."""

    def __init__(self, width: int, heads: int, head_dim: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)
        self.table = nn.Parameter(torch.empty(2 * tokens - 1, heads))
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))
        place = torch.arange(tokens)
        self.register_buffer("index", place[:, None] - place[None, :] + tokens - 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.get_buffer("index").flatten()].view(tokens, tokens, -1).permute(2, 0, 1)
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.scale + bias, dim=-1)
        result: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))
        return result


class TalkingHeads(nn.Module):
    """CaiT: a linear layer across heads before and after the softmax."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1))
        weights = self.after(torch.softmax(scores, dim=2)).permute(0, 3, 1, 2)
        result: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))
        return result


class MultiQueryAttention(nn.Module):
    """Many query heads, one key and value head that is expanded."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q = nn.Linear(width, heads * head_dim)
        self.kv = nn.Linear(width, 2 * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k, v = (t.unsqueeze(1).expand(-1, self.heads, -1, -1) for t in self.kv(x).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return result


class CrossAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence over another of a different width."""

    def __init__(self, width: int, other: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True, kdim=other, vdim=other)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mixed: Tensor = self.attention(x, y, y)[0]
        return x + mixed


class TokenMixing(nn.Module):
    """MLP-Mixer: a small network over the tokens of each channel."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(tokens, hidden), nn.Linear(hidden, tokens)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.down(F.gelu(self.up(x.transpose(1, 2))))
        return x + mixed.transpose(1, 2)


class SpatialGatingUnit(nn.Module):
    """gMLP: half of the channels, mixed over tokens, gate the other half."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.proj = nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        mixed: Tensor = self.proj(v.transpose(1, 2))
        return u * mixed.transpose(1, 2)


class ConvRecurrent(nn.Module):
    """ConvLSTM over the rows of a map: four gates from one convolution, three steps."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(channels + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.hidden, *x.shape[2:])
        cell = torch.zeros_like(state)
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat([x, state], dim=1)).chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
        return state


class CellLoop(nn.Module):
    """`nn.GRUCell` or `nn.LSTMCell` stepped over the tokens."""

    def __init__(self, kind: str, width: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, hidden) if kind == "lstm" else nn.GRUCell(width, hidden)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.hidden)
        memory = torch.zeros_like(state)
        states = []
        for token in x.unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(token, (state, memory))
            else:
                state = self.cell(token, state)
            states.append(state)
        return torch.stack(states, dim=1)


class DynamicFilter(nn.Module):
    """A gate per channel and position made from the input itself: two factors multiplied by broadcasting."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rows = nn.Conv1d(channels, channels, 1)
        self.columns = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.rows(x.mean(3)), self.columns(x.mean(2))
        return x * torch.sigmoid(rows[:, :, :, None] + columns[:, :, None, :])


class BilinearFusion(nn.Module):
    """`nn.Bilinear` of a vector with itself."""

    mixes_channels = True

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(width, width, out)

    def forward(self, x: Tensor) -> Tensor:
        fused: Tensor = self.bilinear(x, x)
        return fused


class GramMatrix(nn.Module):
    """Products of all pairs of channels, flattened: both axes of the result are the same channels."""

    mixes_channels = True

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return torch.flatten(flat @ flat.transpose(1, 2) / flat.shape[2], 1)


class Repeated(nn.Module):
    """Channels repeated: each one in turn, or the whole row once more."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 2, 1, 1) if self.whole else x.repeat_interleave(2, dim=1)


class Interleaved(nn.Module):
    """Two results stacked behind the channel axis and flattened into it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(x), self.two(x)], dim=2).flatten(1, 2)


class GroupSum(nn.Module):
    """Channels viewed as groups that are added: [B, g * C, H, W] -> [B, C, H, W]."""

    mixes_channels = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, count, height, width = x.shape
        return x.view(batch, self.groups, count // self.groups, height, width).sum(1)


class Masked(nn.Module):
    """`where`, `masked_fill` and `clamp` with a mask computed from the features."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x).masked_fill(x > 2, 2.0).clamp(-1, 2)


class ChannelOrder(nn.Module):
    """Sort, cumulative sum or the largest k over channels: what each index means depends on all others."""

    mixes_channels = True

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind, self.keep = kind, max(1, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "cumsum":
            return x.cumsum(1)
        return x.sort(1).values if self.kind == "sort" else x.topk(self.keep, dim=1).values


class ChannelsAsHeight(nn.Module):
    """Channels and rows swapped, convolved, and swapped back."""

    mixes_channels = True

    def __init__(self, height: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(height, height, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.conv(x.transpose(1, 2))
        return mixed.transpose(1, 2)


class DoubledBatch(nn.Module):
    """Rows of the map as a batch: [B, C, H, W] -> [B * H, C, W], a 1-d convolution, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, height, width = x.shape
        rows = x.permute(0, 2, 1, 3).reshape(batch * height, count, width)
        mixed: Tensor = self.conv(rows)
        return mixed.view(batch, height, -1, width).permute(0, 2, 1, 3)
