"""Which tensors of a model a mask may be put on: the weights of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.globs import fits
from secateurs.base.listed import listed
from secateurs.sparsity.layout import Layout

TABLES = (nn.Embedding, nn.EmbeddingBag)
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
WITHOUT = (*TABLES, *NORMS, ParametrizationList)
"""Modules whose own parameters are no weights of a layer: tables, scales, and parts that a weight is computed from."""


@dataclass(frozen=True)
class LayerWeight:
    """The weight of a layer: its name among the model's parameters, its tensor, how it is stored, whose it is.

    `kinds` are the classes of the modules that own it: several where it is tied, as are `names`.
    """

    name: str
    tensor: Tensor
    layout: Layout
    kinds: tuple[type, ...] = ()
    names: tuple[str, ...] = ()


def layer_weights(
    model: nn.Module, *, exclude: Iterable[str | type] = (), only: Iterable[str | type] | None = None
) -> dict[str, LayerWeight]:
    """The weights of convolutions (transposed and grouped too), linear and recurrent layers, by parameter name.

    A parameter of a module of any other class counts if it has two to five dimensions, the first two larger than one:
    it is taken as `[out, in, *kernel]`. Biases, norms and embeddings do not count, nor what is tied to an embedding.
    `exclude` leaves out what matches, `only` all that does not match: globs on parameter or module names
    (`"features.*"`), or module classes.

    Raises `InputError` when nothing is left, a lazy module was never run, weights are shared (`sec.share_weights`) or a
    string stands for a list, `UnknownNameError` for a glob that matches nothing.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            explain(f"A {type(model).__name__} has no layers", where="model", next_step="give a torch.nn.Module")
        )
    if any(getattr(module, "looks_weights_up", False) for module in model.modules()):
        raise InputError(
            explain(
                "The weights of this model are looked up in codebooks",
                where="model",
                next_step="make zeros before weights are shared, or in `model.plain()`",
            )
        )
    found: dict[int, LayerWeight] = {}
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    names: dict[int, list[str]] = {}
    barred: set[int] = set()
    for path, module, name, parameter in _owned(model):
        owners.setdefault(id(parameter), []).append((path, module))
        names.setdefault(id(parameter), []).append(name)
        layout = None if _is_scale(module, name.rpartition(".")[2]) else _layout(module, parameter)
        if isinstance(module, TABLES):
            barred.add(id(parameter))
        elif layout is not None:
            found.setdefault(id(parameter), LayerWeight(name, parameter.detach(), layout))
    candidates = {
        item.name: (replace(item, names=tuple(names[key])), owners[key])
        for key, item in found.items()
        if key not in barred
    }
    left = _matching(model, candidates, listed("exclude", exclude), "exclude")
    kept = set(candidates) if only is None else _matching(model, candidates, listed("only", only), "only")
    result = {
        name: replace(item, kinds=tuple(dict.fromkeys(type(module) for _, module in mine)))
        for name, (item, mine) in candidates.items()
        if name in kept - left
    }
    if not result:
        raise InputError(
            explain(
                "There is no weight to put a mask on",
                evidence=f"{len(candidates)} weights of layers, {len(left)} of them excluded",
                next_step="exclude less, or check that the model has convolutions or linear layers",
            )
        )
    return result


