"""`Result`: what `prune` made and everything that is known about it; printing it tells the story."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import floor
from typing import Any

import torch
from torch import nn

from secateurs._version import __version__
from secateurs.capture.graph import Graph
from secateurs.choose.budget import Budget
from secateurs.choose.plan import Plan
from secateurs.cost import Cost
from secateurs.cut.handover import HandOver
from secateurs.cut.prove import Proof
from secateurs.device import Comparison
from secateurs.device.environment import cpu_name, usable_cores
from secateurs.report.tables import as_text, result_tables
from secateurs.train.progress import EpochRow

METRICS = ("macs", "params", "bytes", "peak_memory")


@dataclass(frozen=True)
class Stage:
    """One finished step of the story and how long it took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Frozen:
    """A group that stayed whole, and why."""

    name: str
    size: int
    why: str


@dataclass(frozen=True, repr=False)
class Result:
    """A cut network with its plan, proof, costs and history.

    `model` is the small network, `original` the untouched one. `form` is `"native"` (the original's own classes) or
    `"graph"` (the rewritten program as a module, because of `why_graph`). `accuracy` maps steps (`original`, `cut`,
    `handed over`, `reconstructed` or `recalibrated`, `fine-tuned`) to what `evaluate` returned; `measured` is set
    when a device was given, `handed` when biases were handed over. `recipe` is the request, `inputs` the shapes and
    types it was made for (None if they cannot be written down).
    """

    model: nn.Module
    original: nn.Module
    plan: Plan
    form: str
    proof: Proof
    before: Cost
    after: Cost
    budget: Budget
    graph: Graph
    accuracy: Mapping[str, float] = field(default_factory=dict)
    measured: Comparison | None = None
    handed: HandOver | None = None
    frozen: tuple[Frozen, ...] = ()
    history: tuple[Stage, ...] = ()
    training: tuple[EpochRow, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    inputs: Any = None
    why_graph: str = ""
    seed: int = 0

    @property
    def met(self) -> bool:
        """True when every limit of the budget holds for `model`."""
        return not self.over

    @property
    def over(self) -> tuple[str, ...]:
        """What is over the budget: a count, or a group that rounding or a lower bound on widths kept wider."""
        limits = self.budget.absolute({metric: getattr(self.before, metric) for metric in METRICS})
        counts = {metric: getattr(self.after, metric) for metric in limits}
        over = [f"{metric} is {count:,}" for metric, count in counts.items() if count > limits[metric]]
        if (share := self.budget.channels) is not None:
            over += [
                f"{group.name} keeps {len(group.kept)} of {group.size}"
                for group in self.plan.groups
                if not group.frozen and len(group.kept) > max(1, group.size - floor((1 - share) * group.size + 0.5))
            ]
        return tuple(over)

    def report(self) -> dict[str, Any]:
        """The whole story as JSON data, in the order in which it is told."""
        return {
            "budget": str(self.budget),
            "met": self.met,
            "over": list(self.over),
            "form": self.form,
            "why_graph": self.why_graph,
            "proof": asdict(self.proof),
            "handed_over": None if self.handed is None else self.handed.to_dict(),
            "cost": {metric: [getattr(self.before, metric), getattr(self.after, metric)] for metric in METRICS},
            "measured": self._measured(),
            "accuracy": dict(self.accuracy),
            "layers": [
                {"name": group.name, "before": group.size, "after": len(group.kept), "why": group.why}
                for group in self.plan.groups
            ],
            "frozen": [asdict(group) for group in self.frozen],
            "training": [asdict(row) for row in self.training],
            "history": [asdict(stage) for stage in self.history],
            "reproduce": self._reproduce(),
            "notes": list(self.graph.notes),
        }

    def _measured(self) -> dict[str, Any] | None:
        if self.measured is None:
            return None
        before, after = self.measured.baseline, self.measured.candidate
        numbers = {"device": after.device, "before_seconds": before.median, "after_seconds": after.median}
        return {**numbers, "environment": str(after.environment), **self.measured.to_dict()}

    def _reproduce(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "criterion": self.plan.criterion,
            "search": self.plan.search,
            "graph": self.plan.graph_hash[:12],
            "secateurs": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cpu": f"{cpu_name()} ({usable_cores()} cores)",
        }

    def __repr__(self) -> str:
        kept = f"{self.after.macs:,} of {self.before.macs:,} MACs"
        return f"Result({type(self.model).__name__}, {kept}, met={self.met}, form={self.form!r})"

    def __str__(self) -> str:
        return as_text(result_tables(self.report()))
