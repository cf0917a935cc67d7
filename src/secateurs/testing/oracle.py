"""An independent answer to "what should the cut model compute?": the original whose consumers ignore what was removed.

Nothing here reads groups, ids or graphs. From `Plan.removed` and the *types* of the layers it makes a copy of the
original in which every matrix, kernel and recurrent weight is zero at the removed indices of the axis that it reads
from, every normalisation and reduction over channels takes only the kept ones, and queries and keys are zero where
they were removed. The copy keeps all shapes; its output is what the cut model must return.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.testing import layers, unusual

Removed = Mapping[str, Mapping[int, tuple[int, ...]]]


class Unanswerable(Exception):
    """The oracle cannot know which channels reach a layer, because no leaf of that layer has an axis of channels."""


def masked_original(model: nn.Module, removed: Removed, *, scramble: int | None = None) -> nn.Module:
    """A copy of `model` in double precision that ignores the indices in `removed` (any name of a tied leaf will do).

    With `scramble`, a seed, whatever the copy holds at removed indices and still computes with is random: if what was
    removed is truly dead, its output does not change.

    Raises `Unanswerable` for a network with a reduction over channels that has no probe.
    """
    computed = {id(t): t.detach().clone() for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)}
    masked: nn.Module = copy.deepcopy(model, computed).double().eval()
    if scramble is not None:
        _scramble(masked, removed, torch.Generator().manual_seed(scramble))
    by_tensor = {id(masked_leaf(masked, name)): dims for name, dims in removed.items()}

    def gone(tensor: Tensor | None, dim: int) -> list[int]:
        return list(by_tensor.get(id(tensor), {}).get(dim, ())) if tensor is not None else []

    for path, module in list(masked.named_modules()):
        _replace_statistics(masked, path, module, gone)
    with torch.no_grad():
        for module in masked.modules():
            _ignore(module, gone)
    return masked


def _scramble(model: nn.Module, removed: Removed, generator: torch.Generator) -> None:
    """Uniform numbers in [0.5, 1.5] (variances stay positive) at every removed index."""
    with torch.no_grad():
        for name, dims in removed.items():
            leaf = masked_leaf(model, name)
            noise = torch.rand(leaf.shape, generator=generator, dtype=leaf.dtype) + 0.5
            for dim, indices in dims.items():
                places = torch.tensor(indices, dtype=torch.long)
                leaf.index_copy_(dim, places, noise.index_select(dim, places))


def masked_leaf(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer called `name`."""
    owner, _, last = name.rpartition(".")
    leaf = getattr(model.get_submodule(owner), last)
    assert isinstance(leaf, Tensor)
    return leaf


Gone = Callable[[Tensor | None, int], list[int]]


def _ignore(module: nn.Module, gone: Gone) -> None:
    """Zeroes the module's own weights where they read removed channels."""

    def blank(tensor: Tensor | None, dim: int) -> None:
        if tensor is not None:
            tensor.index_fill_(dim, torch.tensor(gone(tensor, dim), dtype=torch.long), 0)

    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        blank(module.weight, 0)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
        blank(module.weight, 1)
    elif isinstance(module, nn.Bilinear):
        blank(module.weight, 1)
        blank(module.weight, 2)
    elif isinstance(module, layers.BareConv):
        blank(module.kernel, 1)
    elif isinstance(module, (unusual.EinsumLinear, unusual.SlimmableConv)):
        blank(module.weight, 1)
    elif isinstance(module, (nn.LSTM, nn.GRU)):
        for name, weight in module.named_parameters():
            if name.startswith("weight"):
                blank(weight, 1)
    elif isinstance(module, (nn.LSTMCell, nn.GRUCell)):
        blank(module.weight_ih, 1)
        blank(module.weight_hh, 1)
    elif isinstance(module, nn.MultiheadAttention):
        for weight in (module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight):
            blank(weight, 1)
            blank(weight, 0)
        blank(module.in_proj_bias, 0)
    producers: tuple[nn.Module, ...] = ()
    if isinstance(module, (layers.FusedAttention, unusual.BiasedAttention, unusual.TalkingHeads)):
        producers = (module.qkv,)
    elif isinstance(module, unusual.MultiQueryAttention):
        producers = (module.q, module.kv)
    elif isinstance(module, layers.GroupedQueryAttention):
        producers = (module.q, module.k, module.v)
    elif isinstance(module, layers.NonLocal):
        producers = (module.query, module.key)
    for producer in producers:
        for tensor in producer.parameters(recurse=False):
            blank(tensor, 0)


