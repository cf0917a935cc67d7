"""`mixed_bits`: a file of at most so many bytes, and bits where they matter most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor, nn

from secateurs.base.errors import BudgetError, InputError, explain
from secateurs.base.loss import Loss
from secateurs.cut.form import GraphModule
from secateurs.deliver.state import Contents, contents
from secateurs.pack.allocate import allocate
from secateurs.pack.coded import Coded
from secateurs.pack.container import is_small, to_bytes
from secateurs.pack.encode import encode
from secateurs.pack.importance import fisher_importance
from secateurs.pack.integers import quantise
from secateurs.pack.mixed import Error, Make, candidates, every_way, file_bytes, weight_error
from secateurs.pack.moments import input_moments
from secateurs.pack.quantised import Quantised
from secateurs.pack.sharing import share

KINDS = ("shared", "integers")


def mixed_bits(
    model: nn.Module,
    bytes: int,
    *,
    kind: str = "shared",
    bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    data: Iterable[Any] | None = None,
    loss: str | Loss = "cross_entropy",
    batches: int | None = None,
    error: Error | None = None,
    biases: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Quantised:
    """The weights in as many of `bits` each as pay off, so that `sec.pack` makes a file of at most `bytes` bytes of it.

    Minimises the sum over weights of `importance * (w - w')^2`, a multiple-choice knapsack, solved exactly where it can
    be (`result.allocation.exact`). `kind`: `"shared"` numbers (k-means; Deep Compression) or `"integers"` with a scale
    per channel. `data`, batches `(inputs, target)`, of which the first `batches` are used, gives the importance: the
    empirical Fisher of `loss`, so that the sum is twice the change of the loss to second order; and error feedback
    (GPTQ), which keeps the outputs of layers. Without data every weight counts the same.

    `error(name, coded) -> float`, such as `secateurs.pack.mixed.loss_change(model, loss)`, replaces the sum. `biases`
    and `metadata` as they will be given to `sec.pack`. The model is not changed, nothing is trained.

    Raises `BudgetError`, which states the least, when no choice fits, `InputError`, and what `capture` raises.
    """
    beside = Beside(biases, metadata)
    return within(
        model, bytes, beside, kind=kind, bits=bits, data=data, loss=loss, batches=batches, error=error, seed=seed
    )


@dataclass(frozen=True)
class Beside:
    """What a file holds beside the weights whose bits are chosen: it counts too.

    `biases` and `metadata` as for `sec.pack`; the `program`; tensors that were `coded` elsewhere.
    """

    biases: int | None = None
    metadata: Mapping[str, Any] | None = None
    program: GraphModule | None = None
    coded: Mapping[str, Coded] = field(default_factory=dict)

    def contents(self, model: nn.Module, choice: Mapping[str, Coded]) -> Contents:
        return contents(model, {**choice, **self.coded}, self.biases, self.program)

    def bytes(self, model: nn.Module, choice: Mapping[str, Coded]) -> int:
        """Bytes of the whole file."""
        whole = self.contents(model, choice)
        return len(to_bytes(whole.tensors, self.metadata, tied=whole.tied, texts=whole.texts))


def within(
    model: nn.Module,
    bytes: int,
    beside: Beside,
    *,
    kind: str = "shared",
    bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    data: Iterable[Any] | None = None,
    loss: str | Loss = "cross_entropy",
    batches: int | None = None,
    error: Error | None = None,
    seed: int = 0,
) -> Quantised:
    """`mixed_bits` for a file that holds more than the model."""
    if isinstance(bytes, bool) or not isinstance(bytes, int | float) or not math.isfinite(bytes):
        raise InputError(
            explain(
                "The size of a file is a number of bytes", evidence=f"got {bytes!r}", next_step="write bytes=40_000"
            )
        )
    if kind not in KINDS:
        raise InputError(explain(f"There are no codes of kind {kind!r}", evidence=f"there are {', '.join(KINDS)}"))
    batched = None if data is None else list(islice(data, batches))
    importance = None if batched is None else fisher_importance(model, batched, loss=loss, seed=seed)
    moments = {} if batched is None else input_moments(model, batched, seed=seed)
    ways = every_way(model, _maker(kind, importance or {}, moments, seed), bits)
    ways = {name: each for name, each in ways.items() if name not in beside.coded}
    listed = candidates(ways, error or weight_error(model, importance))

    least = {name: ways[name][min(each, key=lambda item: item.bytes).bits] for name, each in listed.items()}
    whole = beside.bytes(model, least)
    others, saved = _others(whole, least, is_small(beside.contents(model, least).tensors))
    while True:
        try:
            allocation = allocate(listed, int(bytes) - others + saved)
        except BudgetError as refusal:
            raise BudgetError(
                explain(
                    f"A file of {bytes:,} bytes is too small for this model",
                    evidence=f"the smallest codes make one of {whole:,}",
                    next_step="give more bytes, or allow fewer bits",
                )
            ) from refusal
        coded = {name: ways[name][number] for name, number in allocation.bits.items()}
        over = beside.bytes(model, coded) - int(bytes)
        if over <= 0:
            return Quantised.of(model, coded, allocation)
        saved -= over  # slow encodings of the index save less beside these codes


def _maker(kind: str, importance: Mapping[str, Tensor], moments: Mapping[str, Tensor], seed: int) -> Make:
    def shared(name: str, tensor: Tensor, number: int) -> Coded:
        matter, gram = importance.get(name), moments.get(name)
        return share(tensor, number, start="cube_root", importance=matter, gram=gram, seed=seed)

    def integers(name: str, tensor: Tensor, number: int) -> Coded:
        return quantise(tensor, number, importance=importance.get(name), gram=moments.get(name))

    return shared if kind == "shared" else integers


def _others(whole: int, coded: Mapping[str, Coded], thorough: bool) -> tuple[int, int]:
    """Bytes of the file for everything but the coded weights, and by how much these take fewer than was reckoned."""
    reckoned = sum(map(file_bytes, coded.values()))
    exact = sum(encode(item, thorough=thorough).bytes for item in coded.values())
    return whole - exact, reckoned - exact


__all__ = ["Beside", "mixed_bits", "within"]
