"""`score`: one number per unit of every free group, by a named criterion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.base.loss import Loss
from secateurs.base.seeds import check_seed, seeded
from secateurs.capture.refuse import refuse_meta
from secateurs.couple.group import ChannelGroup, Groups
from secateurs.score.criterion import CRITERIA, Context, Criterion
from secateurs.score.equalize import EQUALIZATIONS, NORMALIZERS, equalized, named, normalized
from secateurs.score.samples import Samples


def score(
    groups: Groups,
    model: nn.Module,
    criterion: str | Callable[..., Tensor] = "l1",
    *,
    data: Iterable[Any] | None = None,
    loss: str | Loss = "cross_entropy",
    batches: int | None = None,
    options: Mapping[str, Any] | None = None,
    equalization: str = "arithmetic_mean",
    normalizer: str | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Scores `{group name: Tensor[size]}` for every free group, float64; higher = keep.

    `criterion` is a registered name (`sec.list("criteria")`) or a function `(group, context, **options)` that gives
    `[size]` scores, or rows `[members, size]`, one for each of the layers that are coupled in the group. `options` are
    its keyword options. Each row is divided by its normaliser (`max`, `mean`, `l2`, `l2_scaled`, `sum`, `none`;
    default: the criterion's own choice), then `equalization` makes one row of them: `arithmetic_mean`,
    `geometric_mean`, `keep_any` (the layer that values a unit most decides), `keep_all` (the one that values it least),
    `sum`, `max`, `min`.

    `data` gives batches `(inputs, target)`, of which the first `batches` are looked at (default: all); `loss(outputs,
    target)` is the mean over a batch, or the name of one. The model is not changed, nor is any random state.

    Raises `UnknownNameError` for an unknown name and `InputError` for scores that are not finite or of the wrong size,
    for data that is missing or does not fit, or when `model` is not the one that `groups` were found in.
    """
    rule = as_criterion(criterion)
    options = dict(options or {})
    rule.check(options)
    scale = rule.normalizer if normalizer is None else normalizer
    named("normalizer", scale, NORMALIZERS)
    named("equalization", equalization, EQUALIZATIONS)
    if rule.needs and data is None:
        raise InputError(
            explain(
                f"The criterion {rule.name!r} needs data",
                evidence="it looks at the loss" if rule.needs == "loss" else "it looks at activations",
                next_step="pass `data=` (--data), batches of (inputs, target), or take a criterion that reads weights "
                "only, such as 'l2'",
            )
        )
    check_seed(seed)
    refuse_meta(model)
    samples = Samples(model, groups.graph, data, loss=loss, limit=batches, seed=seed) if data is not None else None
    generator = torch.Generator().manual_seed(seed)
    context = Context(groups, model, tensors_of(groups, model), generator, samples, seed)
    result: dict[str, Tensor] = {}
    with seeded(seed), torch.no_grad():
        for group in groups.free:
            rows = _checked(rule(group, context, **options), group, rule.name)
            scores = equalized(normalized(rows, scale), equalization)
            result[group.name] = scores - rule.charged(group, context, options)
    return result


def as_criterion(given: Any) -> Criterion:
    """The registered criterion of that name, or one around a function.

    Raises `UnknownNameError`, or `InputError` for what is neither.
    """
    if isinstance(given, str):
        return CRITERIA[given]
    if isinstance(given, Criterion):
        return given
    if not callable(given):
        raise InputError(
            explain(f"{given!r} is no criterion", next_step="pass a name of sec.list('criteria'), or a function")
        )
    return Criterion(getattr(given, "__name__", type(given).__name__), given)


def tensors_of(groups: Groups, model: nn.Module) -> dict[str, Tensor]:
    """The leaves that the groups speak of, by name. Raises `InputError` if this is another model."""
    tensors: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **groups.graph.constants,
    }
    for leaf in groups.graph.leaves:
        found = tuple(tensors[leaf.name].shape) if leaf.name in tensors else None
        if found != leaf.shape:
            raise InputError(
                explain(
                    "The groups belong to another model",
                    where=f"`{leaf.name}`",
                    evidence=f"shape {leaf.shape} in the groups, {found or 'nothing of that name'} in the model",
                    next_step="capture and couple this model",
                )
            )
    return tensors


def _checked(raw: Any, group: ChannelGroup, criterion: str) -> Tensor:
    """What a criterion gave as rows `[members, size]` in float64. Raises `InputError` if these are no such scores."""
    evidence = f"it gave a {type(raw).__name__}"
    if isinstance(raw, Tensor) and raw.is_complex():
        evidence = f"it gave {raw.dtype}"
    elif isinstance(raw, Tensor):
        rows = raw.detach().to("cpu", torch.float64)
        rows = rows.unsqueeze(0) if rows.dim() == 1 else rows
        broken = int((~torch.isfinite(rows)).sum())
        if rows.dim() == 2 and len(rows) and rows.shape[1] == group.size and not broken:
            return rows
        evidence = f"shape {tuple(raw.shape)} for {group.size} units, {broken} not finite"
    raise InputError(
        explain(
            f"The criterion {criterion!r} gives no usable scores",
            where=f"group `{group.name}`",
            evidence=evidence,
            next_step="check the weights, or the criterion if it is your own",
        )
    )


__all__ = ["as_criterion", "score", "tensors_of"]
