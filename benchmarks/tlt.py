"""Train with a penalty, prune, retrain: the loop of `sec.train_prune_loop` on ResNet-20 and CIFAR-10.

    python -m benchmarks.tlt --data ../shared/data                       # whatever is missing, seed after seed
    python -m benchmarks.tlt --data ../shared/data --only loop-0 keep_any-0

A cell is one run: `loop-SEED` (thresholds that rise as long as validation allows) or `EQUALIZATION-SEED` (one cut to
the same share of the MACs, from the penalised model of that seed). Cells are resumed from `--work` after a kill, and
finished ones, kept in `results/tlt.json` with the settings that made them, are not repeated.

The loop cuts and trains the last stage, which has three quarters of the parameters (`tlt_loop`); the table of
equalisations cuts the whole network, whose residual streams they are about, and trains it briefly (`tlt_table`).

Training uses `data_batch_1` to `4`, cropped and mirrored at random, and the original as teacher; validation the first
images of `data_batch_5`; the final figures are those of the 1,000 lossless test images, at which no cell looks before
its end. The published network was trained on all five batches: its 99.8 % on `data_batch_5` is memory, part of which
any further training without that batch loses whether or not channels go. So validation overstates what a cut costs; a
round is judged with a tolerance that is much wider than the point asked for on test images, and only the last accepted
model is trained for longer.

The method: NVIDIA, Transfer Learning Toolkit, `tlt-prune`; Wen et al. 2016 (arXiv 1608.03665), Liu et al. 2017
(arXiv 1708.06519) for the penalties.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import tlt_loop, tlt_table
from secateurs.base.files import write_text
from secateurs.device.environment import Environment

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "tlt.json"
NOTE = (
    "The published network was trained on data_batch_5 too. Its accuracy there is memory, part of which any training"
    " without that batch loses, cut or not. So validation overstates what a cut costs, and rounds are judged with a"
    " wide tolerance. Thresholds and tolerance were set on validation alone, seed 0."
)
BAR = {"params": 0.5, "points": 1.0}


def main() -> int:
    arguments = _arguments()
    if not (arguments.data / "cifar10_models").is_dir():
        print(f"There is no CIFAR-10 at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    cells = {name: cell for name, cell in found.get("cells", {}).items() if cell["settings"] == settings_of(name)}
    wanted = arguments.only or [
        *(f"loop-{seed}" for seed in arguments.seeds),
        *(f"{name}-{seed}" for seed in arguments.seeds for name in tlt_table.EQUALIZATIONS),
    ]
    for cell in wanted:
        if cell not in cells:
            print(f"== {cell}", flush=True)
            cells[cell] = {"settings": settings_of(cell), **_run(cell, arguments)}
            _write(cells)
    Console().print(*_tables(cells))
    return 0


def settings_of(cell: str) -> dict[str, Any]:
    """The settings that decide the result of a cell."""
    return tlt_loop.SETTINGS if cell.startswith("loop-") else tlt_table.SETTINGS


def _run(cell: str, arguments: argparse.Namespace) -> dict[str, Any]:
    kind, seed = cell.rsplit("-", 1)
    if kind == "loop":
        return _loop(arguments.data, arguments.work).run(int(seed))
    return _equalisations(arguments.data, arguments.work).run(kind, int(seed))


_loop, _equalisations = cache(tlt_loop.Loop), cache(tlt_table.Equalisations)
"""One of each, for all its cells."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tlt", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with cifar10/")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="loop-SEED or EQUALIZATION-SEED")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "tlt", help="where killed cells are resumed from")
    return parser.parse_args()


def _write(cells: dict[str, Any]) -> None:
    environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
    found = {"note": NOTE, "summary": summary(cells), "cells": cells, "environment": environment}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_text(OUT, json.dumps(found, indent=1) + "\n")


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """Over the seeds of each kind of cell: mean and spread of what is left and of the points lost on test images."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, cell in cells.items():
        kinds.setdefault(name.rsplit("-", 1)[0], []).append(cell)
    rows = {kind: _over_seeds(found) for kind, found in kinds.items()}
    if "loop" in rows:
        row = rows["loop"]
        row["met"] = row["params_left"] <= BAR["params"] and row["points_lost"] <= BAR["points"] and row["seeds"] >= 3
    return rows


def _over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    lost = [100 * (cell["test"]["original"] - cell["test"]["pruned"]) for cell in found]
    return {
        "seeds": len(found),
        "params_left": round(max(cell["params_left"] for cell in found), 4),
        "macs_left": round(mean(cell["macs_left"] for cell in found), 4),
        "validation": round(mean(cell["validation"]["finished"] for cell in found), 4),
        "test": round(mean(cell["test"]["pruned"] for cell in found), 4),
        "points_lost": round(mean(lost), 2),
        "points_lost_spread": round(stdev(lost), 2) if len(lost) > 1 else None,
    }


def _tables(cells: dict[str, Any]) -> list[Table]:
    """One row per kind of cell."""
    table = Table("cell", "seeds", "parameters", "MACs", "validation", "test", "points lost", box=None)
    for kind, row in summary(cells).items():
        spread = "" if row["points_lost_spread"] is None else f" ± {row['points_lost_spread']}"
        shares = [f"{row[name]:.1%}" for name in ("params_left", "macs_left", "validation", "test")]
        table.add_row(kind, str(row["seeds"]), *shares, f"{row['points_lost']}{spread}")
    return [table]


if __name__ == "__main__":
    raise SystemExit(main())
