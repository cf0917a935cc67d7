"""Packed files that hold a program, and what comes of using one: loading, running, loading into a class."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import secateurs as sec
from secateurs.base.errors import ArtifactError, SecateursError
from secateurs.base.seeds import seeded

MOST = 1 << 26
"""Of sizes multiplied: numbers among the arguments of an operator and entries of its two largest tensors."""

CLEAN = (SecateursError, RuntimeError, IndexError, TypeError, ValueError)
"""What an operator of PyTorch raises that does not take its arguments."""


class Residual(nn.Module):
    """Convolutions, a batch norm, an addition, a reshape that follows the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        found: Tensor = self.head(nn.functional.max_pool2d(x, 2).reshape(x.shape[0], -1))
        return found


class Attending(nn.Module):
    """Attention of two heads, a constant table of positions, tied embedding and head, a dict for a result."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.norm, self.mix, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, scale: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens) + torch.arange(tokens.shape[1]).float()[:, None].sin()
        parts = self.mix(self.norm(x)).view(tokens.shape[0], tokens.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + nn.functional.gelu(self.out(mixed.transpose(1, 2).flatten(2))) * scale
        return {"logits": self.head(x), "mean": x.mean(1).softmax(-1)}


CALLS: Mapping[type[nn.Module], Mapping[str, Tensor]] = {
    Residual: {"x": torch.linspace(-1, 1, 64).reshape(2, 2, 4, 4)},
    Attending: {"tokens": torch.tensor([[1, 2, 3], [4, 5, 11]]), "scale": torch.tensor([1.5])},
}


@dataclass(frozen=True)
class Programmed:
    """A sound file with its program, the class that it was made of, and what the model returned."""

    data: bytes
    build: type[nn.Module]
    output: tuple[bytes, ...]


@cache
def sound_programs() -> tuple[Programmed, ...]:
    """Two networks, packed as they are, with shared and pruned weights, and as integers."""
    found: list[Programmed] = []
    for build, call in CALLS.items():
        with seeded(1):
            model, sparse = build().eval(), build().eval()
        with torch.no_grad():
            for parameter in (item for item in sparse.parameters() if item.dim() > 1):
                parameter[parameter.abs() < parameter.abs().median()] = 0
        for subject, how in ((model, {}), (sparse, {"share": 3}), (sparse, {"integers": 4, "biases": 8})):
            path = _folder() / "sound.sec"
            sec.pack(subject, path, example_inputs=call, metadata={"by": "hostile"}, **how)  # type: ignore[arg-type]
            found.append(Programmed(path.read_bytes(), build, _run(sec.unpack(path), call)))
    return tuple(found)


def used(
    data: bytes, sound: Programmed, values: Mapping[str, tuple[NDArray[Any], str]], limit: int, *, same: bool
) -> str:
    """What comes of a file with these values and types by name; `same`: nothing in it was changed.

    Raises `AssertionError` for a load that is wrong, one that does more than load, or errors that are not clean.
    """
    path = _folder() / "mutant.sec"
    path.unlink(missing_ok=True)  # it may still be mapped
    path.write_bytes(data)
    modules = len(sys.modules)
    alone = _unpacked(path, None, limit)
    if alone is None:  # one function refuses a program with and without a class: every fourth is tried
        assert data[-1] % 4 or _unpacked(path, sound.build, limit) is None, "a class took what was refused"
        assert not same, "a sound program was refused"
        return "program refused"
    own = _unpacked(path, sound.build, limit)
    expected = {name: _tensor(*item) for name, item in values.items()}
    assert len(sys.modules) == modules, "something was imported"
    assert torch.is_grad_enabled(), "gradients were turned off"
    if own is not None:
        assert isinstance(own, sound.build)
        _check_same(own.state_dict(), expected)
    fits = "fits the class" if own is not None else "does not fit the class"
    if not isinstance(alone, nn.Module):
        _check_same(alone, expected)
        assert alone.keys() == expected.keys(), "tensors are missing"
        return f"no program, {fits}"
    _check_same(alone.state_dict(), expected)
    came = _ran(alone, CALLS[sound.build])
    assert not same or (came == sound.output and own is not None), f"a sound program does something else: {came}"
    return f"{came if isinstance(came, str) else 'runs'}, {fits}"


def _unpacked(path: Path, build: type[nn.Module] | None, limit: int) -> Any:
    try:
        return sec.unpack(path, build, limit=limit)
    except ArtifactError:
        return None


def _ran(model: nn.Module, call: Mapping[str, Tensor]) -> tuple[bytes, ...] | str:
    """The output, or what stopped the run."""
    try:
        with warnings.catch_warnings(), Tight():  # type: ignore[no-untyped-call]
            warnings.simplefilter("ignore")
            return _run(model, call)
    except TooMuch:
        return "is stopped"
    except CLEAN:
        return "raises"
    finally:
        assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32, "settings were changed"


def _run(model: Any, call: Mapping[str, Tensor]) -> tuple[bytes, ...]:
    with torch.no_grad():
        found = model(**{name: tensor.clone() for name, tensor in call.items()})
    return tuple(_bytes(item) for item in pytree.tree_leaves(found) if isinstance(item, Tensor))


class TooMuch(Exception):
    """An operator was to do more than `Tight` lets it."""


class Tight(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops a run before an operator that might take long or much: a program may ask for as much as it likes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        work, sizes = 1.0, [1, 1]
        for item in _leaves((*args, *kwargs.values())):
            if isinstance(item, Tensor):
                sizes.append(item.numel())
            elif isinstance(item, (int, float)) and not isinstance(item, bool) and abs(item) > 1:
                work *= min(abs(item), MOST + 1)
            elif isinstance(item, float) and item and "range" in str(func):  # a step
                work /= abs(item)
        sizes.sort()
        if work * max(1, sizes[-1]) * max(1, sizes[-2]) > MOST:
            raise TooMuch(str(func))
        return func(*args, **kwargs)


def _leaves(tree: Any) -> Iterator[Any]:
    for item in tree:
        if isinstance(item, (list, tuple)):
            yield from _leaves(item)
        else:
            yield item


def _tensor(values: NDArray[Any], dtype: str) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    found = torch.from_numpy(np.array(values))
    return found.view(kind) if found.dtype in (torch.uint8, torch.uint16) and kind.is_floating_point else found.to(kind)


def _check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in found.items():
        other = expected[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), f"`{name}` is of another type or shape"
        assert _bytes(tensor) == _bytes(other), f"`{name}` has other values"


def _bytes(tensor: Tensor) -> bytes:
    if tensor.layout != torch.strided:
        return str(tensor).encode()
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@cache
def _folder() -> Path:
    _kept.append(TemporaryDirectory())
    return Path(_kept[0].name)


_kept: list[TemporaryDirectory[str]] = []
"""Removed when the process ends."""


__all__ = ["Programmed", "Tight", "TooMuch", "sound_programs", "used"]
