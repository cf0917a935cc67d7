"""Zeros in ResNet-56 on CIFAR-10: without training at all, and with as few epochs as bring the accuracy back.

    python -m benchmarks.sparse_cifar --data ../shared/data                  # whatever is missing, cell after cell
    python -m benchmarks.sparse_cifar --data ../shared/data --only once      # cells that begin so
    python -m benchmarks.sparse_cifar --data ../shared/data --minutes 30     # stops, in the middle too, after that

Cells, each stored in `results/sparse_cifar.json` with the settings that made it, resumed from `--work` after a kill:

`once-PATTERN-PERCENT`: the convolutions that sparse, nothing trained. Smallest magnitudes set to zero; the others
refitted by least squares (`sec.sparsify_once` with masks); optimal brain surgeon, every layer as sparse as the others;
and each as sparse as what its error does to the answers allows.

`train-PATTERN-SEED`: the surgeon, and training with the zeros held (`sec.finetune`), towards the original's answers and
what its stages put out, on moved and mirrored images. Then the weights are shared in few bits with error feedback, and
the file is measured.

Training and calibration use `data_batch_1` to `4`; choices were made on `data_batch_5`, which the published network has
seen (it has 100 % there, part of which any training without that batch forgets). The 1,000 lossless test images
(standard error 0.8 points) are looked at once, at the end of a cell.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.sparse_cifar_cells import SETTINGS, Bench, Late, used
from secateurs.base.files import write_text
from secateurs.device.environment import Environment

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "sparse_cifar.json"
BARS = {"points": 0.5, "packed_points": 1.0, "times_smaller": 15.0}


def main() -> int:
    arguments = _arguments()
    if not (arguments.data / "cifar10_models").is_dir():
        print(f"There is no CIFAR-10 at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    cells = {name: row for name, row in found.get("cells", {}).items() if row["settings"] == used(name, SETTINGS)}
    until = time.monotonic() + 60 * arguments.minutes
    bench = Bench(arguments.data, arguments.work, SETTINGS, until)
    try:
        for cell in wanted_cells(arguments.only, arguments.seeds):
            if cell not in cells:
                print(f"== {cell}", flush=True)
                bench.check()
                cells[cell] = {"settings": used(cell, SETTINGS), **bench.run(cell)}
                _write(cells)
    except Late:
        print("The time is over. The same command goes on from here.")
    Console().print(*tables(cells))
    return 0


def wanted_cells(beginnings: list[str], seeds: list[int]) -> list[str]:
    """All cells that begin so."""
    names = [f"once-{pattern}-{percent}" for pattern, percents in SETTINGS["once"].items() for percent in percents]
    names += [f"train-{pattern}-{seed}" for seed in seeds for pattern in SETTINGS["target"]]
    return [name for name in names if not beginnings or any(name.startswith(part) for part in beginnings)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse_cifar", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with cifar10/")
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL", help="names of cells, or how they begin")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "sparse_cifar", help="where cells are resumed from")
    return parser.parse_args()


def _write(cells: dict[str, Any]) -> None:
    environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
    found = {"summary": summary(cells), "cells": dict(sorted(cells.items())), "environment": environment}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_text(OUT, json.dumps(found, indent=1) + "\n")


def summary(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Of each pattern that was trained, over its seeds: points lost, points lost in the file, times smaller."""
    rows: dict[str, list[Any]] = {}
    for name, cell in cells.items():
        if name.startswith("train-"):
            rows.setdefault(name.split("-")[1], []).append(cell)
    return {pattern: _over_seeds(found) for pattern, found in rows.items()}


def _over_seeds(found: list[Any]) -> dict[str, Any]:
    whole = [cell["test"]["original"] for cell in found]
    lost = [100 * (before - cell["test"]["sparse"]) for before, cell in zip(whole, found, strict=True)]
    packed = [100 * (before - cell["packed"]["test"]) for before, cell in zip(whole, found, strict=True)]
    row: dict[str, Any] = {
        "seeds": len(found), "sparsity": min(cell["sparsity"] for cell in found), "points_lost": round(mean(lost), 2),
        "points_lost_spread": round(stdev(lost), 2) if len(lost) > 1 else None,
        "packed_points_lost": round(mean(packed), 2),
        "times_smaller": min(cell["packed"]["times_smaller"] for cell in found),
    }  # fmt: skip
    small = row["packed_points_lost"] <= BARS["packed_points"] and row["times_smaller"] >= BARS["times_smaller"]
    row["met"] = len(found) >= 3 and row["points_lost"] <= BARS["points"]
    return {**row, "met_packed": len(found) >= 3 and small}


def tables(cells: Mapping[str, Any]) -> list[Table]:
    """Accuracy without training, and what training brings back."""
    ways = ("magnitude", "refitted", "surgeon", "allocated")
    once = Table("without training", "sparsity", *ways, box=None)
    for name, cell in sorted(cells.items()):
        if name.startswith("once-"):
            _, pattern, percent = name.split("-")
            once.add_row(pattern, f"{percent} %", *(f"{cell[way]:.1%}" for way in ways))
    trained = Table("trained", "sparsity", "seeds", "points lost", "packed", "points lost then", box=None)
    for pattern, row in summary(cells).items():
        trained.add_row(
            pattern, f"{row['sparsity']:.1%}", str(row["seeds"]), str(row["points_lost"]),
            f"{row['times_smaller']}x", str(row["packed_points_lost"]),
        )  # fmt: skip
    return [once, trained]


if __name__ == "__main__":
    raise SystemExit(main())
