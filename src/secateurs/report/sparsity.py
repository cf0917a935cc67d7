"""What became zero, layer by layer, and what that is worth: plain data, and tables of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from secateurs.cost.effective import EffectiveMacs
from secateurs.pack.ledger import Ledger
from secateurs.report.tables import accuracy_table, bar
from secateurs.sparsity.weights import left_whole

FORMAT = 1

SHOWN = 6
WHOLE = {
    "weight": ("layers", ": excluded, or without a target"),
    "embedding": ("embeddings", ": tables that are looked up, not multiplied"),
    "norm": ("norms", None),
    "bias": ("biases", None),
    "other": ("something else", ": not a matrix of weights of a layer"),
}
"""What is left whole: what it is called, and what is said of it after the names; None: no names."""


def sparsity_report(
    model: nn.Module,
    names: Iterable[str],
    ledger: Ledger,
    accuracy: Mapping[str, float],
    macs: EffectiveMacs | None = None,
) -> dict[str, Any]:
    """The named weights as they are in the model now, the whole, bytes in every form, and the metric by stage.

    `whole` are the parameters that were left whole, with what they are. `ledger` is that of the packed model, with what
    gzip makes of the original and of it. `compression` is all parameters by those that are not zero; `macs`, where they
    are known, by shape and without zero weights, with the speed-up in theory.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    layers = [_layer(name, parameters[name], macs) for name in names]
    weights, kept = (sum(layer[key] for layer in layers) for key in ("weights", "kept"))
    every = list(model.parameters())
    total, nonzero = sum(item.numel() for item in every), sum(int((item != 0).sum()) for item in every)
    whole = [
        {"name": name, "parameters": parameters[name].numel(), "kind": kind}
        for name, kind in left_whole(model, (layer["name"] for layer in layers)).items()
    ]
    return {
        "format": FORMAT,
        "layers": layers,
        "whole": whole,
        "weights": weights,
        "kept": kept,
        "sparsity": 1 - kept / weights if weights else 0.0,
        "parameters": total,
        "nonzero": nonzero,
        "compression": total / nonzero if nonzero else None,
        "macs": None if macs is None else macs.total.to_json(),
        "bytes": {
            "packed": ledger.bytes,
            **({} if ledger.baseline is None else ledger.baseline.to_json()),
        },
        "accuracy": dict(accuracy),
    }


def _layer(name: str, weight: Tensor, macs: EffectiveMacs | None) -> dict[str, Any]:
    kept, size = int((weight != 0).sum()), weight.numel()
    mine = None if macs is None else macs.weights.get(name)
    return {
        "name": name, "shape": list(weight.shape), "weights": size, "kept": kept, "sparsity": 1 - kept / size,
        "macs": None if mine is None else mine.to_json(),
    }  # fmt: skip


def sparsity_tables(report: Mapping[str, Any]) -> list[RenderableType]:
    """What `secateurs sparsify` prints: the whole in a sentence, the layers, the metric, the bytes."""
    share = report["nonzero"] / max(1, report["parameters"])
    parts: list[RenderableType] = [
        Text(
            f"{report['sparsity']:.1%} of {report['weights']:,} weights in {len(report['layers'])} layers are zero; "
            f"{report['nonzero']:,} of all {report['parameters']:,} parameters are left ({share:.1%}).{_cost(report)}"
        ),
        _layers(report["layers"]),
    ]
    if report["whole"]:
        parts.append(Text(f"Left whole: {_whole(report['whole'])}."))
    if report["accuracy"]:
        parts.append(accuracy_table(report["accuracy"]))
    return [*parts, _bytes(report["bytes"])]


def _cost(report: Mapping[str, Any]) -> str:
    macs = report["macs"]
    if macs is None:
        return ""
    fewer = "" if macs["speed_up"] is None else f", {macs['speed_up']:.2f} times fewer: a bound, no measured speed-up"
    return f" Of {macs['dense']:,} MACs {macs['effective']:,} are by weights that are not zero{fewer}."


def _layers(layers: list[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("layer", overflow="fold")
    known = any(layer["macs"] is not None for layer in layers)
    for name in ("shape", "weights", "kept", "zero", *(["MACs", "left"] if known else [])):
        table.add_column(name, justify="right")
    for layer in layers:
        shape = " x ".join(map(str, layer["shape"]))
        zero = f"{layer['sparsity']:.1%} {bar(layer['sparsity'])}"
        cells = (layer["name"].removesuffix(".weight"), shape, f"{layer['weights']:,}", f"{layer['kept']:,}", zero)
        macs = layer["macs"]
        counts = ["", ""] if macs is None else [f"{macs['dense']:,}", f"{macs['effective']:,}"]
        table.add_row(*map(Text, (*cells, *(counts if known else []))))
    return table


def _whole(left: Sequence[Mapping[str, Any]]) -> str:
    """What was left whole: weights and tables by name, the small rest by count."""
    parts = []
    for kind, (title, note) in WHOLE.items():
        mine = [item for item in left if item["kind"] == kind]
        size = sum(item["parameters"] for item in mine)
        shown = [item["name"].removesuffix(".weight") for item in mine[:SHOWN]]
        named = "" if note is None else f" ({', '.join(shown)}{', ...' if len(mine) > SHOWN else ''}{note})"
        if mine:
            parts.append(f"{size:,} parameters of {title}{named}")
    return "; ".join(parts)


def _bytes(sizes: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("file", "bytes", "times smaller than float32"):
        table.add_column(name, justify="left" if name == "file" else "right")
    rows = {
        "float32": sizes["raw"],
        "original, gzip": sizes["gzip_original"],
        "sparse, gzip": sizes["gzip_packed"],
        "sparse, packed": sizes["packed"],
    }
    for name, size in rows.items():
        table.add_row(Text(name), f"{size:,}", f"{sizes['raw'] / size:.2f}")
    return table


__all__ = ["sparsity_report", "sparsity_tables"]
