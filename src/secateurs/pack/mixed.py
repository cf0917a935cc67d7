"""`best_bits`: every weight in as many bits as pay off, the whole within a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.pack.allocate import Allocation, Candidate, allocate
from secateurs.pack.chosen import numbers, of_names, weighed, weights, with_coded
from secateurs.pack.coded import Coded
from secateurs.pack.encode import encode

Make = Callable[[str, Tensor, int], Coded]
"""`(parameter name, weights, bits) -> Coded`, such as `lambda name, tensor, bits: share(tensor, bits)`."""
Error = Callable[[str, Coded], float]
"""`(parameter name, coded weights) -> error`, lower = better; errors of different tensors are added up."""


@dataclass(frozen=True)
class Mixed:
    """The coded tensors by parameter name, and the allocation that chose their bits."""

    coded: Mapping[str, Coded]
    allocation: Allocation


def best_bits(
    model: nn.Module,
    budget: int,
    make: Make,
    *,
    bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    error: Error | None = None,
    size: Callable[[Coded], int] | None = None,
) -> Mixed:
    """Every weight matrix and kernel coded by `make` in each number of bits, and the choice of least total error.

    `budget` is in bytes, as `size` counts them (default: `file_bytes`). `error` defaults to `weight_error(model)`;
    `weight_error(model, importance)` weighs by curvature, `loss_change(model, loss)` measures. Raises `InputError`
    without weights or bits, and `BudgetError` when the budget is below the least that can be reached.
    """
    ways = every_way(model, make, bits)
    allocation = allocate(candidates(ways, error or weight_error(model), size or file_bytes), budget)
    return Mixed({name: ways[name][number] for name, number in allocation.bits.items()}, allocation)


def every_way(model: nn.Module, make: Make, bits: Sequence[int]) -> dict[str, dict[int, Coded]]:
    """Every weight matrix and kernel, by parameter name, in each number of bits. Raises `InputError` without any."""
    named = weights(model)
    if not named or not bits:
        raise InputError(explain("There is nothing to choose from", evidence=f"{len(named)} weights, bits {bits}"))
    return {name: {number: make(name, tensor, number) for number in bits} for name, tensor in named.items()}


def candidates(
    ways: Mapping[str, Mapping[int, Coded]], judge: Error, measure: Callable[[Coded], int] | None = None
) -> dict[str, list[Candidate]]:
    """Error and bytes (default: `file_bytes`) of every way to code every weight."""
    size = measure or file_bytes
    return {
        name: [Candidate(number, judge(name, item), size(item)) for number, item in each.items()]
        for name, each in ways.items()
    }


def weight_error(model: nn.Module, importance: Mapping[str, Tensor] | None = None) -> Error:
    """`sum importance * (w - w')^2` over a tensor; a name without importance counts 1 for every weight."""
    named = weights(model)
    matter = of_names(importance, named)

    def error(name: str, coded: Coded) -> float:
        values = numbers(named[name])
        squares = (values.astype("float64") - coded.decode().astype("float64")) ** 2
        each = weighed(matter.get(name), values.shape)
        return float(squares.sum() if each is None else (each * squares).sum())

    return error


def loss_change(model: nn.Module, loss: Callable[[nn.Module], float]) -> Error:
    """By how much `loss(model)` (lower = better) rises when this tensor alone is coded."""
    before = float(loss(model))

    def error(name: str, coded: Coded) -> float:
        return float(loss(with_coded(model, {name: coded}))) - before

    return error


def file_bytes(coded: Coded) -> int:
    """What the tensor takes in a packed file: index, codes, codebook or scales; without its name and checksum."""
    return encode(coded).bytes


__all__ = ["Mixed", "best_bits", "candidates", "every_way", "file_bytes", "loss_change", "weight_error"]
