"""`Call`: one way of calling a model, taken apart into named tensors so that any runtime can repeat it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import DeviceError, InputError, explain
from secateurs.capture.trace import check_inputs, plain_output


@dataclass(frozen=True)
class Call:
    """The tensors of a call with their names, and the structure of positional and keyword arguments around them.

    A name is the parameter of `forward` and the path inside it: `x`, `images.0`, `batch.mask`.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    _leaves: tuple[Any, ...] = field(repr=False)
    _structure: pytree.TreeSpec = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Call:
        """The call `model(*example_inputs, **kwargs)`. Raises `InputError` on what cannot be a model call."""
        args, keywords = check_inputs(model, example_inputs, kwargs)
        found, structure = pytree.tree_flatten_with_path((args, keywords))
        parameters = _positional_parameters(model)
        named = [(_name(path, parameters), leaf) for path, leaf in found if isinstance(leaf, Tensor)]
        return cls(
            names=tuple(name for name, _ in named),
            tensors=tuple(tensor.detach() for _, tensor in named),
            _leaves=tuple(None if isinstance(leaf, Tensor) else _Literal(leaf) for _, leaf in found),
            _structure=structure,
        )

    def arguments(self, tensors: Sequence[Tensor] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments again, with other tensors in the place of the originals if given."""
        rest = iter(self.tensors if tensors is None else tensors)
        leaves = [next(rest) if leaf is None else leaf.value for leaf in self._leaves]
        args, keywords = pytree.tree_unflatten(leaves, self._structure)
        return args, keywords

    def with_tensors(self, tensors: Sequence[Tensor]) -> Call:
        """The same call on other tensors."""
        return replace(self, tensors=tuple(tensors))

    @property
    def described(self) -> str:
        """Every input in words, for messages."""
        return ", ".join(f"{name} is {describe(tensor)}" for name, tensor in zip(self.names, self.tensors, strict=True))

    def on_cpu(self) -> Call:
        """The same call with its tensors in main memory."""
        return self.with_tensors([tensor.cpu() for tensor in self.tensors])

    def check(self, other: Call) -> None:
        """Raises `InputError` unless `other` has the same structure, literals, shapes and element types."""
        if (other.names, other._leaves, other._structure) != (self.names, self._leaves, self._structure):
            raise InputError(
                explain(
                    "These inputs are not those that the model was compiled for",
                    evidence=f"compiled for {', '.join(self.names)}; got {', '.join(other.names)}",
                    next_step="pass arguments of the same structure, or compile the model for the new ones",
                )
            )
        for name, expected, got in zip(self.names, self.tensors, other.tensors, strict=True):
            if (expected.shape, expected.dtype) != (got.shape, got.dtype):
                raise InputError(
                    explain(
                        "An input does not fit the one that the model was compiled for",
                        where=f"input `{name}`",
                        evidence=f"compiled for {describe(expected)}, got {describe(got)}",
                        next_step="pass this shape and type, or compile the model for the new ones",
                    )
                )

    def run(self, model: nn.Module) -> dict[str, Tensor]:
        """Call `model` and name its output tensors. Raises `DeviceError` when it fails or returns no tensor."""
        args, keywords = self.arguments()
        try:
            result = model(*args, **keywords)
        except Exception as error:
            raise DeviceError(
                explain(
                    f"{type(model).__name__} fails on these inputs: {type(error).__name__}: {str(error)[:500]}",
                    evidence=self.described,
                    next_step="call the model once with these inputs yourself, then pass the same ones",
                )
            ) from error
        outputs = named_outputs(result)
        if not outputs:
            found = f"it returned a {type(result).__name__}"
            raise DeviceError(explain(f"{type(model).__name__} returns no tensor", evidence=found))
        return outputs


@dataclass(frozen=True)
class _Literal:
    """An argument that is not a tensor; compared by value."""

    value: Any


def named_outputs(result: Any) -> dict[str, Tensor]:
    """The tensors of a model's result by path, in order: `output`, `output.0`, or the keys of a dict (`logits`)."""
    return {".".join(path) or "output": tensor for path, tensor in _tensors(plain_output(result), ())}


def _tensors(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from _tensors(item, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for index, item in enumerate(tree):
            yield from _tensors(item, (*(path or ("output",)), str(index)))


def working_copy(model: nn.Module, *, on_cpu: bool = False) -> nn.Module:
    """The model in eval mode with its own buffers and flags; nothing of the caller's changes.

    Parameters are shared, unless `on_cpu` asks for them and they lie elsewhere. Raises `DeviceError` when the model
    holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *vars(module).values()):
            if isinstance(tensor, Tensor):
                memo[id(tensor)] = _to_cpu(tensor) if on_cpu else tensor
        for tensor in module._buffers.values():
            if tensor is not None:
                memo[id(tensor)] = (tensor.cpu() if on_cpu else tensor).detach().clone()
    try:
        twin = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise DeviceError(
            explain(
                f"{type(model).__name__} cannot be copied, and the original must stay as it is",
                evidence=str(error),
                next_step="make the attribute that the message names a parameter, a buffer or plain data",
            )
        ) from error
    return twin.eval()


def _to_cpu(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    moved = tensor.detach().cpu()
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def describe(tensor: Tensor) -> str:
    """Shape and element type in words: `float32 of shape (1, 3, 8, 8)`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _positional_parameters(model: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in inspect.signature(model.forward).parameters.items() if parameter.kind in kinds]


def _name(path: pytree.KeyPath, parameters: Sequence[str]) -> str:
    steps = [str(getattr(key, "idx", getattr(key, "key", getattr(key, "name", key)))) for key in path[1:]]
    if isinstance(path[0], pytree.SequenceKey) and path[0].idx == 0:
        position = int(steps[0])
        steps[0] = parameters[position] if position < len(parameters) else f"input_{position}"
    return ".".join(steps)
