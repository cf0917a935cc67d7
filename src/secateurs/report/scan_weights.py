"""What a scan looks at when weights become zero: layers, their variants, and the metric of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import Batches, device_of, to_device
from secateurs.base.errors import InputError, TrainError, explain
from secateurs.base.reference import name_of
from secateurs.base.seeds import seeded
from secateurs.capture.copying import copied
from secateurs.capture.graph import Graph
from secateurs.capture.program import Read, check_call
from secateurs.capture.trace import capture
from secateurs.choose.masked import Measure
from secateurs.score.samples import Batch, Samples
from secateurs.sparsity.importance import Importance
from secateurs.sparsity.masks import masks
from secateurs.sparsity.measured import missing_data, needs_data, reads_data
from secateurs.sparsity.pattern import Pattern
from secateurs.sparsity.weights import layer_weights
from secateurs.train.evaluate import checked_metric

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Variant:
    """One layer with less: `what` it loses, and how much of it is `gone` (nested: equal numbers are equal losses)."""

    what: Any
    gone: int


class Subject(ABC):
    """Layers by name with their `sizes`, and how to lessen and judge them."""

    sizes: Mapping[str, int]
    importance: str

    @abstractmethod
    def baseline(self) -> float:
        """The metric of the model as it is."""

    @abstractmethod
    def variants(self, names: Sequence[str], fraction: float) -> dict[str, Variant]:
        """Each of these layers without this fraction."""

    @abstractmethod
    def values(self, variants: Mapping[str, Variant]) -> Iterator[tuple[str, float]]:
        """The metric of each, one layer changed at a time, in any order."""


class _Weights(Subject):
    """Weights that lose groups of a pattern; variants are masks."""

    def __init__(
        self,
        model: nn.Module,
        pattern: Pattern,
        importance: str | Importance | None,
        exclude: Sequence[str | type],
        only: Iterable[str | type] | None,
        **looks: Any,
    ) -> None:
        """`looks`: what `masks` takes for importances that look at data, and for chance."""
        self.model, self.pattern = model, pattern
        self._measure = importance or pattern.importance
        self._looks = {**looks, "data": looks.get("data") if reads_data(self._measure) else None}
        if needs_data(self._measure) and "data" not in looks:
            raise missing_data(self._measure)
        self.importance = importance_name(self._measure)
        found = layer_weights(model, exclude=exclude, only=only)
        self.sizes = {name: item.tensor.numel() for name, item in found.items()}

    def variants(self, names: Sequence[str], fraction: float) -> dict[str, Variant]:
        if not names:
            return {}
        found = masks(
            self.model, dict.fromkeys(names, fraction), pattern=self.pattern, importance=self._measure,
            only=list(names), **self._looks,
        )  # fmt: skip
        return {name: Variant(mask, int((~mask).sum())) for name, mask in found.items()}


class ByEvaluation(_Weights):
    """The metric is `evaluate` of a fresh copy for every variant, whatever it does to that copy."""

    def __init__(
        self,
        model: nn.Module,
        pattern: Pattern,
        importance: str | Importance | None,
        exclude: Sequence[str | type],
        only: Iterable[str | type] | None,
        evaluate: Evaluate,
    ) -> None:
        super().__init__(model, pattern, importance, exclude, only)
        self.evaluate = evaluate

    def baseline(self) -> float:
        return checked_metric(self.evaluate, copied(self.model, {}), "the model as it is")

    def values(self, variants: Mapping[str, Variant]) -> Iterator[tuple[str, float]]:
        for name, variant in variants.items():
            fresh = copied(self.model, {})
            weight = fresh.get_parameter(name)
            with torch.no_grad():
                weight.copy_(torch.where(variant.what, weight, torch.zeros_like(weight)))
            yield name, checked_metric(self.evaluate, fresh, f"`{name}` with {variant.gone:,} weights less")


class ByData(_Weights):
    """The metric is the mean of `measure` over data; all variants share the run up to the layer that they change."""

    def __init__(
        self,
        model: nn.Module,
        pattern: Pattern,
        importance: str | Importance | None,
        exclude: Sequence[str | type],
        only: Iterable[str | type] | None,
        data: Iterable[Any],
        measure: Measure,
        batches: int | None,
        seed: int,
    ) -> None:
        super().__init__(model, pattern, importance, exclude, only, data=data, batches=batches, seed=seed)
        self.graph = captured(model, data, seed)
        self.samples = Samples(model, self.graph, data, limit=batches, seed=seed)
        self.measure, self.seed = measure, seed

    def baseline(self) -> float:
        def whole(batch: Batch) -> float:
            return self.measure(batch.program.output(batch.program.run(batch.begin())), batch.target)

        with seeded(self.seed), torch.no_grad():
            found = [(whole(batch), batch.size) for batch in self.samples]
        return finite(sum(hit for hit, _ in found) / sum(size for _, size in found), "the model as it is")

    def values(self, variants: Mapping[str, Variant]) -> Iterator[tuple[str, float]]:
        reads = {name: self._reads(name, variant.what) for name, variant in variants.items()}
        first = {name: min(here, default=len(self.graph.nodes)) for name, here in reads.items()}
        sums, count = dict.fromkeys(variants, 0.0), 0
        with seeded(self.seed), torch.no_grad():
            for batch in self.samples:
                program, trunk = batch.program, batch.begin()
                for name in sorted(variants, key=first.__getitem__):
                    program.run(trunk, first[name])
                    end = program.run(program.branch(trunk), reads=reads[name])
                    sums[name] += self.measure(program.output(end), batch.target)
                count += batch.size
        for name, total in sums.items():
            yield name, finite(total / count, f"`{name}` with {variants[name].gone:,} weights less")

    def _reads(self, name: str, mask: Tensor) -> dict[int, Read]:
        """What to put in place of the weight, by the nodes that read it. A weight that nothing reads has none."""
        places = [leaf.value for leaf in self.graph.leaves if name in leaf.names]

        def masked(value: int, tensor: Tensor) -> Tensor:
            return torch.where(mask, tensor, torch.zeros_like(tensor)) if value in places else tensor

        return {node.index: masked for node in self.graph.nodes if not set(places).isdisjoint(node.inputs)}


def captured(model: nn.Module, data: Iterable[Any], seed: int) -> Graph:
    """The graph of the model on the first batch. Raises `InputError` when there is none."""
    try:
        batches = Batches(data, limit=1, seed=seed)
    except TrainError as error:
        raise InputError(str(error)) from error
    try:
        with seeded(seed):
            raw = to_device(next(iter(batches.epoch(0))), device_of(model))
    finally:
        batches.close()
    if not (isinstance(raw, (list, tuple)) and len(raw) == 2):
        raise InputError(
            explain("The data has no targets", where="batch 0", next_step="yield batches (inputs, target)")
        )
    args, kwargs = check_call(model, raw[0])
    return capture(model, args, kwargs=kwargs)


def importance_name(importance: Any) -> str:
    """The name that it is registered under, or that of the function."""
    return importance if isinstance(importance, str) else name_of(importance) or "a measure of one's own"


def finite(value: float, where: str) -> float:
    """The value. Raises `TrainError` when it is not a finite number."""
    return checked_metric(lambda _: value, nn.Identity(), where)


__all__ = ["ByData", "ByEvaluation", "Evaluate", "Subject", "Variant", "captured", "finite", "importance_name"]
