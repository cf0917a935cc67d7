"""`sparsify_once`: zeros in a trained model, and the other weights moved so that every layer puts out what it did.

Optimal brain surgeon, layer by layer: Frantar, Alistarh: Optimal Brain Compression, 2022 (arXiv 2208.11580), and
SparseGPT, 2023 (arXiv 2301.00774), for any pattern; least squares on what stays, as in Yang, Chen, Sze 2017. The
layers behind see what those before have lost, and make it good.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import derive
from secateurs.base.errors import InputError, UnknownNameError, explain
from secateurs.base.seeds import seeded
from secateurs.capture.graph import Graph
from secateurs.couple.rules.registry import arguments, value
from secateurs.sparsity.masks import check_masks, density
from secateurs.sparsity.pattern import Grouping, Pattern
from secateurs.sparsity.spec import ByLayer, Masks, Spec, masks_of
from secateurs.sparsity.surgeon import Quadratic, damped, fitted, operate
from secateurs.sparsity.threshold import Threshold
from secateurs.sparsity.weights import LayerWeight, check_finite, layer_weights
from secateurs.train.least_squares import Normal, is_layer
from secateurs.train.recalibrate import recalibrate_
from secateurs.train.side_by_side import Fit, change, check_fit, equations, pairs_of

INPUTS = ("own", "original")


@dataclass(frozen=True, repr=False)
class SparsifiedOnce:
    """The new model, with exact zeros; its masks, for `sec.sparsify(model, masks)`; and what each layer lost.

    `errors`: by parameter name, the share of the layer's output (its variance where it has a bias or a batch norm
    behind it, on the calibration data) that differs now. Layers that could not be fitted are not in it.
    """

    model: nn.Module
    masks: Masks
    errors: Mapping[str, float]

    def __repr__(self) -> str:
        return f"<SparsifiedOnce: {1 - density(self.masks):.1%} of the weights of {len(self.masks)} layers are zero>"

    def __str__(self) -> str:
        """A line per layer: its zeros, and the share of its output that differs now."""
        width = max(map(len, self.masks), default=0)
        lines = [f"{'layer':<{width}}   zeros  output changed"]
        for name, mask in self.masks.items():
            error = f"{self.errors[name]:.2%}" if name in self.errors else "not fitted"
            lines.append(f"{name:<{width}}  {1 - mask.double().mean().item():>6.1%}  {error:>14}")
        return "\n".join([*lines, f"{'all':<{width}}  {1 - density(self.masks):>6.1%}"])


def sparsify_once(
    model: nn.Module,
    data: Iterable[Any],
    sparsity: float | ByLayer[float] | Masks | None = None,
    *,
    pattern: str | Pattern = "weight",
    distribution: str = "uniform",
    exclude: Iterable[str | type] = (),
    only: Iterable[str | type] | None = None,
    within: Mapping[str, Tensor] | None = None,
    original: nn.Module | None = None,
    inputs: str = "own",
    target: str = "output",
    rounds: int = 16,
    batches: int | None = None,
    samples_per_image: int | None = 32,
    ridge: float = 1e-3,
    recalibrate: int = 0,
    seed: int = 0,
) -> SparsifiedOnce:
    """A copy of `model` with zeros, without training: layer by layer, first to last, from what each of them reads.

    `sparsity`, `pattern`, `distribution`, `exclude`, `only` and `within` are those of `masks`. Which groups of weights
    go is decided by what their removal costs after the others have been moved to make good for it (optimal brain
    surgeon), in `rounds`. With masks as `sparsity` only the others are moved.

    A layer gets the weights W' (and bias, or the mean of the batch norm behind it) on its mask that minimise
    `sum ||Y - W' X||^2 + ridge * mean(X^2) * n * ||W' - W||^2` over n positions: X is what it reads in the new network
    (`inputs="original"`: in the original), W what it has, Y what it should put out: what it puts out in `original`
    (default: `model`); with `target="sum"`, as in `reconstruct`, what makes the sum it goes into the original's. On the
    fitted positions never worse than just setting the masked weights to zero, for each layer by itself.

    To go on in steps, with training between them, pass the model so far with `within=` its masks, and `original=`.

    Linear layers and convolutions, grouped ones too, are fitted. One weight for several calls is fitted to all of
    them, before the others. Transposed convolutions, recurrent layers and the like get masks by the pattern's
    importance and keep their other weights.

    `data` are batches of inputs or `(inputs, target)`, of which the first `batches` are used, `samples_per_image`
    random positions of each image (None: all). Labels are not looked at. Eval mode. `recalibrate` is the number of
    batches on which batch norms are measured anew afterwards. Costs about three forward passes and, per layer, the
    inverses of its moments; the activations of all batches at one place of both networks are in memory at a time.

    Raises `InputError` for arguments that contradict each other, `UnknownNameError` for unknown names and `TrainError`
    when the data is empty.
    """
    check_fit("sparsify_once", batches, samples_per_image, ridge, target)
    _check(inputs, target, rounds)
    weights = layer_weights(model, exclude=exclude, only=only)
    wanted = _wanted(weights, sparsity, pattern, distribution, within)
    fresh = copy.deepcopy(model)
    errors: dict[str, float] = {}
    masks: Masks = {}

    def settle(fits: list[Fit], pairs: Any) -> None:
        name = fits[0].weight
        normal = equations(fits, pairs, samples_per_image, seed, inputs=inputs)
        masks[name], errors[name] = _settle(fresh, fits[0], normal, wanted.of(name), ridge, rounds)

    with torch.no_grad(), seeded(derive(seed, "sparsify_once")):
        pairs = list(pairs_of(original or model, fresh, data, batches, seed))
        calls = dict(_calls(pairs[0].before.graph, pairs[0].after.graph, wanted.names, target))
        masks.update(_unfitted(fresh, wanted, set(wanted.names) - set(calls)))
        shared = [fits for fits in calls.values() if len(fits) > 1]
        for fits in shared:
            settle(fits, list(pairs_of(original or model, fresh, data, batches, seed)))
        if shared:
            pairs = list(pairs_of(original or model, fresh, data, batches, seed))
        for fits in calls.values():
            if len(fits) == 1:
                settle(fits, pairs)
    if recalibrate:
        recalibrate_(fresh, data, batches=recalibrate, seed=seed)
    return SparsifiedOnce(fresh, {name: masks[name] for name in wanted.names}, errors)


@dataclass(frozen=True)
class Wish:
    """What one weight is to become: a mask that is given, or groups of which some go, and may be there (`within`)."""

    mask: Tensor | None
    grouping: Grouping | None
    sparsity: float | None
    within: Tensor | None


@dataclass(frozen=True)
class _Wanted:
    weights: Mapping[str, LayerWeight]
    targets: Mapping[str, float]
    masks: Masks
    spec: Spec | None
    within: Mapping[str, Tensor]

    @property
    def names(self) -> list[str]:
        return list(self.masks if self.spec is None else self.targets)

    def of(self, name: str) -> Wish:
        if self.spec is None:
            return Wish(self.masks[name].cpu(), None, None, None)
        weight, within = self.weights[name], self.within.get(name)
        grouping = self.spec.form.groups(tuple(weight.tensor.shape), weight.layout)
        sparsity = None if self.spec.form.decides else self.targets[name]
        return Wish(None, grouping, sparsity, None if within is None else within.cpu())


def _wanted(
    weights: dict[str, LayerWeight], sparsity: Any, pattern: str | Pattern, distribution: str,
    within: Mapping[str, Tensor] | None,
) -> _Wanted:  # fmt: skip
    shapes = {name: tuple(item.tensor.shape) for name, item in weights.items()}
    check_masks(within or {}, shapes)
    if isinstance(sparsity, Mapping) and any(isinstance(item, Tensor) for item in sparsity.values()):
        if not all(isinstance(item, Tensor) for item in sparsity.values()):
            raise InputError(explain("sparsify_once takes masks or shares, not both", next_step="give one kind"))
        check_masks(sparsity, shapes)
        found = _Wanted(weights, {}, dict(sparsity), None, {})
    else:
        spec = Spec(sparsity, pattern, None, "layer", distribution)
        targets = {name: item for name, item in spec.targets(weights).items() if not isinstance(item, Threshold)}
        if len(targets) < len(spec.targets(weights)):
            raise InputError(explain("sparsify_once takes no thresholds", next_step="give shares that become zero"))
        found = _Wanted(weights, targets, {}, spec, within or {})
    for name in found.names:
        check_finite(weights[name])
    return found


def _calls(original: Graph, other: Graph, names: Iterable[str], target: str) -> Iterator[tuple[str, list[Fit]]]:
    """The weights that can be fitted, each with its calls, in the order of the first of them."""
    _check_nodes(original, other)
    wanted = set(names)
    leaves = {leaf.value: name for leaf in other.leaves for name in leaf.names if name in wanted}
    calls: dict[int, list[int]] = {}
    fixed: set[int] = set()
    for node in other.nodes:
        weight = value(arguments(node)["weight"]) if is_layer(node) and node.outputs[0] is not None else None
        for number in leaves.keys() & set(node.inputs):
            calls.setdefault(number, []).append(node.index)
            if number != weight or list(node.inputs).count(number) > 1:
                fixed.add(number)
    for number, nodes in calls.items():
        if number not in fixed:
            goal = target if len(nodes) == 1 else "output"
            fits = [Fit.of(original, other, original.nodes[index], leaves[number], goal) for index in nodes]
            yield leaves[number], fits if len(fits) == 1 else [replace(fit, place=None) for fit in fits]


def _settle(model: nn.Module, fit: Fit, normal: Normal, wish: Wish, ridge: float, rounds: int) -> tuple[Tensor, float]:
    """Put the zeros into the layer's weight, in place, and fit the others. The mask, and the share that was lost."""
    own = model.get_parameter(fit.weight)
    flat = own.detach().to("cpu", torch.float64, copy=True).flatten(1)
    plain = normal.centred()
    gram, right = plain.gram.cpu(), plain.right.cpu().mT.reshape(flat.shape)
    error = Quadratic(damped(gram, ridge, normal.scale.cpu()), right).around(flat)
    if wish.mask is not None:
        alive = wish.mask.reshape(flat.shape)
        weights = fitted(error, alive)
    else:
        assert wish.grouping is not None
        alive, weights = operate(error, wish.grouping, wish.sparsity, rounds=rounds, within=wish.within)
    moved = weights - flat
    shift = normal.shift(moved.reshape(len(gram), -1, flat.shape[1]).to(normal.gram.device))
    change(model, fit, moved.to(own.device), shift)
    mask = alive.reshape(own.shape).to(own.device)
    own.masked_fill_(~mask, 0.0)
    missing = plain.squares.sum().cpu()
    lost = missing + Quadratic(gram, right).error(moved).sum()
    whole = missing + Quadratic(gram, right).error(-flat).sum()
    return mask, float((lost / whole).clamp(min=0)) if whole > 0 else 0.0


