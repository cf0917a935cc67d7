"""What the rows of the one-shot comparison add up to: tables, data of a plot, and whether the bar is met.

A row is a dict: `network`, `criterion`, `search`, `macs` (the share that was asked for), then either `refused` (why
nothing was cut) or `macs_left` and `accuracy` (`original`, `cut`, `recalibrated`, `reconstructed`; None for a step that
does not apply) and the seconds of each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from secateurs.report.figures.theme import BLUE, GREY, INK, ORANGE, finish, panels, plotly

Row = Mapping[str, Any]
Key = tuple[str, str, float, str]
"""Network, criterion, share of the MACs that may stay, search."""

STEPS = ("cut", "recalibrated", "reconstructed")
BAR = {"network": "resnet56", "macs": 0.7, "points": 2.0}
"""At 30 % fewer MACs the best criterion and reconstruction, without training, lose at most two points."""


def key(row: Row) -> Key:
    return row["network"], row["criterion"], row["macs"], row["search"]


def missing(wanted: Iterable[Key], rows: Iterable[Row]) -> list[Key]:
    """The cells that no row has, in the order in which they are wanted."""
    done = {key(row) for row in rows}
    return [cell for cell in wanted if cell not in done]


def merged(rows: Sequence[Row], new: Row) -> list[Row]:
    """The rows with `new` in place of the one of the same cell, or at the end."""
    return [*(row for row in rows if key(row) != key(new)), new]


def best_first(rows: Iterable[Row]) -> list[Row]:
    """By the accuracy after reconstruction, then after the cut; what was refused last, then by name."""

    def rank(row: Row) -> tuple[float, float, str]:
        found = row.get("accuracy")
        return (-found["reconstructed"], -found["cut"], row["criterion"]) if found else (1.0, 1.0, row["criterion"])

    return sorted(rows, key=rank)


def blocks(rows: Iterable[Row]) -> dict[tuple[str, float], list[Row]]:
    """The rows of each network and share, best first; networks in the order in which they came, small cuts first."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row["network"], row["macs"]), []).append(row)
    networks = list(dict.fromkeys(network for network, _ in found))
    order = sorted(found, key=lambda block: (networks.index(block[0]), -block[1]))
    return {block: best_first(found[block]) for block in order}


def bar(rows: Iterable[Row]) -> dict[str, Any]:
    """The best row at the bar's network and share, the points it loses, and whether that is few enough."""
    found = [row for row in blocks(rows).get((BAR["network"], BAR["macs"]), []) if "accuracy" in row]
    if not found:
        return {**BAR, "met": False, "best": None}
    accuracy = found[0]["accuracy"]
    lost = round(100 * (accuracy["original"] - accuracy["reconstructed"]), 2)
    return {**BAR, "best": found[0]["criterion"], "points_lost": lost, "met": lost <= BAR["points"]}


def tables(rows: Iterable[Row]) -> list[Table]:
    """A table for each network and share, one line per criterion, best first."""
    return [_table(network, macs, mine) for (network, macs), mine in blocks(rows).items()]


def _table(network: str, macs: float, rows: Sequence[Row]) -> Table:
    original = next((f"{row['accuracy']['original']:.1%}" for row in rows if "accuracy" in row), "-")
    table = Table(title=f"{network}, {1 - macs:.0%} fewer MACs (original {original})", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("criterion", "search", "MACs left", *STEPS, "scoring, CPU s", "images"):
        table.add_column(name, justify="left" if name in ("criterion", "search") else "right")
    for row in rows:
        if "refused" in row:
            table.add_row(row["criterion"], row["search"], "refused", *["-"] * (len(STEPS) + 2))
            continue
        steps = ["-" if row["accuracy"][step] is None else f"{row['accuracy'][step]:.1%}" for step in STEPS]
        seconds, images = f"{row['scoring']['cpu_seconds']:.1f}", str(row["scoring"]["images"])
        table.add_row(row["criterion"], row["search"], f"{row['macs_left']:.1%}", *steps, seconds, images)
    return table


def plot_data(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A panel for each network and share: criteria, best first, and the accuracy after each step, None where absent."""
    return [
        {
            "network": network, "macs": macs, "original": mine[0]["accuracy"]["original"],
            "criteria": [row["criterion"] for row in mine],
            **{step: [row["accuracy"][step] for row in mine] for step in STEPS},
        }
        for (network, macs), mine in blocks(row for row in rows if "accuracy" in row).items()
    ]  # fmt: skip


def figure(data: Sequence[Mapping[str, Any]], columns: int = 2) -> Any:
    """A Plotly figure of `plot_data`: a panel each, a dot per criterion and step, the original as a line.

    Raises `InputError` when Plotly (extra `figures`) is not installed.
    """
    go = plotly()
    titles = [f"{panel['network']}, {1 - panel['macs']:.0%} fewer MACs" for panel in data]
    lines = max(1, -(-len(data) // columns))
    drawn = panels(lines, columns, titles, horizontal_spacing=0.16, vertical_spacing=0.12 / lines)
    for number, panel in enumerate(data):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        for step, colour in zip(STEPS, (GREY, ORANGE, BLUE), strict=True):
            dots = go.Scatter(
                x=panel[step], y=panel["criteria"], mode="markers", name=step, legendgroup=step,
                showlegend=number == 0, marker={"color": colour, "size": 9},
                hovertemplate="%{y}: %{x:.1%}<extra>" + step + "</extra>",
            )  # fmt: skip
            drawn.add_trace(dots, **place)
        drawn.add_vline(x=panel["original"], line={"color": INK, "width": 1, "dash": "dot"}, **place)
        drawn.update_xaxes(range=[0, 1], tickformat=".0%", **place)
        drawn.update_yaxes(autorange="reversed", **place)
    most = max((len(panel["criteria"]) for panel in data), default=1)
    finished = finish(drawn, 120 + lines * (80 + 22 * most), legend=True)
    finished.update_layout(legend={"y": 1.0 + 60 / finished.layout.height, "yanchor": "bottom"}, margin={"t": 110})
    return finished
