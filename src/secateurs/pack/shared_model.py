"""`share_weights`: a model whose weights are looked up in codebooks, so that training trains the codebooks.

Han, Mao, Dally: Deep Compression, 2016 (arXiv 1510.00149): assignments stay, `dL/dc_k` is the sum of `dL/dW` over the
weights with code k.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateurs.base.batches import derive
from secateurs.base.errors import InputError, explain
from secateurs.pack.chosen import Bits, chosen, dtype_name, of_names, weights, with_coded
from secateurs.pack.coded import Coded, Codes, Shared
from secateurs.pack.moments import moments_for
from secateurs.pack.sharing import share

KERNELS, MATRICES = 8, 5
"""Bits of shared weights in convolutions and in linear layers, in the paper's own networks."""


def share_weights(
    model: nn.Module,
    bits: Bits | None = None,
    *,
    start: str = "linear",
    importance: Mapping[str, Tensor] | None = None,
    moments: Mapping[str, Tensor] | None = None,
    data: Iterable[Any] | None = None,
    batches: int | None = None,
    codebook: str = "float32",
    seed: int = 0,
) -> SharedModel:
    """The model with the non-zero entries of each weight matrix and kernel clustered to `2^bits` numbers of its own.

    `bits`: one number, or globs over parameter names and module paths or classes of modules (`{"conv*": 8, nn.Linear:
    5}`; the first match counts, None or no match leaves the tensor alone). Without, 8 for the kernels of convolutions
    and 5 for matrices, as in Deep Compression. `start` of the k-means: `"linear"` (Deep Compression's best),
    `"density"`, `"random"`, `"cube_root"` or `"optimal"`; `importance`, by parameter name, says how much an error in
    each weight counts, such as from `fisher_importance`.

    `data`, batches of inputs or `(inputs, target)`, of which the first `batches` are used, brings error feedback: codes
    are chosen one input after the other so that the layer's outputs change least on such inputs. `moments`, from
    `input_moments`, is the same, computed before. `codebook="float16"` or `"bfloat16"` halves the bytes of the
    codebooks, in training too.

    What comes back runs as the model does and trains as any module does, by `finetune` or by a loop of your own; its
    parameters are the codebooks and whatever is not shared. `sec.pack` stores its codes. The model is not changed.

    Raises `InputError`, `UnknownNameError`, and what `capture` raises.
    """
    coded = coded_shared(model, bits, start, importance, moments, data, batches, codebook, seed)
    return SharedModel(model, coded, codebook)


def coded_shared(
    model: nn.Module,
    bits: Bits | None = None,
    start: str = "linear",
    importance: Mapping[str, Tensor] | None = None,
    moments: Mapping[str, Tensor] | None = None,
    data: Iterable[Any] | None = None,
    batches: int | None = None,
    codebook: str = "float32",
    seed: int = 0,
) -> dict[str, Coded]:
    """The codes that `share_weights` gives, without the model that trains them."""
    wanted = chosen(model, default_bits(model) if bits is None else bits)
    matter = of_names(importance, wanted)
    grams = moments_for(model, moments, data, batches, seed)
    return {
        name: share(model.get_parameter(name), number, start=start, importance=matter.get(name),
                    gram=grams.get(name), codebook=codebook, seed=derive(seed, "share", name))
        for name, number in wanted.items()
    }  # fmt: skip


def default_bits(model: nn.Module) -> Bits:
    """Deep Compression's: `KERNELS` for each kernel, `MATRICES` for each matrix, by parameter name."""
    return {name: KERNELS if item.dim() > 2 else MATRICES for name, item in weights(model).items()}


class SharedModel(nn.Module):
    """A copy of `model` that looks the tensors in `coded` (`{parameter name: Coded with Shared}`) up in codebooks.

    Training moves the codebooks: assignments stay, and `dL/dc_k` is the sum of `dL/dW` over the weights with code k.
    `codebook`: the type that their numbers are rounded to, on every use; gradients pass through the rounding.
    `plain()` gives the model back in its own class, with its own names and dense weights; `coded()` gives the codes.
    """

    looks_weights_up = True
    """What the wrapped model holds is not what runs: nothing may be masked there."""

    def __init__(self, model: nn.Module, coded: Mapping[str, Coded], codebook: str = "float32") -> None:
        super().__init__()
        self._kind: torch.dtype = getattr(torch, codebook)
        self._model = with_coded(model, coded)
        self._names = list(coded)
        self._kept: list[np.ndarray[Any, np.dtype[np.bool_]] | None] = []
        self._trained = [model.get_parameter(name).requires_grad for name in self._names]
        self.codebooks = nn.ParameterList()
        for index, (name, tensor) in enumerate(coded.items()):
            if not isinstance(tensor.content, Shared):
                raise InputError(explain("A tensor does not share weights", where=f"`{name}`"))
            weight = self._model.get_parameter(name).requires_grad_(False)
            where = np.zeros(tensor.shape, np.int32)  # 0: the zero that no codebook holds
            where[... if tensor.kept is None else tensor.kept] = _as(tensor.content.codes.astype(np.int32) + 1, tensor)
            self.register_buffer(f"codes_{index}", torch.from_numpy(where).to(weight.device))
            numbers = torch.from_numpy(tensor.content.codebook.copy()).to(weight.device)
            self.codebooks.append(nn.Parameter(numbers, requires_grad=self._trained[index]))
            self._kept.append(tensor.kept)
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model."""
        return functional_call(self._model, self._weights(), args, kwargs, tie_weights=True)

    def plain(self) -> nn.Module:
        """A copy of the model, in its own class and under its own names, with the weights as they stand."""
        fresh = with_coded(self._model, self.coded())
        for name, trained in zip(self._names, self._trained, strict=True):
            fresh.get_parameter(name).requires_grad_(trained)
        return fresh

    def coded(self) -> dict[str, Coded]:
        """The shared tensors as they stand, by parameter name."""
        found: dict[str, Coded] = {}
        for index, (name, kept) in enumerate(zip(self._names, self._kept, strict=True)):
            where: Tensor = getattr(self, f"codes_{index}")
            codes = where.cpu().numpy() - 1
            codebook = self._rounded(self.codebooks[index]).detach().cpu().float().numpy() + np.float32(0)
            content = Shared(codes.reshape(-1) if kept is None else codes[kept], codebook)
            found[name] = Coded(codes.shape, content, kept, dtype_name(self._model.get_parameter(name)))
        return found

    def _rounded(self, codebook: Tensor) -> Tensor:
        return codebook + (codebook.to(self._kind).to(codebook.dtype) - codebook).detach()

    def _weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for index, (name, codebook) in enumerate(zip(self._names, self.codebooks, strict=True)):
            where: Tensor = getattr(self, f"codes_{index}")
            numbers = torch.cat([codebook.new_zeros(1), self._rounded(codebook)])
            weight = numbers.index_select(0, where.flatten()).view(where.shape)
            found[name] = weight.to(self._model.get_parameter(name).dtype)
        return found


def _as(codes: Codes, tensor: Coded) -> Codes:
    return codes.reshape(tensor.shape) if tensor.kept is None else codes


__all__ = ["SharedModel", "coded_shared", "default_bits", "share_weights"]
