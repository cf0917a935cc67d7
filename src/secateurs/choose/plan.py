"""`Plan`: the decision, as data that can be printed, saved, compared, composed and replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from secateurs.base.errors import PlanError, explain

FORMAT = 1


@dataclass(frozen=True)
class GroupDecision:
    """What happens to one group: `size` units before, `kept` the units that stay (ascending), `why` in words.

    `frozen` is True when none of its units could be removed.
    """

    name: str
    size: int
    kept: tuple[int, ...]
    why: str
    scores: tuple[float, ...] = ()
    frozen: bool = False


@dataclass(frozen=True)
class Plan:
    """Which indices of which tensors go.

    `graph_hash` names the graph that the plan was made for. `removed` is `{leaf name: {dim: [indices]}}` in that
    graph's indices, with tied tensors listed once. `before` and `after` are predicted counts (`macs`, `params`,
    `bytes`, ...). A plan holds no tensor and no code.
    """

    graph_hash: str
    removed: Mapping[str, Mapping[int, tuple[int, ...]]]
    groups: tuple[GroupDecision, ...] = ()
    before: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)
    criterion: str = ""
    search: str = ""
    budget: str = ""
    seed: int = 0
    unit: str = "heads"

    @property
    def empty(self) -> bool:
        """True when nothing is removed."""
        return not any(indices for dims in self.removed.values() for indices in dims.values())

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {self.before[name]:,} -> {self.after.get(name, 0):,}" for name in self.before)
        lines = [f"Plan for graph {self.graph_hash[:12]}: {counts}"]
        lines += [f"  {item.name}: {len(item.kept)} of {item.size}: {item.why}" for item in self.groups]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Stable text: the same plan gives the same bytes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan back from `to_json`. Raises `PlanError` on text that is not a plan of this format."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("format") != FORMAT:
                raise ValueError("unknown format number")
            data["removed"] = {
                str(leaf): {int(dim): tuple(int(i) for i in indices) for dim, indices in dims.items()}
                for leaf, dims in data["removed"].items()
            }
            data["groups"] = tuple(
                GroupDecision(**{**item, "kept": tuple(item["kept"]), "scores": tuple(item["scores"])})
                for item in data["groups"]
            )
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(
                explain(
                    "This is not a Secateurs plan", evidence=repr(error), next_step="write plans with `Plan.to_json`"
                )
            ) from error
