"""Example inputs as data: shapes, element types and integer ranges, enough to run the model again without the data.

Two spellings of the same thing: a structure that goes into JSON (`describe`, `rebuild`) and a short text for the
command line and recipes (`parse`), such as `1x3x224x224`, `1x16:int64:30522` or `mask=1x16:bool`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain, nearest

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool,
    )
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """Shape, element type and, for integers, the largest value: what `make` needs to build a stand-in."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    largest: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        integer = not tensor.dtype.is_floating_point and not tensor.dtype.is_complex and tensor.dtype != torch.bool
        largest = max(0, int(tensor.max())) if integer and tensor.numel() else 0
        return cls(tuple(tensor.shape), tensor.dtype, largest)

    def make(self, generator: torch.Generator) -> Tensor:
        """Normal floats, integers in [0, largest], booleans all true; the same for the same generator state."""
        if self.dtype == torch.bool:
            return torch.ones(self.shape, dtype=torch.bool)
        if self.dtype.is_floating_point or self.dtype.is_complex:
            wide = torch.complex64 if self.dtype.is_complex else torch.float32
            return torch.randn(self.shape, generator=generator, dtype=wide).to(self.dtype)
        return torch.randint(0, self.largest + 1, self.shape, generator=generator).to(self.dtype)

    def __str__(self) -> str:
        text = "x".join(map(str, self.shape))
        if self.dtype == torch.float32:
            return text
        name = str(self.dtype).removeprefix("torch.")
        return f"{text}:{name}:{self.largest + 1}" if self.largest else f"{text}:{name}"


def describe(tree: Any) -> Any:
    """Nested tuples, lists, dicts, tensors and plain scalars as JSON data.

    Raises `InputError` on any other type.
    """
    if isinstance(tree, Tensor):
        spec = TensorSpec.of(tree)
        return {"tensor": [list(spec.shape), str(spec.dtype).removeprefix("torch."), spec.largest]}
    if isinstance(tree, tuple):
        return {"tuple": [describe(item) for item in tree]}
    if isinstance(tree, list):
        return {"list": [describe(item) for item in tree]}
    if isinstance(tree, Mapping):
        return {"dict": {str(key): describe(item) for key, item in tree.items()}}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"plain": tree}
    raise InputError(
        explain(
            f"An example input of type `{type(tree).__name__}` cannot be written down",
            next_step="pass tensors, numbers and strings in tuples, lists and dicts",
        )
    )


def rebuild(data: Any, seed: int = 0) -> Any:
    """The structure back from `describe`, with made-up tensors of the same shapes and types.

    Raises `InputError` on data that `describe` does not write.
    """
    return _rebuild(data, torch.Generator().manual_seed(seed))


def _rebuild(data: Any, generator: torch.Generator) -> Any:
    try:
        ((kind, value),) = data.items()
        if kind == "tensor":
            shape, dtype, largest = value
            return TensorSpec(tuple(map(int, shape)), DTYPES[dtype], int(largest)).make(generator)
        if kind == "tuple":
            return tuple(_rebuild(item, generator) for item in value)
        if kind == "list":
            return [_rebuild(item, generator) for item in value]
        if kind == "dict":
            return {str(key): _rebuild(item, generator) for key, item in value.items()}
        if kind == "plain":
            return value
        raise ValueError(f"unknown kind {kind!r}")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            explain("This is not a description of example inputs", evidence=f"{str(data)[:80]!r}: {error}")
        ) from error


_TEXT = re.compile(r"(?:(?P<name>\w+)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?::(?P<high>\d+))?")


def parse(text: str) -> tuple[str | None, TensorSpec]:
    """`[name=]SHAPE[:DTYPE[:HIGH]]` as (keyword name or None, spec); integers are drawn below HIGH.

    Raises `InputError` on any other text (with the nearest element type if only that is wrong) and on a size of 0.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise InputError(
            explain(
                f"{text!r} is not an input",
                next_step="write a shape such as 1x3x224x224, with :dtype and :upper-bound if it holds integers "
                "(1x16:int64:30522) and name= in front if it is a keyword (mask=1x16:bool)",
            )
        )
    dtype = match["dtype"] or "float32"
    if dtype not in DTYPES:
        close = nearest(dtype, DTYPES)
        raise InputError(
            explain(
                f"There is no element type {dtype!r}",
                where=f"input {text!r}",
                evidence=f"known: {', '.join(DTYPES)}",
                next_step=f"did you mean {close[0]!r}?" if close else "pick one of the known types",
            )
        )
    shape = tuple(int(size) for size in match["shape"].split("x"))
    if 0 in shape:
        raise InputError(
            explain(
                "An input without elements proves nothing",
                where=f"input {text!r}",
                next_step="write every size as 1 or more",
            )
        )
    return match["name"], TensorSpec(shape, DTYPES[dtype], max(0, int(match["high"] or 1) - 1))


def make(texts: Sequence[str], seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword example inputs from their texts, reproducible from the seed."""
    generator = torch.Generator().manual_seed(seed)
    positional: list[Tensor] = []
    keyword: dict[str, Tensor] = {}
    for text in texts:
        name, spec = parse(text)
        if name is None:
            positional.append(spec.make(generator))
        else:
            keyword[name] = spec.make(generator)
    return tuple(positional), keyword
