"""How regular zeros may be: accuracy at equal density, and storage at equal accuracy, from single weights to filters.

    python -m benchmarks.granularity --data ../shared/data                 # whatever is missing
    python -m benchmarks.granularity --data ../shared/data --minutes 10    # starts no cell after ten minutes
    python -m benchmarks.granularity --data ../shared/data --show          # prints and draws what is stored

The study of Mao et al., Exploring the Regularity of Sparse Structure in Convolutional Neural Networks, 2017 (arXiv
1705.08922), with its four granularities and those that hardware asks for. A cell is a network, a pattern, a density of
the convolutions and a seed; finished ones stay in `results/granularity.json` with the settings that made them.

`lenet5` on MNIST: trained here, one dense network per seed; the convolutions lose by the pattern, the linear layers
single weights at the same density in every cell, as in the paper; then a short retraining (`SETTINGS`) with the dense
twin as teacher and the masks held. `resnet20` on CIFAR-10: the published weights, every 3x3 convolution but the first,
no training at all, batch norms recalibrated on 400 images, which alone costs the whole network some accuracy: the
baseline is the network without zeros, treated alike. Without training accuracy falls sooner and coarse zeros cost more
than in the paper. `resnet20_retrained` is trained after it: one epoch of 10,000 moved and mirrored images, the zeros
held, the network without zeros as teacher; the baseline is the network without zeros after the same training. Accuracy
of both is that of the 1,000 lossless test images (standard error about 0.9 points).

Storage is the paper's: 8 bits for a weight and 4 for the index of a group, 2 for each weight of 2:4. References to
partial sums are counted on real activations, single weights unmerged, rows of kernels merged. Where groups do not
divide a layer (LeNet-5: 25 taps, 50 channels) the density is up to 0.01 off what was asked for; 2:4 leaves the first
convolution of LeNet-5, which reads one channel, whole.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.granularity_cells import FIXED, PATTERNS, SETTINGS, Cell, LeNetStudy, ResNetStudy, cells, recipe
from secateurs.base.files import write_text
from secateurs.device.environment import Environment
from secateurs.report.figures.theme import finish, panels, plotly

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "granularity.json"
ORDER = ("weight", "vector", "kernel", "filter")
DROPS = (0.02, 0.05, 0.1)
"""Accuracy that may be lost in the table of storage."""

COLOURS = ("#000000", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8A8A8A")

Row = dict[str, Any]


def key(row: Mapping[str, Any]) -> Cell:
    return row["network"], row["pattern"], row["asked"], row["seed"]


def means(rows: Iterable[Row]) -> dict[tuple[str, str, float], dict[str, float]]:
    """Accuracy over the seeds and what does not depend on them, by network, pattern and density asked for."""
    found: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row["network"], row["pattern"], row["asked"]), []).append(row)
    return {
        cell: {
            "accuracy": mean(row["accuracy"] for row in mine),
            "low": min(row["accuracy"] for row in mine), "high": max(row["accuracy"] for row in mine),
            "dense": mean(row["accuracy_dense"] for row in mine), "storage": mine[0]["storage"],
            "density": mine[0]["density"], "removed": mean(row["magnitude_removed"] for row in mine),
            "seeds": len(mine),
        }
        for cell, mine in found.items()
    }  # fmt: skip


def baseline(rows: Iterable[Row], network: str) -> float:
    """The accuracy without zeros: of the network treated like the others if that was done, else as it is."""
    mine = [item for cell, item in sorted(means(rows).items(), key=lambda pair: -pair[0][2]) if cell[0] == network]
    return mine[0]["accuracy"] if mine[0]["density"] == 1 else mine[0]["dense"]


def storage_at(rows: list[Row], network: str, pattern: str, drop: float) -> tuple[float, float] | None:
    """Density and storage at which the accuracy is `drop` below the baseline, between the two cells around it.

    None where the cells do not reach from above that accuracy to below it.
    """
    curve = [item for cell, item in means(rows).items() if cell[:2] == (network, pattern) and item["density"] < 1]
    for above, below in pairwise(sorted(curve, key=lambda item: -item["density"])):
        wanted = baseline(rows, network) - drop
        if above["accuracy"] >= wanted > below["accuracy"]:
            part = (above["accuracy"] - wanted) / (above["accuracy"] - below["accuracy"])
            density, storage = (above[name] + part * (below[name] - above[name]) for name in ("density", "storage"))
            return density, storage
    return None


def order(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """By network and density: are the accuracies of 0-D to 3-D in the paper's order, and the magnitudes that went?"""
    found: dict[str, dict[str, Any]] = {}
    known = means(rows)
    for network, density in dict.fromkeys((cell[0], cell[2]) for cell in known):
        if all((network, pattern, density) in known for pattern in ORDER):
            mine = [known[network, pattern, density] for pattern in ORDER]
            accuracy, removed = [item["accuracy"] for item in mine], [item["removed"] for item in mine]
            found[f"{network} at {density:g}"] = {
                "accuracy": dict(zip(ORDER, accuracy, strict=True)),
                "falls": accuracy == sorted(accuracy, reverse=True),
                "magnitude_rises": removed == sorted(removed),
            }
    return found


def reference_ratios(rows: Iterable[Row]) -> dict[str, float]:
    """By density: references with zeros by row, rows merged, by those with single zeros at the same density."""
    known = {(row["pattern"], row["asked"]): row["references"] for row in rows if "references" in row}
    pairs = [(density, known["weight", density]["fine"]) for pattern, density in known if pattern == "weight"]
    return {
        f"{density:g}": known["vector", density]["merged"] / fine
        for density, fine in pairs
        if ("vector", density) in known
    }


