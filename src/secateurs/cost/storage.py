"""How much a layer of regular zeros takes to store, by the formula of Mao et al. 2017 (1705.08922), section 5."""

from __future__ import annotations

from collections.abc import Iterable

from secateurs.base.errors import InputError, explain

WEIGHT_BITS, INDEX_BITS = 8, 4


def storage_ratio(
    density: float, group: float = 1, *, weight_bits: int = WEIGHT_BITS, index_bits: int = INDEX_BITS
) -> float:
    """Bits of the kept weights and their indices by bits of all weights: `density * (1 + index / (weight * group))`.

    `density` is the share of weights that stay; `group` how many of them share one index: 1 for single weights, 3 for
    the rows and 9 for the planes of 3x3 kernels, 1 for all of these in a 1x1 layer. May exceed 1. Raises `InputError`.
    """
    if not (0 <= density <= 1 and group >= 1 and weight_bits > 0 and index_bits >= 0):
        raise InputError(
            explain(
                "There is no such storage",
                evidence=f"density {density}, {group} weights to a group, {weight_bits} + {index_bits} bits",
                next_step="give a density from 0 to 1 and groups of at least 1 weight",
            )
        )
    return density * (1 + index_bits / (weight_bits * group))


def mean_storage_ratio(layers: Iterable[tuple[int, float]]) -> float:
    """The ratio of several layers `(weights, ratio)` together: the mean by weights. Raises `InputError` for none."""
    pairs = list(layers)
    total = sum(weights for weights, _ in pairs)
    if not total:
        raise InputError(explain("There are no weights to store"))
    return sum(weights * ratio for weights, ratio in pairs) / total


__all__ = ["INDEX_BITS", "WEIGHT_BITS", "mean_storage_ratio", "storage_ratio"]
