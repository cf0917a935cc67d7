"""`masks`: which weights of a model stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.base.loss import Loss
from secateurs.base.seeds import check_seed
from secateurs.sparsity.importance import Importance
from secateurs.sparsity.measured import Evidence, check_read
from secateurs.sparsity.pattern import Pattern
from secateurs.sparsity.spec import ByLayer, Masks, Spec, Target, gradients_of, masks_of
from secateurs.sparsity.threshold import check_still
from secateurs.sparsity.weights import layer_weights


def masks(
    model: nn.Module,
    sparsity: Target | ByLayer[Target] | None = None,
    *,
    pattern: str | Pattern = "weight",
    importance: str | Importance | None = None,
    scope: str = "layer",
    distribution: str = "uniform",
    exclude: Iterable[str | type] = (),
    only: Iterable[str | type] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    within: Mapping[str, Tensor] | None = None,
    data: Iterable[Any] | None = None,
    loss: str | Loss = "cross_entropy",
    batches: int | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Masks:
    """A bool mask per layer weight, by parameter name; True = kept. The model is not changed.

    `sparsity` is the share of *groups* that becomes zero: of n groups exactly `floor(sparsity * n + 0.5)` go, those of
    lowest importance, and of equals the one of lower index. It is one number, a `Threshold`, or either by parameter or
    module name, by glob or by class of modules (`{"conv*": 0.5, nn.Linear: 0.9}`; names overrule globs, and these
    classes), where layers without a target get no mask. Patterns that fix how much stays (`"2:4"`) take none.

    `pattern` says which weights form a group: `sec.list("patterns")`. `scope="layer"` meets the target in every layer,
    by `distribution` `"uniform"` or `"erk"`; `scope="global"` ranks the groups of all layers together, so that layers
    end up differently sparse (where their groups differ in size, `importance="mean"` compares them fairly).

    `importance` is `"l1"` (the default of most patterns), `"l2"`, `"rms"`, `"mean"`, `"random"` (from `seed`),
    `"taylor"` (with the gradient over `data`, else `gradients`, by default what is in `.grad`),
    `sec.sparsity.Obd(curvature)` or a function of a `GroupedWeight`. With `data` it may also be `"obd"` or
    `"taylor_weights"`, whose `options` are those of the criteria of these names, and `per` and `form` for weights.
    `data` gives batches `(inputs, target)`, of which the first `batches` are looked at (default: all), in eval mode;
    `loss(outputs, target)` is the mean over a batch, or the name of one.

    `exclude` and `only` choose layers, as in `layer_weights`. What is zero in `within`, the masks of before, stays
    zero and counts among those that go.

    Raises `InputError` for arguments that contradict each other, `UnknownNameError` for unknown names.
    """
    spec = Spec(sparsity, pattern, importance, scope, distribution, options or {})
    check_still(sparsity.values() if isinstance(sparsity, Mapping) else [sparsity])
    check_read(spec.measure, data)
    evidence = Evidence(model, data, loss, batches, check_seed(seed))
    weights = layer_weights(model, exclude=exclude, only=only)
    check_masks(within or {}, {name: tuple(item.tensor.shape) for name, item in weights.items()})
    if data is not None and gradients is not None:
        raise InputError(explain("Both `data` and `gradients` are given", next_step="give one: data has gradients"))
    slopes = gradients_of(model) if gradients is None else gradients
    return masks_of(weights, spec, gradients=slopes, within=within, evidence=evidence)


def check_masks(given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `InputError` for a mask of another shape or dtype than its weight's, or of no weight."""
    for name, mask in given.items():
        if name not in shapes or tuple(mask.shape) != shapes[name] or mask.dtype != torch.bool:
            raise InputError(
                explain(
                    f"The mask `{name}` does not fit",
                    evidence=f"it is {mask.dtype} {tuple(mask.shape)}, the weight {shapes.get(name, 'does not exist')}",
                    next_step="give bool tensors of the weights' shapes, by parameter name",
                )
            )


def nothing_left(masks: Mapping[str, Tensor]) -> list[str]:
    """A warning if there are layers of which nothing stays, else none."""
    empty = [name for name, mask in masks.items() if mask.dim() > 1 and not mask.any()]
    if not empty:
        return []
    return [
        explain(
            f"Nothing is left of `{empty[0]}`" + (f" and {len(empty) - 1} more" if len(empty) > 1 else ""),
            evidence="every weight of it is zero, so that what it puts out does not depend on its input",
            next_step="ask for less there, or exclude it; a threshold takes its share with every update",
        )
    ]


def density(masks: Mapping[str, Tensor]) -> float:
    """The share of masked weights that stay, over all masks together."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 1.0


__all__ = ["check_masks", "density", "masks", "nothing_left"]
