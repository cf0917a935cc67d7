"""Quantities as people write them: `"20ms"`, `"300 KB"`, `"1.23 M"`, `"5 mJ"`.

Inside the package a quantity is a plain number in its base unit: a count, bytes, seconds, joules. Prefixes are
decimal (1 KB is 1000 bytes); 1 KiB is 1024 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from secateurs.base.errors import InputError, explain

_NUMBER = re.compile(r"\s*(?P<number>\d[\d_,]*\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(?P<symbol>[^\d\s.,]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """One kind of quantity. `symbols` maps what is printed to its size in the base unit; `aliases` are read only."""

    kind: str
    symbols: Mapping[str, float]
    aliases: Mapping[str, float]
    example: str

    def parse(self, text: str) -> float:
        """The quantity in the base unit. A bare number is in the base unit. Symbols are case-sensitive (`mJ`, `MJ`).

        Raises `InputError` when the text is no number with one of this kind's symbols.
        """
        known = {**self.symbols, **self.aliases}
        match = _NUMBER.fullmatch(text)
        if match is None or match["symbol"] not in {*known, ""}:
            raise InputError(
                explain(
                    f"{text!r} is not {self.kind}",
                    evidence=f"known units: {', '.join(symbol for symbol in known if symbol)}",
                    next_step=f"write a number and a unit, such as {self.example!r}",
                )
            )
        return float(re.sub("[_,]", "", match["number"])) * (known[match["symbol"]] if match["symbol"] else 1)

    def format(self, value: float) -> str:
        """Three significant digits in the unit that keeps the number short: `1234567` -> `"1.23 M"`."""
        rounded = float(f"{value:.3g}")
        fitting = [symbol for symbol, size in self.symbols.items() if abs(rounded) >= size]
        symbol = max(fitting, key=lambda name: self.symbols[name], default=min(self.symbols, key=self._size))
        number = rounded / self.symbols[symbol]
        digits = f"{number:#.3g}".rstrip("0").rstrip(".") if abs(number) < 1000 else f"{number:,.0f}"
        return f"{digits} {symbol}".strip()

    def _size(self, symbol: str) -> float:
        return self.symbols[symbol]


COUNT = Unit("a count", {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}, {"K": 1e3, "B": 1e9}, "1.5 M")
"""Multiply-accumulates, parameters, instructions."""

BYTES = Unit(
    "a number of bytes",
    {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    {"kB": 1e3, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    "300 KB",
)
TIME = Unit("a time", {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}, {"µs": 1e-6, "μs": 1e-6}, "20ms")
"""Seconds."""

ENERGY = Unit("an energy", {"pJ": 1e-12, "nJ": 1e-9, "uJ": 1e-6, "mJ": 1e-3, "J": 1}, {"µJ": 1e-6, "μJ": 1e-6}, "5 mJ")
"""Joules."""
