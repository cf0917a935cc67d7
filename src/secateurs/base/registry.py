"""Named things that a user can choose by a string: one file and one decorator line adds one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from secateurs.base.errors import UnknownNameError, explain, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to things of one kind. Registering a name twice is an error; so is asking for an unknown one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `@criteria.register("l1")`."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        close = nearest(name, self._entries)
        raise UnknownNameError(
            explain(
                f"There is no {self.kind} named {name!r}",
                evidence=f"known: {', '.join(sorted(self._entries)) or 'none'}",
                next_step=f"did you mean {' or '.join(map(repr, close))}?" if close else "pick one of the known names",
            )
        )

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
