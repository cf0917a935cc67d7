"""How all pictures look: Plotly when it is there, colours that everybody can tell apart, one layout."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from secateurs.base.errors import InputError, explain

BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D55E00", "#8A8A8A"
"""From the palette of Okabe and Ito, 2008; red (vermilion) always marks what is flagged or goes."""

INK, PALE = "#222222", "#D9D9D9"
WIDTH = 1000
"""Pixels across every picture."""

FONT = {"family": "DejaVu Sans, Verdana, Arial, sans-serif", "size": 14, "color": INK}


def plotly(part: str = "graph_objects") -> ModuleType:
    """`plotly.<part>`. Raises `InputError`, naming the extra, when Plotly is not installed."""
    try:
        return importlib.import_module(f"plotly.{part}")
    except ImportError as error:
        raise InputError(
            explain(
                "Pictures need Plotly, which is not installed",
                evidence=str(error),
                next_step="pip install 'secateurs[figures]'; the data functions work without it",
            )
        ) from error


def panels(rows: int, columns: int, titles: list[str], **options: Any) -> Any:
    """An empty figure of `rows` x `columns` panels with their titles."""
    return plotly("subplots").make_subplots(rows=rows, cols=columns, subplot_titles=titles, **options)


def finish(figure: Any, height: int, *, legend: bool = False) -> Any:
    """The common layout."""
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=height,
        font=FONT,
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"},
        hoverlabel={"font": FONT},
        bargap=0.15,
    )
    figure.update_annotations(font={"size": 15})
    return figure


def picture_axes(figure: Any, row: int, column: int, rows: int, columns: int, cell: tuple[int, int]) -> None:
    """Axes of a grid of tiles: no ruler, the number of each line's first tile at the left, square pixels."""
    height, _ = cell
    number = (row - 1) * len(figure._grid_ref[0]) + column
    figure.update_xaxes(visible=False, constrain="domain", row=row, col=column)
    figure.update_yaxes(
        autorange="reversed",
        scaleanchor=f"x{number if number > 1 else ''}",
        constrain="domain",
        showgrid=False,
        zeroline=False,
        ticks="",
        tickvals=[line * height + height / 2 for line in range(rows)],
        ticktext=[str(line * columns) for line in range(rows)],
        row=row,
        col=column,
    )


__all__ = ["BLUE", "GREY", "INK", "ORANGE", "PALE", "RED", "WIDTH", "finish", "panels", "picture_axes", "plotly"]
