"""The report of a run as Rich tables, from the plain data of `Result.report()`, so a saved `report.json` prints alike.

The order is that of the questions: did it meet the budget, and measured how; what did it cost in accuracy; what
changed, layer by layer; what stayed whole, and why; how to do it again.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from secateurs.base.units import BYTES, COUNT, TIME

ROWS = 16
"""Longest table of layers or of frozen groups before the rest is only counted."""

OVER = 4
"""Most things over the budget that the verdict names."""

_UNITS = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "bytes": "bytes",
    "peak_memory": "peak activation bytes",
}


def result_tables(report: Mapping[str, Any]) -> list[RenderableType]:
    """Everything that `print(result)` shows, in order."""
    parts: list[RenderableType] = [verdict(report), cost_table(report)]
    if report["accuracy"]:
        parts.append(accuracy_table(report["accuracy"]))
    parts.append(layer_table(report["layers"]))
    if report["frozen"]:
        parts.append(frozen_table(report["frozen"]))
    parts.append(Text(reproduce(report)))
    return parts


def verdict(report: Mapping[str, Any]) -> Text:
    """One sentence on the budget and one on the proof."""
    met = report["met"]
    text = Text("Budget met: " if met else "Budget NOT met: ", style="bold green" if met else "bold red")
    over = list(report.get("over", ()))
    rest = f" and {len(over) - OVER} more" if len(over) > OVER else ""
    reason = f"; {', '.join(over[:OVER])}{rest}" if over else ""
    text.append(f"{report['budget']}{reason}\n", style="not bold default")
    text.append(f"{proof_sentence(report['proof'])}\n", style="not bold default")
    if report.get("handed_over"):
        text.append(f"{handed_sentence(report['handed_over'])}\n", style="not bold default")
    why = f": {report['why_graph'].partition(' Next: ')[0]}" if report.get("why_graph") else ""
    text.append(f"Form: {_FORMS[report['form']]}{why}", style="not bold default")
    return text


_FORMS = {
    "native": "native (your own classes with smaller tensors)",
    "graph": "graph (the rewritten program as a module; your own classes could not be used)",
}


def handed_sentence(handed: Mapping[str, Any]) -> str:
    """What came of handing over the constants of removed channels."""
    exactly = "exact and proven" if handed["exact"] else f"to {handed['worst']:.1e} of the largest output"
    dropped = f"; {len(handed['dropped'])} dropped: {handed['dropped'][0]}" if handed["dropped"] else ""
    return (
        f"Handed over: {handed['handed']:,} constants of removed channels to their consumers "
        f"({handed['bias']}, {handed['padding']}), {exactly}{dropped}."
    )


def proof_sentence(proof: Mapping[str, Any]) -> str:
    """What was checked on the cut, with the numbers that were compared."""
    norm = "" if proof["exact"] else ", norms over removed channels taken over the kept ones"
    return (
        f"Proven: same outputs as the original with the removed channels silenced, to {proof['worst']:.1e} in "
        f"{proof['dtype']} ({proof['tolerance']:.0e} allowed){norm}; "
        f"{proof['nodes']} operator calls and {proof['macs']:,} MACs as predicted."
    )


def cost_table(report: Mapping[str, Any]) -> Table:
    """Counted costs before and after, and the measured latency when a device was given."""
    table = _table("", "before", "after", "left")
    for metric, (before, after) in report["cost"].items():
        share = f"{after / before:.1%}" if before else "-"
        _row(table, _UNITS.get(metric, metric), f"{before:,}", f"{after:,}", share)
    measured = report.get("measured")
    if measured:
        _row(
            table,
            f"latency on {measured['device']}",
            TIME.format(measured["before_seconds"]),
            TIME.format(measured["after_seconds"]),
            measured["verdict"],
        )
    return table


def accuracy_table(accuracy: Mapping[str, float]) -> Table:
    """What `evaluate` returned at each stage, and the difference to the original."""
    table = _table("evaluate(model)", "value", "difference")
    original = next(iter(accuracy.values()))
    for stage, value in accuracy.items():
        _row(table, stage, f"{value:.4f}", "" if value is original else f"{value - original:+.4f}")
    return table


def layer_table(layers: Iterable[Mapping[str, Any]]) -> Table | Text:
    """The groups that lost units, widest first cut down to a screen."""
    changed = [layer for layer in layers if layer["after"] < layer["before"]]
    if not changed:
        return Text("Nothing was removed.")
    table = _table("channels that go together", "before", "after", "left")
    for layer in changed[:ROWS]:
        share = layer["after"] / layer["before"]
        _row(table, layer["name"], str(layer["before"]), str(layer["after"]), f"{share:.0%} {bar(share)}")
    if len(changed) > ROWS:
        _row(table, f"... and {len(changed) - ROWS} more", "", "", "")
    return table


def frozen_table(frozen: Iterable[Mapping[str, Any]]) -> Table:
    """Groups that stayed whole, those with the same reason in one row."""
    table = _table("stayed whole", "channels", "because")
    rows = sorted(frozen, key=lambda item: str(item["why"]))
    merged = [(why, list(items)) for why, items in groupby(rows, key=lambda item: str(item["why"]))]
    for why, items in merged[:ROWS]:
        names = items[0]["name"] if len(items) == 1 else f"{items[0]['name']} and {len(items) - 1} more"
        _row(table, names, str(sum(item["size"] for item in items)), why)
    if len(merged) > ROWS:
        _row(table, f"... and {len(merged) - ROWS} more reasons", "", "")
    return table


def reproduce(report: Mapping[str, Any]) -> str:
    """Seed, method and versions in one line."""
    again = report["reproduce"]
    return "Reproduce: " + ", ".join(f"{key} {value}" for key, value in again.items())


def bar(share: float, width: int = 10) -> str:
    """A share in [0, 1] as a bar of `width` characters."""
    full = min(width, max(0, round(share * width)))
    return "█" * full + "░" * (width - full)


def as_text(parts: Iterable[RenderableType], width: int = 110) -> str:
    """The tables as plain text without colours, an empty line between them."""
    console = Console(file=io.StringIO(), width=width, no_color=True, highlight=False, legacy_windows=False)
    for index, part in enumerate(parts):
        if index:
            console.print()
        console.print(part, markup=False)
    output = console.file
    assert isinstance(output, io.StringIO)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def _row(table: Table, *cells: str) -> None:
    """A row of plain text: square brackets in a name are not markup."""
    table.add_row(*map(Text, cells))


def _table(first: str, *rest: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    for name in rest:
        table.add_column(name, justify="left" if name == "because" else "right", overflow="fold")
    return table


def inspect_tables(data: Mapping[str, Any]) -> list[RenderableType]:
    """What `secateurs inspect` prints: totals, work by layer, free groups, frozen ones, notes."""
    totals = ", ".join(f"{value:,} {_UNITS[metric]}" for metric, value in data["totals"].items())
    free = [group for group in data["groups"] if group["frozen"] is None]
    frozen = [{**group, "why": group["frozen"]} for group in data["groups"] if group["frozen"] is not None]
    parts: list[RenderableType] = [
        Text(f"{data['model']}: {totals}"),
        work_table(data["layers"], data["totals"]["macs"]),
    ]
    if free:
        parts.append(group_table(free))
    if frozen:
        parts.append(frozen_table(frozen))
    parts += [Text(f"Note: {note}") for note in data["notes"]]
    if (drawn := data.get("figures")) is not None:
        parts.append(Text(f"Pictures in {drawn['file']}: {', '.join(drawn['pictures']) or 'none'}"))
    return parts


def work_table(layers: Iterable[Mapping[str, Any]], total: int) -> Table:
    """Layers that multiply, with their share of the work."""
    table = _table("layer", "MACs", "share", "", "parameters")
    table.columns[3].justify = "left"
    for layer in layers:
        if layer["macs"]:
            share = layer["macs"] / total
            _row(table, layer["name"], f"{layer['macs']:,}", f"{share:.1%}", bar(share), f"{layer['params']:,}")
    return table


def group_table(groups: Iterable[Mapping[str, Any]]) -> Table:
    """Groups from which units can be removed: how many units, and on how many tensor axes each lives."""
    table = _table("can be cut", "units", "channels each", "tensor axes", "note")
    for group in groups:
        note = group["inexact_because"] or ""
        _row(table, group["name"], str(group["size"]), str(group["width"]), str(len(group["members"])), note)
    return table


def names_table(names: Mapping[str, Iterable[str]]) -> Table:
    """Kinds of names and the names of each kind."""
    table = _table("kind", "names")
    table.columns[1].justify = "left"
    for kind, items in names.items():
        _row(table, kind, ", ".join(items))
    return table


def patterns_table(spelled: Mapping[str, str]) -> Table:
    """Patterns of zeros as they are written, and which weights go together."""
    table = _table("written, such as", "what goes, or stays, together")
    table.columns[1].justify = "left"
    for text, said in spelled.items():
        _row(table, text, said)
    return table


def families_table(families: Mapping[str, Iterable[str]]) -> Table:
    """Operators by family, without the prefix of PyTorch's own."""
    table = _table("family", "operators")
    table.columns[1].justify = "left"
    for family, items in families.items():
        _row(table, family, "  ".join(item.removeprefix("aten.") for item in items))
    return table


def comparison_table(report: Mapping[str, Any]) -> Table:
    """Before against after in the words of a newcomer; of the demo's report, or any with a measurement."""
    table = _table("", "before", "after", "")
    accuracy = list(report["accuracy"].values())
    if accuracy:
        _row(
            table,
            "accuracy",
            f"{accuracy[0]:.1%}",
            f"{accuracy[-1]:.1%}",
            f"{100 * (accuracy[-1] - accuracy[0]):+.1f} points",
        )
    for metric in ("macs", "params"):
        before, after = report["cost"][metric]
        _row(table, _UNITS[metric], COUNT.format(before), COUNT.format(after), f"{after / before:.0%} left")
    if "onnx_bytes" in report:
        before, after = report["onnx_bytes"]
        _row(table, "ONNX file", BYTES.format(before), BYTES.format(after), f"{after / before:.0%} left")
    measured = report["measured"]
    if measured:
        before, after = (TIME.format(measured[key]) for key in ("before_seconds", "after_seconds"))
        _row(table, f"one image, {measured['device']}", before, after, measured["verdict"])
    return table
