"""What masks take to store: every kept group of a pattern has its weights and one index."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from secateurs.cost.storage import INDEX_BITS, WEIGHT_BITS, mean_storage_ratio
from secateurs.sparsity.masks import check_masks
from secateurs.sparsity.pattern import Pattern, parse_pattern
from secateurs.sparsity.weights import layer_weights


def stored_ratio(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    pattern: str | Pattern = "weight",
    *,
    weight_bits: int = WEIGHT_BITS,
    index_bits: int = INDEX_BITS,
) -> float:
    """Bits of what the masks keep, with an index per kept group of the pattern, by bits of the same layers when dense.

    With groups of one size this is `cost.storage.storage_ratio` of each layer, averaged by weights. A group counts its
    own weights, so that tails, and layers whose kernels have one tap, cost what they take. Mao et al. 2017, section 5.

    Raises `InputError` for masks that do not fit the model, `UnknownNameError` for a pattern that does not exist.
    """
    form = parse_pattern(pattern)
    weights = layer_weights(model)
    check_masks(masks, {name: tuple(item.tensor.shape) for name, item in weights.items()})
    layers = []
    for name, mask in masks.items():
        grouping = form.groups(tuple(mask.shape), weights[name].layout)
        bits = weight_bits * int(mask.sum()) + index_bits * int(grouping.kept(mask.cpu()).sum())
        layers.append((mask.numel(), bits / (weight_bits * mask.numel())))
    return mean_storage_ratio(layers)


__all__ = ["stored_ratio"]
