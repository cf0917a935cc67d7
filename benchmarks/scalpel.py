"""SIMD-aware weight pruning and node pruning on MNIST: what Scalpel published, measured here.

    python -m benchmarks.scalpel --data ../shared/data                  # whatever is missing, seed after seed
    python -m benchmarks.scalpel --data ../shared/data --only simd-0 nodes-0

A cell is one run on LeNet-300-100: `simd-SEED` (groups of 8 weights, the thresholds of the released code) or
`nodes-SEED` (gates of growing strength). Both start from the dense network of that seed. Cells are resumed from
`--work` after a kill, and finished ones, kept in `results/scalpel.json` with the settings that made them, are not
repeated.

Training uses the first 55,000 training images, as they are; settings were chosen on the other 5,000, on seed 0, and the
10,000 test images are looked at when a cell ends. The paper trains for longer: 20 epochs per threshold, 30 per stage of
gates at a learning rate of 1e-3 and strengths of 2e-4 to 1e-3. Here few epochs at 1e-2 must do, so strengths are lower.

The method: Yu et al., Scalpel: customizing DNN pruning to the underlying hardware parallelism, 2017.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import secateurs as sec
from benchmarks import lenet, mnist_data, mnist_nets
from secateurs.base.files import write_text
from secateurs.device.environment import Environment
from secateurs.sparsity.simd_matrix import csr_bits

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "scalpel.json"
NETWORK = "lenet_300_100"
TRAIN = 55_000

SETTINGS: dict[str, Any] = {
    "network": NETWORK,
    "batch": 100,
    "dense": {"epochs": 10, "lr": 0.1, "weight_decay": 1e-4},
    "simd": {
        "width": 8,
        "thresholds": [0.04, 0.05, 0.06, 0.07, 0.08],
        "retrain": {"epochs": 4, "lr": 0.01, "schedule": "constant"},
    },
    "nodes": {
        "strengths": [5e-5, 7e-5, 1e-4],
        "start": 0.8002,
        "stage": {"epochs": 2, "lr": 0.01, "schedule": "constant"},
        "finetune": {"epochs": 10, "lr": 0.1, "weight_decay": 1e-4},
    },
}

PUBLISHED: dict[str, Any] = {
    "removed": {"0.04": 0.606, "0.05": 0.726, "0.06": 0.824, "0.07": 0.887, "0.08": 0.920},
    "widths": [161, 64],
    "accuracy": {"dense": 0.9848, "nodes": 0.9854},
}
"""What the authors state, for the same network and thresholds."""


class Bench:
    """The data, the dense networks, and how to prune and judge, for every cell."""

    def __init__(self, data: Path, work: Path, settings: dict[str, Any]) -> None:
        self.work, self.settings = work, settings
        images, labels = mnist_data.pixels(data, "train")
        self.train = lenet.Batches(images[:TRAIN], labels[:TRAIN], settings["batch"])
        self.validate = _accuracy(images[TRAIN:], labels[TRAIN:])
        self.test = _accuracy(*mnist_data.pixels(data, "test"))
        self.example = images[:1]

    def run(self, cell: str) -> dict[str, Any]:
        kind, seed = cell.rsplit("-", 1)
        return {"simd": self.simd, "nodes": self.nodes}[kind](int(seed))

    def simd(self, seed: int) -> dict[str, Any]:
        """Thresholds rise; what each removes, and what the last one leaves."""
        wanted, dense = self.settings["simd"], self.dense(seed)
        found = sec.iterative_prune(
            dense, self.train, sparsity=[sec.Threshold("value", t) for t in wanted["thresholds"]],
            pattern=f"simd({wanted['width']})", retrain=self.training(wanted["retrain"], seed), dropout=False,
            evaluate=self.validate, folder=self.work / f"simd-{seed}", on_round=_say,
        )  # fmt: skip
        rounds = zip(wanted["thresholds"], found.rounds, strict=True)
        return {
            "removed": {str(threshold): round(row.sparsity, 4) for threshold, row in rounds},
            "validation": {"dense": found.baseline, "pruned": [row.metric for row in found.rounds]},
            "test": {"dense": self.test(dense), "pruned": self.test(found.model)},
            "storage": storage(found.model, found.masks, wanted["width"]),
        }

    def nodes(self, seed: int) -> dict[str, Any]:
        """Gates close; the widths that each stage leaves."""
        wanted, dense = self.settings["nodes"], self.dense(seed)
        stages = [
            self.training(wanted["stage"], seed, gates=sec.Gates(strength=strength, start=wanted["start"]))
            for strength in wanted["strengths"]
        ]
        found = sec.node_prune(
            dense, self.example, self.train, stages=stages, finetune=self.training(wanted["finetune"], seed),
            evaluate=self.validate, folder=self.work / f"nodes-{seed}", on_stage=_say,
        )  # fmt: skip
        return {
            "widths": [list(row.widths.values()) for row in found.stages],
            "params_left": round(found.stages[-1].params / found.params, 4),
            "worst_of_the_cuts": [row.worst for row in found.stages],
            "validation": {
                "dense": found.baseline,
                "stages": [row.metric for row in found.stages],
                "pruned": found.metric,
            },
            "test": {"dense": self.test(dense), "pruned": self.test(found.model)},
        }

    def dense(self, seed: int) -> nn.Module:
        """The network before pruning."""
        torch.manual_seed(seed)
        config = self.training(self.settings["dense"], seed)
        return sec.finetune(mnist_nets.build(NETWORK), self.train, config, folder=self.work / f"dense-{seed}").model

    def training(self, wanted: dict[str, Any], seed: int, **more: Any) -> sec.FineTune:
        return sec.FineTune(seed=seed, progress=False, **wanted, **more)


def storage(model: nn.Module, masks: dict[str, Tensor], width: int) -> dict[str, Any]:
    """Bytes of all masked weights, 32-bit numbers throughout: as they are, in SIMD groups, in sparse rows."""
    dense = sum(32 * mask.numel() for mask in masks.values()) // 8
    groups = sum(sec.SimdMatrix.of(model.get_parameter(n), width, mask=mask).bits() for n, mask in masks.items()) // 8
    rows = sum(csr_bits(int(mask.sum()), len(mask)) for mask in masks.values()) // 8
    return {"dense_bytes": dense, "simd_bytes": groups, "csr_bytes": rows, "simd_share": round(groups / dense, 4)}


def used(cell: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that decide the result of a cell."""
    other = {"simd": "nodes", "nodes": "simd"}[cell.rsplit("-", 1)[0]]
    return {name: value for name, value in settings.items() if name != other}