def summary(rows: list[Row]) -> dict[str, Any]:
    return {
        "baseline": {
            network: baseline(rows, network) for network in SETTINGS if any(r["network"] == network for r in rows)
        },
        "order": order(rows),
        "references": reference_ratios(rows),
        "storage": {
            network: {
                f"{drop:g}": {
                    pattern: storage_at(rows, network, pattern, drop) for pattern in PATTERNS if pattern not in FIXED
                }
                for drop in DROPS
            }
            for network in SETTINGS
        },
    }


def tables(rows: list[Row]) -> list[Table]:
    known = means(rows)
    made = []
    for network in SETTINGS:
        densities = sorted({cell[2] for cell in known if cell[0] == network and cell[2] < 1}, reverse=True)
        if not densities:
            continue
        dense = baseline(rows, network)
        table = Table(title=f"{network}: accuracy by density of the convolutions (without zeros {100 * dense:.2f} %)")
        for name in ("pattern", "", *(f"{density:g}" for density in densities), "storage by density"):
            table.add_column(name, justify="left" if name in ("pattern", "") else "right")
        for pattern, words in PATTERNS.items():
            mine = [known.get((network, pattern, density)) for density in densities]
            ratio = next((item["storage"] / item["density"] for item in mine if item), None)
            cells_ = ["" if item is None else f"{100 * item['accuracy']:.2f}" for item in mine]
            table.add_row(pattern, words, *cells_, "" if ratio is None else f"{ratio:.3f}")
        made.append(table)
    return made


def plot_data(rows: list[Row]) -> dict[str, Any]:
    """By network and pattern: densities, storage, accuracy and its range over the seeds."""
    found: dict[str, Any] = {network: {} for network in SETTINGS}
    for (network, pattern, _), item in sorted(means(rows).items(), key=lambda pair: pair[1]["density"]):
        line = found[network].setdefault(
            pattern, {name: [] for name in ("density", "storage", "accuracy", "low", "high")}
        )
        for name, values in line.items():
            values.append(item[name])
    return found


def figure(data: Mapping[str, Any]) -> Any:
    """Accuracy over density on the left, over storage on the right; a row per network."""
    names = [network for network, lines in data.items() if lines]
    titles = [f"{name}, {what}" for name in names for what in ("equal density", "equal storage")]
    drawn = panels(len(names), 2, titles, horizontal_spacing=0.1, vertical_spacing=0.16)
    colours = dict(zip(PATTERNS, COLOURS, strict=True))
    for row, name in enumerate(names, 1):
        for column, across in enumerate(("density", "storage"), 1):
            for pattern, line in ((pattern, data[name][pattern]) for pattern in PATTERNS if pattern in data[name]):
                drawn.add_trace(
                    plotly().Scatter(
                        x=line[across], y=line["accuracy"], mode="lines+markers",
                        name=f"{pattern} ({PATTERNS[pattern]})",
                        line={"color": colours[pattern], "dash": "solid" if pattern in ORDER else "dot"},
                        legendgroup=pattern, showlegend=row == 1 and column == 1,
                    ), row=row, col=column,
                )  # fmt: skip
            drawn.update_xaxes(title_text=across, row=row, col=column)
            drawn.update_yaxes(tickformat=".0%", row=row, col=column)
    return finish(drawn, 120 + 380 * len(names), legend=True)


def stored(path: Path) -> list[Row]:
    """The rows that were made as these settings say."""
    found = json.loads(path.read_text()) if path.exists() else {}
    return [row for row in found.get("rows", []) if found["recipes"].get(row["network"]) == recipe(row["network"])]


def write(path: Path, rows: list[Row]) -> None:
    done = {key(row) for row in rows}
    found = {
        "settings": SETTINGS, "recipes": {network: recipe(network) for network in SETTINGS},
        "environment": asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread")),
        "missing": [list(cell) for cell in cells() if cell not in done], **summary(rows), "rows": rows,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")


def main() -> int:
    arguments = _arguments()
    if not (arguments.data / "mnist").is_dir():
        print(f"There is no mnist at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    rows = stored(OUT)
    done = {key(row) for row in rows}
    studies: dict[str, Any] = {}
    began = time.monotonic()
    for network, pattern, density, seed in cells() if not arguments.show else ():
        if (network, pattern, density, seed) in done:
            continue
        if arguments.minutes is not None and time.monotonic() - began > 60 * arguments.minutes:
            break
        if network not in studies:
            studies = {
                network: LeNetStudy(arguments.data, arguments.work)
                if network == "lenet5"
                else ResNetStudy(arguments.data, network)
            }
        started = time.process_time()
        found = studies[network].run(pattern, density, seed)
        row = {"network": network, "pattern": pattern, "asked": density, "seed": seed, **found}
        rows.append({**row, "cpu_seconds": round(time.process_time() - started, 2)})
        write(OUT, rows)
        print(network, pattern, density, seed, f"{found['accuracy']:.4f}", f"{rows[-1]['cpu_seconds']} s", flush=True)
    Console(width=120).print(*tables(rows))
    for name, item in order(rows).items():
        print(name, "in the paper's order" if item["falls"] else "NOT in the paper's order", item["accuracy"])
    print(
        "references, vector by weight:", {density: round(ratio, 3) for density, ratio in reference_ratios(rows).items()}
    )
    if rows:
        page = arguments.work / "granularity.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, figure(plot_data(rows)).to_html(include_plotlyjs=True))
        print(f"plot: {page}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.granularity", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of images, weights")
    parser.add_argument("--minutes", type=float, help="start no cell after so many")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "granularity", help="dense networks, and the plot")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
