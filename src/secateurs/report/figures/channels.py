"""Channels of every group before and after a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateurs.choose.plan import Plan
from secateurs.report.figures.theme import BLUE, PALE, finish, panels, plotly


@dataclass(frozen=True)
class Widths:
    """Units of each group, in the plan's order: how many there were and how many stay; `frozen` where none may go."""

    names: tuple[str, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    frozen: tuple[bool, ...]


def widths(plan: Plan, *, frozen: bool = False) -> Widths:
    """What a plan leaves of every free group; with `frozen`, the groups that stay whole are listed too."""
    groups = [group for group in plan.groups if frozen or not group.frozen]
    return Widths(
        tuple(group.name for group in groups),
        tuple(group.size for group in groups),
        tuple(len(group.kept) for group in groups),
        tuple(group.frozen for group in groups),
    )


def draw_widths(plan: Plan) -> Any:
    """Two bars for each free group, one inside the other: before (pale) and after, with the share that stays.

    A Plotly figure. Raises `InputError` when Plotly is not installed.
    """
    found = widths(plan)
    go = plotly()
    figure = panels(1, 1, [f"channels that stay: {plan.criterion}, {plan.search}, {plan.budget}".rstrip(", ")])
    shares = [
        f"{after} of {before} ({after / before:.0%})" for before, after in zip(found.before, found.after, strict=True)
    ]
    hover = "%{y}: %{text}<extra></extra>"
    before = go.Bar(
        y=found.names,
        x=found.before,
        orientation="h",
        marker={"color": PALE},
        name="before",
        width=0.8,
        text=shares,
        textposition="outside",
        cliponaxis=False,
        hovertemplate=hover,
    )
    after = go.Bar(
        y=found.names,
        x=found.after,
        orientation="h",
        marker={"color": BLUE},
        name="after",
        width=0.5,
        customdata=shares,
        hovertemplate="%{y}: %{customdata}<extra></extra>",
    )
    figure.add_traces([before, after])
    figure.update_xaxes(title_text="channels (units of a group)", range=[0, 1.18 * max(found.before, default=1)])
    figure.update_yaxes(autorange="reversed", type="category", ticks="")
    figure = finish(figure, 170 + 30 * len(found.names), legend=True)
    left = 30 + 8 * max((len(name) for name in found.names), default=1)
    figure.update_layout(
        barmode="overlay", margin={"l": left, "b": 90}, legend={"y": -70 / (20 + 30 * len(found.names))}
    )
    return figure


__all__ = ["Widths", "draw_widths", "widths"]