def _replace_statistics(root: nn.Module, path: str, module: nn.Module, gone: Gone) -> None:
    """Swaps a layer that mixes channels without a weight for one that looks at the kept channels only."""
    new: nn.Module | None = None
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):
        assert module.weight is not None
        new = _KeptNorm(module, _kept(module.weight, gone(module.weight, 0)))
    if getattr(module, "mixes_channels", False):
        raise Unanswerable(f"{type(module).__name__} at {path!r} mixes channels without a weight")
    for kind, replacement in _PROBED.items():
        if isinstance(module, kind):
            probe = getattr(module, "probe", None)
            if probe is None:
                raise Unanswerable(f"{type(module).__name__} at {path!r} has no probe")
            new = replacement(module, _kept(probe, gone(probe, 0)))
    if new is not None:
        owner, _, last = path.rpartition(".")
        setattr(root.get_submodule(owner), last, new)


def _kept(tensor: Any, gone: list[int]) -> Tensor:
    return torch.tensor([i for i in range(tensor.shape[0]) if i not in set(gone)])


class _Kept(nn.Module):
    def __init__(self, inner: Any, kept: Tensor) -> None:
        super().__init__()
        self.inner, self.kept = inner, kept


class _KeptNorm(_Kept):
    """Layer, RMS or group norm whose statistics are taken over the kept channels; written out from its definition."""

    def __init__(self, inner: Any, kept: Tensor) -> None:
        super().__init__(inner, kept)
        self.eps, self.weight, self.bias = inner.eps, inner.weight, getattr(inner, "bias", None)  # read by their owners

    def forward(self, x: Tensor) -> Tensor:
        norm = self.inner
        if isinstance(norm, nn.GroupNorm):
            return self.grouped(x)
        seen = x[..., self.kept]
        centre = seen.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else torch.zeros_like(seen[..., :1])
        spread = ((seen - centre) ** 2).mean(-1, keepdim=True)
        eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
        y = (x - centre) / torch.sqrt(spread + eps) * norm.weight
        result: Tensor = y + norm.bias if isinstance(norm, nn.LayerNorm) else y
        return result

    def grouped(self, x: Tensor) -> Tensor:
        norm = self.inner
        y = torch.zeros_like(x)
        width = norm.num_channels // norm.num_groups
        for group in range(norm.num_groups):
            mine = [i for i in self.kept.tolist() if i // width == group]
            if mine:
                seen = x[:, mine].flatten(1)
                shape = (-1, *[1] * (x.dim() - 1))
                centre = seen.mean(1).view(shape)
                spread = ((seen - seen.mean(1, keepdim=True)) ** 2).mean(1).view(shape)
                y[:, mine] = (x[:, mine] - centre) / torch.sqrt(spread + norm.eps)
        per_channel = (-1, *[1] * (x.dim() - 2))
        result: Tensor = y * norm.weight.view(per_channel) + norm.bias.view(per_channel)
        return result


class _KeptReduction(_Kept):
    def forward(self, x: Tensor) -> Tensor:
        total = (x * self.inner.probe)[:, self.kept].sum(1, keepdim=True)
        result: Tensor = total / len(self.kept) if self.inner.kind == "mean" else total
        return result


class _KeptPooledGate(_Kept):
    def forward(self, x: Tensor) -> Tensor:
        seen = (x * self.inner.probe)[:, self.kept]
        pooled = torch.stack([seen.mean(1), seen.max(1).values], dim=1)
        return x * torch.sigmoid(self.inner.conv(pooled))


class _KeptNeighbourGate(_Kept):
    """Neighbours are the nearest kept channels; gates of removed channels are arbitrary."""

    def forward(self, x: Tensor) -> Tensor:
        means = (x.mean((2, 3)) * self.inner.probe)[:, self.kept]
        gates = torch.ones_like(x[:, :, 0, 0])
        gates[:, self.kept] = torch.sigmoid(F.conv1d(means[:, None], self.inner.conv.weight, padding=1))[:, 0]
        return x * gates[:, :, None, None]


class _KeptMaxOut(_Kept):
    """The larger of the kept ones of every two channels; 0 where neither is kept."""

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.full_like(x, -torch.inf)
        seen[:, self.kept] = (x * self.inner.probe)[:, self.kept]
        larger = torch.maximum(seen[:, ::2], seen[:, 1::2])
        return torch.where(larger == -torch.inf, 0.0, larger)


_PROBED: dict[type[nn.Module], type[_Kept]] = {
    layers.ProbedReduction: _KeptReduction,
    layers.PooledGate: _KeptPooledGate,
    layers.NeighbourGate: _KeptNeighbourGate,
    layers.MaxOut: _KeptMaxOut,
}
