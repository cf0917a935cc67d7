"""`effective_macs`: what a network with zeros costs where multiplications by a zero weight are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import rows, share
from secateurs.base.errors import SecateursError
from secateurs.base.seeds import seeded
from secateurs.capture.fold import writes
from secateurs.capture.graph import Graph, Node
from secateurs.capture.program import check_call, follows_inputs
from secateurs.capture.run import call
from secateurs.capture.trace import capture
from secateurs.cost.terms import Term, terms


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates: `dense` by shape, `effective` without those by a weight that is zero."""

    dense: int = 0
    effective: int = 0

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.dense + other.dense, self.effective + other.effective)

    @property
    def speed_up(self) -> float:
        """How many times fewer there are, `dense / effective`: a bound, of a machine that skips every zero at no price.

        1 where there are none at all, infinite where all weights are zero.
        """
        return self.dense / self.effective if self.effective else float("inf") if self.dense else 1.0

    def to_json(self) -> dict[str, float | None]:
        return {"dense": self.dense, "effective": self.effective, "speed_up": self.speed_up if self.effective else None}


@dataclass(frozen=True)
class EffectiveMacs:
    """MACs of one run: in total, by module path in the order in which they run, and by parameter that multiplies.

    A tied parameter stands in `weights` under each of its names, with what it does in all places together. Weights that
    are computed before they multiply (from `weight_orig` and a mask, by `parametrize`) count in `modules` alone.
    """

    total: Macs
    modules: Mapping[str, Macs] = field(default_factory=dict)
    weights: Mapping[str, Macs] = field(default_factory=dict)


def effective_macs(model: nn.Module, example_inputs: Any, *, kwargs: Mapping[str, Any] | None = None) -> EffectiveMacs:
    """MACs of one run of `model` on inputs like `example_inputs`, with and without those by zero weights.

    Exact: of a convolution (grouped, transposed too), a linear or recurrent layer, or a product with something that no
    input reaches, every weight does equally many multiplications, so that those of each call are its MACs times the
    share of weights that are not zero. Multiplications of padding count, as they do by shape, and so do zeros among
    activations; products of two activations, as in attention, have no weights. The model is not changed.

    Raises what `capture` raises.
    """
    return effective_of(capture(model, example_inputs, kwargs=kwargs), model)


def effective_of(graph: Graph, model: nn.Module) -> EffectiveMacs:
    """The same of a captured graph, with the weights that `model` has now: the one captured, or a copy of it."""
    moving = follows_inputs(graph)
    priced: dict[int, list[Term]] = {}
    for term in terms(graph):
        priced.setdefault(term.node, []).append(term)

    def weight_of(term: Term) -> int | None:
        """The one operand that no input reaches; of two such it would be a product of weights, which counts whole."""
        still = [value for value in term.operands if value not in moving]
        return still[0] if len(still) == 1 else None

    wanted = {value for some in priced.values() for term in some if (value := weight_of(term)) is not None}
    names = {leaf.value: leaf.names for leaf in graph.leaves if leaf.kind == "parameter"}
    modules: dict[str, Macs] = {}
    weights: dict[str, Macs] = {}
    for node, read in _walk(graph, model, wanted, moving):
        for term in priced.get(node.index, ()):
            dense = prod(graph.values[value].shape[dim] for value, dim in term.axes) * term.factor
            found = Macs(dense, dense)
            if (value := weight_of(term)) is not None and (weight := read(value)).numel():
                found = Macs(dense, dense * int(torch.count_nonzero(weight)) // weight.numel())
                for name in names.get(value, ()):
                    weights[name] = weights.get(name, Macs()) + found
            modules[node.module] = modules.get(node.module, Macs()) + found
    return EffectiveMacs(sum(modules.values(), Macs()), modules, weights)


def captured_row(model: nn.Module, inputs: Any) -> Graph | None:
    """The graph of the first row of a batch's inputs; None where there is none, as the model cannot be captured."""
    try:
        args, kwargs = check_call(model, share(inputs, 0, rows(inputs)))
        return capture(model, args, kwargs=kwargs)
    except SecateursError:
        return None


def _walk(
    graph: Graph, model: nn.Module, wanted: set[int], moving: frozenset[int]
) -> Iterator[tuple[Node, Callable[[int], Tensor]]]:
    """The nodes in order, each with a way to read the values `wanted` as the node finds them: no input is looked at."""
    running, written = _makers(graph, {graph.values[value].storage for value in wanted}, moving)
    own = {**dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False))}
    leaves = {leaf.value: leaf.name for leaf in graph.leaves}
    values: dict[int, Tensor] = {}

    def known(value: int) -> Tensor:
        if value not in values:
            name = leaves[value]
            tensor = graph.constants[name] if name in graph.constants else own[name].detach()
            values[value] = tensor.clone() if graph.values[value].storage in written else tensor
        return values[value]

    with torch.no_grad(), seeded(0):
        for node in graph.nodes:
            yield node, known
            if node.index in running:
                made = call(node, known)
                values.update({out: item for out, item in zip(node.outputs, made, strict=True) if out is not None})


def _makers(graph: Graph, storages: set[int], moving: frozenset[int]) -> tuple[set[int], set[int]]:
    """The nodes that make what lies in these memories or write there, and the memories that these write to.

    No input reaches these memories, so that a node which reads `moving` values does no more than look at them.
    """
    running: set[int] = set()
    written: set[int] = set()
    needed = set(storages)
    for node in reversed(graph.nodes):
        if moving.intersection(node.inputs):
            continue
        changed = {graph.values[value].storage for value in writes(node)}
        made = {graph.values[out].storage for out in node.outputs if out is not None}
        if (changed | made) & needed:
            running.add(node.index)
            written |= changed
            needed |= {graph.values[value].storage for value in node.inputs}
    return running, written


__all__ = ["EffectiveMacs", "Macs", "captured_row", "effective_macs", "effective_of"]
