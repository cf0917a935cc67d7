"""`secateurs inspect`: what could be cut from a model, what could not, and where its work is."""

from __future__ import annotations

from typing import Any

from secateurs.capture import capture
from secateurs.cli.arguments import (
    AsJson,
    Elementwise,
    Exclude,
    Factory,
    Inputs,
    Unit,
    Weights,
    build_model,
    example_inputs,
)
from secateurs.cli.console import progress, show, show_json
from secateurs.cost import count_graph
from secateurs.couple import couple
from secateurs.report.tables import inspect_tables


def inspect(
    model: Factory,
    input: Inputs = None,
    weights: Weights = None,
    exclude: Exclude = None,
    unit: Unit = "heads",
    elementwise: Elementwise = "couple",
    json: AsJson = False,
) -> None:
    """Print the channel groups of a model, the frozen ones with their reasons, and MACs by layer."""
    args, kwargs = example_inputs(input)
    with progress(quiet=json) as stage:
        stage("build")
        network = build_model(model, weights)
        stage("capture")
        graph = capture(network, args, kwargs=kwargs)
        stage("couple")
        groups = couple(graph, exclude=tuple(exclude or ()), unit=unit, elementwise=elementwise)
        stage("count")
        cost = count_graph(graph)
    data: dict[str, Any] = {
        "model": model,
        "hash": graph.hash,
        "how": graph.how,
        "notes": list(graph.notes),
        "totals": cost.to_dict(),
        "layers": [
            {"name": name, "macs": macs, "params": cost.module_params.get(name, 0)}
            for name, macs in cost.by_module().items()
        ],
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "width": group.width,
                "members": [f"{member.leaf}[{member.dim}]" for member in group.members],
                "frozen": group.frozen,
                "inexact_because": group.inexact_because,
            }
            for group in groups
        ],
    }
    show_json(data) if json else show(inspect_tables(data))