def _owned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Module path, module, full name and parameter, for every parameter under every name."""
    for path, module in model.named_modules(remove_duplicate=False):
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{path}.{own}" if path else own
            if isinstance(parameter, UninitializedParameter):
                raise InputError(
                    explain(f"`{name}` has no shape yet", next_step="run the model once: lazy modules get theirs")
                )
            yield path, module, name, parameter


def _layout(module: nn.Module, parameter: nn.Parameter) -> Layout | None:
    """How the parameter is stored, None if it is not the weight of a layer."""
    sizes = tuple(parameter.shape)
    if isinstance(module, WITHOUT) or not 2 <= len(sizes) <= 5 or not parameter.is_floating_point():
        return None
    if isinstance(module, _ConvNd):
        return Layout(module.groups, transposed=isinstance(module, _ConvTransposeNd))
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # a linear layer that stores [in, out]
        return Layout(transposed=True)
    known = isinstance(module, (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention))
    return Layout() if known or min(sizes[:2]) > 1 else None


def _is_scale(module: nn.Module, own: str) -> bool:
    """Is it the length of each filter, which `torch.nn.utils.weight_norm` keeps beside the direction?"""
    hooks = module._forward_pre_hooks.values()
    return any(isinstance(hook, WeightNorm) and own == f"{hook.name}_g" for hook in hooks)


def _matching(
    model: nn.Module,
    candidates: dict[str, tuple[LayerWeight, list[tuple[str, nn.Module]]]],
    patterns: tuple[str | type, ...],
    argument: str,
) -> set[str]:
    """The names of the candidates that some pattern matches. A pattern must match something of the model."""
    everything = [path for path, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    result: set[str] = set()
    for item in patterns:
        if isinstance(item, type):
            result |= {name for name, (_, owners) in candidates.items() if any(isinstance(m, item) for _, m in owners)}
            continue
        mine = {name for name, (_, owners) in candidates.items() if _matches(name, owners, item)}
        if not mine and not any(fits(name, item) for name in everything):
            close = nearest(item, everything)
            raise UnknownNameError(
                explain(
                    f"{item!r} matches no module and no parameter",
                    where=argument,
                    next_step=f"did you mean {' or '.join(map(repr, close))}?" if close else "",
                )
            )
        result |= mine
    return result


def _matches(name: str, owners: list[tuple[str, nn.Module]], glob: str) -> bool:
    """Does the glob match the parameter, a module that owns it, or one that holds such a module?"""
    names = [name]
    for path, _ in owners:
        steps = path.split(".")
        names += [".".join(steps[: count + 1]) for count in range(len(steps))]
    return any(fits(item, glob) for item in names)


def bias_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The names of the biases that stand beside weights, by the weights' names: those that there are."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for name in names:
        path, _, own = name.rpartition(".")
        beside = f"{path}.{own.replace('weight', 'bias')}" if path else own.replace("weight", "bias")
        if beside != name and beside in parameters:
            found[name] = beside
    return found


def left_whole(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """What the parameters are that are none of `names`: `"weight"` of a layer, which was left out, `"embedding"`,
    `"norm"`, `"bias"` or `"other"`.

    A tied parameter goes by its first name, is one of `names` if any of its names is, and an embedding if it is that
    anywhere.
    """
    chosen = set(names)
    owned = [(id(parameter), module, name, parameter) for _, module, name, parameter in _owned(model)]
    sparse = {key for key, _, name, _ in owned if name in chosen}
    kinds: dict[int, tuple[str, str]] = {}
    for key, module, name, parameter in owned:
        kind = _kind(module, name.rpartition(".")[2], parameter)
        if key not in kinds or kind == "embedding":
            kinds[key] = (kinds.get(key, (name,))[0], kind)
    return {name: kind for key, (name, kind) in kinds.items() if key not in sparse}


def _kind(module: nn.Module, own: str, parameter: nn.Parameter) -> str:
    if isinstance(module, TABLES):
        return "embedding"
    if isinstance(module, NORMS):
        return "norm"
    if _layout(module, parameter) is not None and not _is_scale(module, own):
        return "weight"
    return "bias" if "bias" in own else "other"


def check_finite(weight: LayerWeight) -> None:
    """Raises `InputError` when the weight holds a NaN or an infinity, or nothing at all."""
    if weight.tensor.is_meta:
        raise InputError(explain(f"`{weight.name}` has no values", evidence="it is on meta", next_step="load it first"))
    if not bool(torch.isfinite(weight.tensor).all()):
        raise InputError(
            explain(f"`{weight.name}` has entries that are not finite", next_step="repair or retrain the model first")
        )


__all__ = ["LayerWeight", "bias_names", "check_finite", "layer_weights", "left_whole"]
