"""What a pattern is: which weights of a tensor live and die together. One file each in `patterns/`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import prod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.base.registry import Registry
from secateurs.sparsity.layout import Layout


@dataclass(frozen=True)
class Grouping:
    """The groups of one tensor.

    `ids`: int64 of the tensor's shape, the group that owns each weight, 0..count-1, or -1 for a weight that is always
    zero. `blocks`, for patterns that fix how many groups stay: int64 `[count]`, the block in which each group competes;
    every block keeps its best `quota` groups (all of them where it has fewer).
    """

    ids: Tensor
    count: int
    blocks: Tensor | None = None
    quota: int = 0

    @property
    def sizes(self) -> Tensor:
        """How many weights each group has, int64 `[count]`; groups at a tail may be smaller."""
        owned = self.ids.flatten()
        return torch.bincount(owned[owned >= 0], minlength=self.count)

    def spread(self, groups: Tensor) -> Tensor:
        """A bool per group as a bool per weight."""
        padded = torch.cat([groups, groups.new_zeros(1)])
        return padded[self.ids]

    def kept(self, mask: Tensor) -> Tensor:
        """The groups, bool `[count]`, of which at least one weight is kept."""
        owned = self.ids[mask]
        found = torch.zeros(self.count, dtype=torch.bool)
        found[owned[owned >= 0]] = True
        return found


@dataclass(frozen=True)
class Pattern(ABC):
    """Which weights live and die together. A pattern is plain data; `str(pattern)` and `parse_pattern` are inverse.

    A subclass says how the groups lie in a tensor in canonical form `[G, O, I, *K]` (see `Layout`). `importance` is the
    default measure of a group. A pattern that `decides` fixes itself how many groups stay, as 2:4 does. `example` shows
    how one is written.
    """

    name: ClassVar[str] = ""
    example: ClassVar[str] = ""
    importance: ClassVar[str] = "l1"
    decides: ClassVar[bool] = False

    @abstractmethod
    def arrange(self, shape: tuple[int, ...]) -> Grouping:
        """The groups of a weight of canonical shape `(G, O, I, *K)`."""

    def groups(self, shape: tuple[int, ...], layout: Layout | None = None) -> Grouping:
        """The groups of a weight stored with this shape. Raises `InputError` when it cannot have this pattern."""
        layout = layout or Layout()
        found = self.arrange(layout.shape(tuple(shape)))
        return Grouping(layout.stored(found.ids).contiguous(), found.count, found.blocks, found.quota)

    def __str__(self) -> str:
        given = [str(getattr(self, item.name)) for item in fields(self) if getattr(self, item.name) is not None]
        return f"{self.name}({','.join(given)})" if given else self.name


P = TypeVar("P", bound=type[Pattern])
PATTERNS: Registry[type[Pattern]] = Registry("pattern")


def pattern(name: str) -> Callable[[P], P]:
    """Class decorator: `@pattern("rows")` names and registers a pattern."""

    def add(kind: P) -> P:
        kind.name, kind.example = name, kind.example or name
        PATTERNS.register(name)(kind)
        return kind

    return add


_SPELLED = re.compile(r"\s*(?P<name>[\w:]+)\s*(?:\((?P<given>[^()]*)\))?\s*")
_RATIO = re.compile(r"(\d+):(\d+)")


def parse_pattern(text: str | Pattern) -> Pattern:
    """The pattern that a string spells: `"weight"`, `"rows(4)"`, `"block(4,4)"`, `"2:4"`, `"2:4(output)"`.

    Raises `UnknownNameError` for an unknown name and `InputError` for arguments that it does not take.
    """
    if isinstance(text, Pattern):
        return text
    found = _SPELLED.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise _unreadable(text, "write a name, with numbers in parentheses if it takes any, such as 'block(4,4)'")
    name, given = found["name"], [item.strip() for item in (found["given"] or "").split(",") if item.strip()]
    ratio = _RATIO.fullmatch(name)
    if ratio:
        name, given = "n:m", [*ratio.groups(), *given]
    kind = PATTERNS[name]
    try:
        return kind(*[int(item) if re.fullmatch(r"-?\d+", item) else item for item in given])
    except TypeError:
        taken = ", ".join(item.name for item in fields(kind)) or "nothing"
        raise _unreadable(text, f"`{name}` takes {taken}: write {kind.example!r}") from None


def _unreadable(text: object, next_step: str) -> InputError:
    return InputError(explain(f"{text!r} does not spell a pattern", next_step=next_step))


def check_size(of: Pattern, name: str, value: object, least: int = 1) -> None:
    """Raises `InputError` unless the pattern's number is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            explain(
                f"{name}={value!r} cannot be used",
                where=f"pattern `{of.name}`",
                next_step=f"give an integer of at least {least}",
            )
        )


def leading(shape: tuple[int, ...], axes: int) -> Grouping:
    """One group per index of the first `axes` axes; the others lie within it."""
    count = prod(shape[:axes])
    ids = torch.arange(count).reshape(*shape[:axes], *[1] * (len(shape) - axes))
    return Grouping(ids.expand(shape), count)


def tiles(shape: tuple[int, ...], rows: int, columns: int) -> Grouping:
    """Tiles of `rows` x `columns` of each group's matrix `[O, I * prod(K)]`; at the ends they are smaller."""
    groups, outputs, width = shape[0], shape[1], prod(shape[2:])
    down, across = -(-outputs // rows), -(-width // columns)
    group = torch.arange(groups).reshape(-1, 1, 1)
    row, column = torch.arange(outputs).reshape(1, -1, 1) // rows, torch.arange(width).reshape(1, 1, -1) // columns
    return Grouping(((group * down + row) * across + column).reshape(shape), groups * down * across)


__all__ = ["PATTERNS", "Grouping", "Pattern", "check_size", "leading", "parse_pattern", "pattern", "tiles"]
