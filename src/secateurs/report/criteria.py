"""`compare_criteria`: which criterion says what removing a unit really does, on this model and this data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.base.loss import Loss
from secateurs.capture import capture
from secateurs.couple import couple
from secateurs.report.figures.theme import BLUE, GREY, finish, plotly
from secateurs.report.tables import as_text
from secateurs.score.criterion import CRITERIA
from secateurs.score.score import score
from secateurs.score.study import Correlation, correlation

ACROSS = 7
"""Criteria side by side in one table."""


@dataclass(frozen=True)
class CriteriaComparison:
    """Spearman correlations with the reference: `overall[criterion]` and `by_group[criterion][group]`.

    `scores[criterion][group]` are the numbers that were compared, the reference's own included; `skipped` says why a
    criterion is missing. Criteria are in the order of their overall correlation, best first.
    """

    reference: str
    overall: Mapping[str, Correlation]
    by_group: Mapping[str, Mapping[str, Correlation]]
    scores: Mapping[str, Mapping[str, tuple[float, ...]]] = field(repr=False)
    skipped: Mapping[str, str] = field(default_factory=dict)
    bootstrap: int = 1000
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data."""
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def tables(self) -> list[RenderableType]:
        """What `print` shows: overall with intervals, then by group."""
        parts: list[RenderableType] = [
            Text(f"Spearman correlation with {self.reference!r}, 95% bootstrap intervals over units"),
            self._overall_table(),
            *self._group_tables(),
        ]
        return [*parts, *(Text(f"Left out: {name}: {why}") for name, why in self.skipped.items())]

    def __str__(self) -> str:
        return as_text(self.tables())

    def _overall_table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in ("criterion", "all units", "interval", "median of groups"):
            table.add_column(name, justify="left" if name == "criterion" else "right")
        for name, found in self.overall.items():
            rhos = [item.rho for item in self.by_group[name].values() if item.rho is not None]
            span = "-" if found.low is None or found.high is None else f"{found.low:+.2f} to {found.high:+.2f}"
            table.add_row(Text(name), _rho(found.rho), span, _rho(float(np.median(rhos)) if rhos else None))
        return table

    def _group_tables(self) -> Iterator[Table]:
        """Groups down, criteria across, so many to a table that no number is broken over lines."""
        names = list(self.by_group)
        for some in (names[start : start + ACROSS] for start in range(0, len(names), ACROSS)):
            table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
            table.add_column("group", overflow="fold")
            for name in ("units", *some):
                table.add_column(Text(name), justify="right", overflow="fold", min_width=5)
            for group, reference in self.scores[self.reference].items():
                table.add_row(
                    Text(group), str(len(reference)), *(_rho(self.by_group[name][group].rho) for name in some)
                )
            yield table

    def plot_data(self) -> dict[str, Any]:
        """What `figure` draws: criteria, their overall correlation with interval, and a point per group."""
        return {
            "criteria": list(self.overall),
            "rho": [found.rho for found in self.overall.values()],
            "low": [found.low for found in self.overall.values()],
            "high": [found.high for found in self.overall.values()],
            "groups": {
                name: {group: found.rho for group, found in groups.items()} for name, groups in self.by_group.items()
            },
        }

    def figure(self) -> Any:
        """A Plotly figure: a bar per criterion with its interval, and a dot per group.

        Raises `InputError` when Plotly (extra `figures`) is not installed.
        """
        go = plotly()
        data = self.plot_data()
        drawn = [(name, found.rho, found) for name, found in self.overall.items() if found.rho is not None]
        known = [name for name, _, _ in drawn]
        error = {
            "array": [0 if found.high is None else found.high - rho for _, rho, found in drawn],
            "arrayminus": [0 if found.low is None else rho - found.low for _, rho, found in drawn],
        }
        bars = go.Bar(
            x=known, y=[rho for _, rho, _ in drawn], error_y=error, marker_color=BLUE, name="all units, 95% interval"
        )
        dots = [(name, rho, group) for name in known for group, rho in data["groups"][name].items() if rho is not None]
        points = go.Scatter(
            x=[name for name, _, _ in dots],
            y=[rho for _, rho, _ in dots],
            text=[group for _, _, group in dots],
            mode="markers",
            marker={"color": GREY, "size": 7, "opacity": 0.7},
            name="one group",
        )
        figure = go.Figure([bars, points])
        figure.update_yaxes(title=f"Spearman correlation with {self.reference}", range=[-1, 1])
        return finish(figure, 520, legend=True)


