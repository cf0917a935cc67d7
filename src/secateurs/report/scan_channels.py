"""What a scan looks at when channels are silenced: groups of coupled channels, and the metric without some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.seeds import seeded
from secateurs.choose.masked import Measure
from secateurs.couple import couple
from secateurs.report.scan_weights import Subject, Variant, captured, finite, importance_name
from secateurs.score.criterion import Batch, Context
from secateurs.score.masking import masked_means
from secateurs.score.samples import Samples
from secateurs.score.score import score, tensors_of
from secateurs.sparsity.select import removed


class ByChannels(Subject):
    """Groups of coupled channels; variants are the units of lowest score, silenced where the channels are read."""

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        measure: Measure,
        batches: int | None,
        importance: Any,
        exclude: Sequence[str | type],
        only: Iterable[str | type] | None,
        seed: int,
    ) -> None:
        self.importance = importance_name(importance or "l1")
        self.measure, self.seed = measure, seed
        graph = captured(model, data, seed)
        groups = couple(graph, exclude=exclude)
        scores = score(groups, model, importance or "l1", data=data, batches=batches, seed=seed)
        names = _chosen(list(scores), only)
        self.order = {name: scores[name].argsort(stable=True).tolist() for name in names}
        self.sizes = {name: len(order) for name, order in self.order.items()}
        samples = Samples(model, graph, data, limit=batches, seed=seed)
        self.context = Context(
            groups, model, tensors_of(groups, model), torch.Generator().manual_seed(seed), samples, seed
        )

    def baseline(self) -> float:
        return self._means([])[0]

    def variants(self, names: Sequence[str], fraction: float) -> dict[str, Variant]:
        counts = {name: removed(fraction, self.sizes[name]) for name in names}
        return {name: Variant(self.order[name][:count], count) for name, count in counts.items()}

    def values(self, variants: Mapping[str, Variant]) -> Iterator[tuple[str, float]]:
        _, found = self._means([{name: variant.what} for name, variant in variants.items()])
        yield from zip(variants, found, strict=True)

    def _means(self, variants: list[dict[str, list[int]]]) -> tuple[float, list[float]]:
        def mean(batch: Batch, output: Any) -> Tensor:
            return torch.tensor(self.measure(output, batch.target) / batch.size, dtype=torch.float64)

        with seeded(self.seed):
            baseline, found = masked_means(self.context, variants, mean)
        return finite(baseline, "the model as it is"), [finite(float(item), "channels silenced") for item in found]


def _chosen(names: list[str], only: Iterable[str | type] | None) -> list[str]:
    """The groups that a glob matches, all without one. Raises `InputError` when none is left."""
    globs = None if only is None else [str(item) for item in only]
    for glob in globs or ():
        if not any(fnmatchcase(name, glob) for name in names):
            close = nearest(glob, names)
            raise UnknownNameError(
                explain(
                    f"{glob!r} matches no group of channels",
                    evidence=f"there are {', '.join(names[:6])}",
                    next_step=f"did you mean {' or '.join(map(repr, close))}?" if close else "",
                )
            )
    found = [name for name in names if globs is None or any(fnmatchcase(name, glob) for glob in globs)]
    if not found:
        raise InputError(
            explain("There are no channels that may go", next_step="see `secateurs inspect` for what holds them")
        )
    return found


__all__ = ["ByChannels"]
