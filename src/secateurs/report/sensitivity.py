"""`Sensitivity`: what happens to the metric when one layer alone loses a fraction of what it has."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from secateurs.base.errors import InputError, explain
from secateurs.report.tables import as_text, bar

FORMAT = 1
RECORDS = ("last_pass", "first_fail")
CHANNEL = "channel"
"""The pattern that silences whole channels of coupled layers."""

ROUNDING = 1e-9
"""By so much may a metric be lower than the limit and count as within it: 0.9 - 0.1 is a little more than 0.8."""

COLUMNS = 8
"""Most fractions that the printed table shows."""


@dataclass(frozen=True)
class Sensitivity:
    """A table layer x fraction -> metric (higher is better), each layer pruned alone and not retrained.

    `metric[layer][i]` belongs to `fractions[i]`, ascending; None where the scan had left the layer, because it had
    fallen by more than `stop_at_drop`. `baseline` is the metric of the model as it is. Layers are weights by parameter
    name; with pattern `"channel"`, groups of coupled channels. `sizes` are their weights (channels). `tolerance`, if
    given, is what `largest` and `targets` allow when they are not told.
    """

    pattern: str
    fractions: tuple[float, ...]
    baseline: float
    metric: Mapping[str, tuple[float | None, ...]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    importance: str = ""
    tolerance: float | None = None
    stop_at_drop: float | None = None
    seed: int = 0

    def largest(self, tolerance: float | None = None, *, record: str = "last_pass") -> dict[str, float]:
        """Per layer the largest fraction below the first failure; 0.0 if the smallest one fails already.

        A fraction fails when the metric is more than `tolerance` below the baseline. Curves need not fall steadily:
        what passes again behind the first failure is luck and does not count. `record="first_fail"` gives the failing
        fraction itself, as the algorithm of Xu, Park, Brick (Hybrid Pruning, 2018) is printed. A layer that never
        fails has the last fraction.

        Raises `InputError` for a tolerance that is missing, negative, or wider than what the scan looked at.
        """
        allowed = self._allowed(tolerance)
        if record not in RECORDS:
            raise InputError(
                explain(f"record={record!r} cannot be used", next_step=f"give one of {', '.join(RECORDS)}")
            )
        return {layer: self._of(layer, allowed, record) for layer in self.metric}

    def targets(self, tolerance: float | None = None, *, record: str = "last_pass") -> dict[str, float]:
        """`largest` without the layers that stand nothing: what `sec.masks` and `sec.sparsify` take as `sparsity`.

        Raises `InputError` for a scan of channels, which are more than weights of one layer.
        """
        if self.pattern == CHANNEL:
            raise InputError(
                explain(
                    "Channels do not become zeros in one layer's weights",
                    evidence="the scan is of channels of coupled layers",
                    next_step="cut them with `sec.prune`, or scan with a pattern of weights",
                )
            )
        return {layer: share for layer, share in self.largest(tolerance, record=record).items() if share > 0}

    def removed(self, tolerance: float | None = None, *, record: str = "last_pass") -> float:
        """The share of all weights (channels) that `targets` would make zero in all layers together."""
        return self._share(self.largest(tolerance, record=record))

    def _share(self, found: Mapping[str, float]) -> float:
        total = sum(self.sizes.values())
        return sum(found[layer] * size for layer, size in self.sizes.items()) / total if total else 0.0

    def _allowed(self, tolerance: float | None) -> float:
        allowed = self.tolerance if tolerance is None else tolerance
        if allowed is None or not math.isfinite(allowed) or allowed < 0:
            raise InputError(
                explain(
                    f"tolerance={allowed!r} cannot be used",
                    next_step="say how far below the baseline the metric may fall, such as 0.01",
                )
            )
        return allowed

    def _of(self, layer: str, allowed: float, record: str) -> float:
        passed = 0.0
        for fraction, metric in zip(self.fractions, self.metric[layer], strict=True):
            if metric is None:
                raise InputError(
                    explain(
                        f"How `{layer}` bears a loss of {allowed:g} is not known",
                        evidence=f"the scan left it when it had lost more than {self.stop_at_drop}",
                        next_step="ask for a smaller tolerance, or scan with a larger stop_at_drop",
                    )
                )
            if metric < self.baseline - allowed - ROUNDING:
                return fraction if record == "first_fail" else passed
            passed = fraction
        return passed

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data."""
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        """Stable text: the same table gives the same bytes."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The table back from `to_json`. Raises `InputError` on text that is none."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("format") != FORMAT:
                raise ValueError("unknown format number")
            data["fractions"] = tuple(float(item) for item in data["fractions"])
            data["baseline"] = float(data["baseline"])
            data["metric"] = {
                str(layer): tuple(None if item is None else float(item) for item in row)
                for layer, row in data["metric"].items()
            }
            data["sizes"] = {str(layer): int(size) for layer, size in data["sizes"].items()}
            if any(len(row) != len(data["fractions"]) for row in data["metric"].values()):
                raise ValueError("a row is not as long as the fractions")
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                explain(
                    "This is not a sensitivity table",
                    evidence=repr(error),
                    next_step="write one with `Sensitivity.to_json` or `secateurs sensitivity --out`",
                )
            ) from error

    def tables(self, tolerance: float | None = None, *, record: str = "last_pass") -> list[RenderableType]:
        """What `print` shows: the metric by layer and fraction, and what each layer bears."""
        allowed = self.tolerance if tolerance is None else tolerance
        found = None if allowed is None else self.largest(allowed, record=record)
        parts: list[RenderableType] = [
            Text(self._heading()),
            self._table(found, f"within {allowed:g}" if found else ""),
        ]
        if found:
            parts.append(Text(self._story(found, f"{allowed:g}")))
        return parts

    def __str__(self) -> str:
        return as_text(self.tables())

    def _heading(self) -> str:
        ranked = f", lowest {self.importance} first" if self.importance else ""
        what = "channels of coupled layers silenced" if self.pattern == CHANNEL else f"zeros in pattern {self.pattern}"
        return f"Baseline {self.baseline:.4f}. Each layer alone, {what}{ranked}, not retrained; metric by fraction:"

    def _table(self, found: Mapping[str, float] | None, heading: str) -> Table:
        shown = _spread(len(self.fractions))
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("layer", overflow="fold")
        columns = [f"{100 * self.fractions[place]:.3g}%" for place in shown]
        unit = "channels" if self.pattern == CHANNEL else "weights"
        for name in (unit, *columns, *([] if found is None else [heading])):
            table.add_column(name, justify="right")
        for layer, row in self.metric.items():
            cells = ["-" if (value := row[place]) is None else f"{value:.3f}" for place in shown]
            last = [] if found is None else [f"{100 * found[layer]:.3g}% {bar(found[layer])}"]
            size = f"{self.sizes[layer]:,}" if layer in self.sizes else ""
            table.add_row(*map(Text, (layer.removesuffix(".weight"), size, *cells, *last)))
        return table

    def _story(self, found: Mapping[str, float], allowed: str) -> str:
        least, most = (_named(found, end(found.values())) for end in (min, max))
        unit = "channels" if self.pattern == CHANNEL else "weights"
        spread = f"least: {least}; most: {most}" if least != most else f"all the same: {least}"
        return (
            f"What each layer bears within {allowed} of the baseline, {spread}. All layers at once would lose "
            f"{self._share(found):.1%} of the {unit}, and more of the metric than each alone."
        )


def _named(found: Mapping[str, float], share: float) -> str:
    """The first layer with this share, and how many more have it."""
    layers = [layer.removesuffix(".weight") for layer, value in found.items() if value == share]
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return f"{layers[0]}{more} ({100 * share:.3g}%)"


def _spread(count: int) -> list[int]:
    """At most `COLUMNS` of `count` places, evenly, the last one among them."""
    shown = min(count, COLUMNS)
    return [round((number + 1) * count / shown) - 1 for number in range(shown)]


__all__ = ["CHANNEL", "RECORDS", "ROUNDING", "Sensitivity"]