def _accuracy(images: Tensor, labels: Tensor) -> Any:
    return sec.accuracy(list(zip(images.split(1000), labels.split(1000), strict=True)))


def _say(row: Any) -> None:
    print(f"  {row}", flush=True)


def main() -> int:
    arguments = _arguments()
    if not (arguments.data / "mnist").is_dir():
        print(f"There is no MNIST at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    cells = {name: cell for name, cell in found.get("cells", {}).items() if cell["settings"] == used(name, SETTINGS)}
    wanted = arguments.only or [f"{kind}-{seed}" for seed in arguments.seeds for kind in ("simd", "nodes")]
    bench = Bench(arguments.data, arguments.work, SETTINGS)
    for cell in wanted:
        if cell not in cells:
            print(f"== {cell}", flush=True)
            cells[cell] = {"settings": used(cell, SETTINGS), **bench.run(cell)}
            _write(cells)
    Console().print(*tables(cells))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scalpel", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with mnist/")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="simd-SEED or nodes-SEED")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "scalpel", help="where killed cells are resumed")
    return parser.parse_args()


def _write(cells: dict[str, Any]) -> None:
    environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
    found = {"summary": summary(cells), "published": PUBLISHED, "cells": cells, "environment": environment}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_text(OUT, json.dumps(found, indent=1) + "\n")


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """Over the seeds of each kind of cell: means, and the spread of the points of test accuracy that are lost."""
    rows: dict[str, Any] = {}
    for kind in ("simd", "nodes"):
        found = [cell for name, cell in sorted(cells.items()) if name.startswith(f"{kind}-")]
        if not found:
            continue
        lost = [100 * (cell["test"]["dense"] - cell["test"]["pruned"]) for cell in found]
        rows[kind] = {
            "seeds": len(found),
            "test_dense": round(mean(cell["test"]["dense"] for cell in found), 4),
            "test_pruned": round(mean(cell["test"]["pruned"] for cell in found), 4),
            "points_lost": round(mean(lost), 2),
            "points_lost_spread": round(stdev(lost), 2) if len(lost) > 1 else None,
        }
        if kind == "simd":
            keys = found[0]["removed"]
            rows[kind]["removed"] = {key: round(mean(cell["removed"][key] for cell in found), 4) for key in keys}
            rows[kind]["simd_share"] = round(mean(cell["storage"]["simd_share"] for cell in found), 4)
        else:
            rows[kind]["widths"] = [cell["widths"][-1] for cell in found]
            rows[kind]["params_left"] = round(mean(cell["params_left"] for cell in found), 4)
    return rows


def tables(cells: dict[str, Any]) -> list[Table]:
    """What was removed at each threshold beside what was published, and the widths."""
    rows = summary(cells)
    table = Table("cell", "seeds", "result", "published", "test: dense", "pruned", "points lost", box=None)
    for kind, row in rows.items():
        spread = "" if row["points_lost_spread"] is None else f" ± {row['points_lost_spread']}"
        if kind == "simd":
            result = ", ".join(f"{share:.1%}" for share in row["removed"].values())
            published = ", ".join(f"{share:.1%}" for share in PUBLISHED["removed"].values())
        else:
            result = ", ".join("-".join(map(str, widths)) for widths in row["widths"])
            published = "-".join(map(str, PUBLISHED["widths"]))
        shares = [f"{row[name]:.2%}" for name in ("test_dense", "test_pruned")]
        table.add_row(kind, str(row["seeds"]), result, published, *shares, f"{row['points_lost']}{spread}")
    return [table]


if __name__ == "__main__":
    raise SystemExit(main())
