"""What was asked for, as plain data in the form of a recipe, whoever asked and however."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from secateurs.base.reference import name_of
from secateurs.deliver.inputs import TensorSpec

FORMAT = 1


def request(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, data: Any, evaluate: Any, **rest: Any
) -> dict[str, Any]:
    """The arguments of `prune` by the names that a recipe has for them.

    Code becomes `package.module:attribute` where that finds it again and is left out where it does not (a lambda, a
    loader object), as are inputs that are not plain tensors.
    """
    asked = {"version": FORMAT, "model": name_of(type(model)), "inputs": _texts(args, kwargs), **rest}
    asked |= {"data": name_of(data), "evaluate": name_of(evaluate)}
    return {key: plain(value) for key, value in asked.items() if value is not None}


def plain(value: Any) -> Any:
    """JSON data: configs become the fields that differ from their defaults, code its name, tuples lists."""
    if callable(value):
        return getattr(value, "reference", None) or name_of(value) or repr(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(item) for name, item in _changed(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _changed(config: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default:
            yield field.name, value


def _texts(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str] | None:
    if not all(isinstance(item, Tensor) for item in (*args, *kwargs.values())):
        return None
    return [str(TensorSpec.of(item)) for item in args] + [
        f"{key}={TensorSpec.of(item)}" for key, item in kwargs.items()
    ]