def _unfitted(model: nn.Module, wanted: _Wanted, names: set[str]) -> Masks:
    """Masks by the pattern's importance for weights that are in no layer that can be fitted; zeros put in place."""
    if wanted.spec is None:
        found = {name: wanted.masks[name] for name in names}
    else:
        targets = {name: wanted.targets[name] for name in names}
        found = masks_of(wanted.weights, wanted.spec, targets=targets, within=wanted.within)
    for name, mask in found.items():
        model.get_parameter(name).masked_fill_(~mask, 0.0)
    return found


def _check_nodes(original: Graph, other: Graph) -> None:
    """Raises `InputError` unless both run the same operators on values of the same shapes."""
    one, two = ([(node.op, node.inputs, node.outputs) for node in graph.nodes] for graph in (original, other))
    if one != two or [item.shape for item in original.values] != [item.shape for item in other.values]:
        raise InputError(
            explain(
                "The original is another network than the model",
                where="original",
                evidence=f"{len(one)} operators in the original, {len(two)} in the model",
                next_step="pass the model from which this one was made, not cut in between",
            )
        )


def _check(inputs: str, target: str, rounds: Any) -> None:
    if inputs not in INPUTS:
        raise UnknownNameError(explain(f"There is no inputs named {inputs!r}", evidence=f"known: {', '.join(INPUTS)}"))
    if inputs == "original" and target == "sum":
        raise InputError(
            explain(
                "target='sum' needs inputs='own'",
                evidence="what makes a sum the original's depends on what is in the new network",
                next_step="leave one of the two out",
            )
        )
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InputError(explain(f"rounds={rounds!r} cannot be used", next_step="give an integer above 0"))


__all__ = ["SparsifiedOnce", "sparsify_once"]