def _rho(rho: float | None) -> str:
    return "-" if rho is None else f"{rho:+.2f}"


def _rank(found: Correlation) -> float:
    """Best first; without a correlation last."""
    return 2.0 if found.rho is None else -found.rho


def compare_criteria(
    model: nn.Module,
    example_inputs: Any,
    criteria: Sequence[str] | None = None,
    *,
    data: Iterable[Any],
    loss: str | Loss = "cross_entropy",
    reference: str = "oracle",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batches: int | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    exclude: Iterable[str | type] = (),
    kwargs: Mapping[str, Any] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> CriteriaComparison:
    """How well each criterion ranks the units as `reference` does: Spearman's rho per group and over all units.

    `criteria` are registered names (default: all that apply to this model; what does not is in `skipped`), each with
    its `options` by name. Correlations over all units use each criterion's default normalizer, as a global search would
    (within a group it makes no difference). `data` gives batches `(inputs, target)`, of which the first `batches` are
    used; it is iterated once per criterion. Intervals are percentiles over `bootstrap` resamplings of the units.

    Raises `UnknownNameError` for an unknown name and `InputError` when a criterion that was asked for does not apply,
    when nothing can be removed from the model, or for arguments that cannot be used.
    """
    options = options or {}
    _check(criteria, options, bootstrap)
    graph = capture(model, example_inputs, kwargs=kwargs)
    groups = couple(graph, exclude=exclude)
    if not groups.free:
        raise InputError(explain("Nothing can be removed from this model", next_step="see `secateurs inspect`"))
    names = [name for name in (CRITERIA if criteria is None else criteria) if name != reference]
    rules = {name: CRITERIA[name] for name in (reference, *names)}
    found: dict[str, dict[str, Tensor]] = {}
    skipped: dict[str, str] = {}
    for name in rules:
        if on_stage is not None:
            on_stage(name)
        try:
            found[name] = score(
                groups, model, name, data=data, loss=loss, batches=batches, options=options.get(name), seed=seed
            )
        except InputError as error:
            if criteria is not None or name == reference:
                raise
            skipped[name] = str(error)
    scores = {name: {group: tuple(row.tolist()) for group, row in rows.items()} for name, rows in found.items()}
    truth = scores[reference]
    by_group: dict[str, dict[str, Correlation]] = {}
    overall: dict[str, Correlation] = {}
    for name in names:
        if name in scores:
            pairs = {group: (np.array(row), np.array(truth[group])) for group, row in scores[name].items()}
            by_group[name] = {
                group: correlation(a, b, bootstrap=bootstrap, seed=seed) for group, (a, b) in pairs.items()
            }
            a, b = (np.concatenate(side) for side in zip(*pairs.values(), strict=True))
            overall[name] = correlation(a, b, bootstrap=bootstrap, seed=seed)
    order = sorted(overall, key=lambda name: _rank(overall[name]))
    return CriteriaComparison(
        reference,
        {name: overall[name] for name in order},
        {name: by_group[name] for name in order},
        scores,
        skipped,
        bootstrap,
        seed,
    )


def _check(criteria: Any, options: Mapping[str, Any], bootstrap: Any) -> None:
    if isinstance(criteria, str):
        raise InputError(explain("`criteria` is a list of names", next_step=f"pass criteria=[{criteria!r}]"))
    for name in () if criteria is None else criteria:
        if not isinstance(name, str):
            raise InputError(
                explain(
                    f"{name!r} is no name of a criterion",
                    next_step="register a function of your own with `secateurs.score.criterion.criterion(name)`",
                )
            )
    for name, given in options.items():
        CRITERIA[name].check(given)
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int) or bootstrap < 1:
        raise InputError(explain(f"bootstrap={bootstrap!r} cannot be used", next_step="give an integer of at least 1"))


__all__ = ["CriteriaComparison", "compare_criteria"]
