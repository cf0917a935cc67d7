"""A call as named leaves: which argument of `forward` each tensor and each number is, however it was passed.

`net(x, mask=m)`, `net(x, m)` and `net(mask=m, x=x)` are one call. Its leaves are `x` and `mask`; the leaves of a list,
tuple or dict add their place to the argument's name, as in `batch['ids']`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import InputError, explain

LITERALS = (
    type(None), bool, int, float, complex, str, torch.dtype, torch.layout, torch.memory_format, torch.device,
)  # fmt: skip
"""Types of arguments that can be compared by value and written down."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """An argument of a type that holds no tensors and can not be compared by value."""

    kind: str


@dataclass(frozen=True)
class Parameters:
    """What `forward` takes: names of its positional parameters in order, and every default that is a literal."""

    positional: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Parameters:
        """Those of this model's `forward`."""
        taken = inspect.signature(model.forward).parameters.values()
        named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        missing = inspect.Parameter.empty
        return cls(
            tuple(item.name for item in taken if item.kind in named),
            {item.name: item.default for item in taken if item.default is not missing and is_literal(item.default)},
        )

    def name(self, position: int) -> str:
        """The name of a positional argument; those that `*args` takes are numbered."""
        return self.positional[position] if position < len(self.positional) else f"args[{position}]"

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Every leaf of the call by name, literal defaults of what was left out included.

        In the order of the positional parameters, then of the keywords; leaves of one argument in their own order.
        Raises `InputError` on an argument that is given twice.
        """
        given = {self.name(position): item for position, item in enumerate(args)}
        twice = given.keys() & kwargs.keys()
        if twice:
            raise InputError(explain(f"The argument `{min(twice)}` is given twice", next_step="give it once"))
        given.update(kwargs)
        given.update({name: item for name, item in self.defaults.items() if name not in given})
        first = [name for name in self.positional if name in given]
        leaves: dict[str, Any] = {}
        for name in (*first, *(name for name in given if name not in first)):
            item = given[name]
            if isinstance(item, Tensor) or is_literal(item):
                leaves[name] = item
            else:
                for path, leaf in pytree.tree_flatten_with_path(item)[0]:
                    leaves[name + pytree.keystr(path)] = leaf
        return leaves


@dataclass(frozen=True)
class Calling:
    """The captured call: `leaves` by name, with `Ref` for tensors, a literal, or `Opaque` for anything else."""

    parameters: Parameters
    leaves: Mapping[str, Any]

    @classmethod
    def of(
        cls, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], read: Callable[[Tensor], Any]
    ) -> Calling:
        """This call of `model`; `read` turns a tensor into its `Ref`."""
        parameters = Parameters.of(model)

        def plain(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return read(leaf)
            return leaf if is_literal(leaf) else Opaque(type(leaf).__name__)

        return cls(parameters, {name: plain(leaf) for name, leaf in parameters.bind(args, kwargs).items()})


def is_literal(item: Any) -> bool:
    """Can this argument be compared by value and written down?"""
    return isinstance(item, LITERALS)


def same_literal(a: Any, b: Any) -> bool:
    """Equal values of one type; nan equals nan. `True` is not 1 and 1 is not 1.0: operators tell them apart.

    Of devices the type counts.
    """
    if not (is_literal(a) and is_literal(b)):
        return False
    kinds = [next(kind for kind in LITERALS if isinstance(item, kind)) for item in (a, b)]
    if kinds == [torch.device, torch.device]:
        return bool(a.type == b.type)
    return kinds[0] is kinds[1] and bool(a == b or (a != a and b != b))
