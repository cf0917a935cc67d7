"""SIMD-aware weight pruning and node pruning on MNIST: what Scalpel published, measured here.

    python -m benchmarks.scalpel --data ../shared/data                  # whatever is missing, LeNet-300-100 first
    python -m benchmarks.scalpel --data ../shared/data --only lenet_300_100-simd-0 lenet_5-nodes-0

A cell is one run: `NETWORK-simd-SEED` (groups of 8 weights, thresholds that rise) or `NETWORK-nodes-SEED` (gates of
growing strength). Both start from the dense network of that seed. Cells are resumed from `--work` after a kill, and
finished ones, kept in `results/scalpel.json` with the settings that made them, are not repeated.

Training uses the first 55,000 training images, as they are; the 10,000 test images are looked at when a cell ends.
LeNet-300-100 has the thresholds, strengths, learning rates and epochs of the released code. LeNet-5 has the method with
few epochs, at a greater learning rate and lower strengths to make up for that (`SETTINGS`); its thresholds are ours,
set so that the last one removes the published share of a dense network.

The method: Yu et al., Scalpel: customizing DNN pruning to the underlying hardware parallelism, 2017.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

import secateurs as sec
from benchmarks import lenet, mnist_data, mnist_nets
from benchmarks.by_cell import Study
from secateurs.sparsity.simd_matrix import csr_bits

TRAIN = 55_000

SETTINGS: dict[str, dict[str, Any]] = {
    "lenet_300_100": {
        "batch": 100,
        "dense": {"epochs": 10, "lr": 0.1, "weight_decay": 1e-4},
        "simd": {
            "width": 8, "thresholds": [0.04, 0.05, 0.06, 0.07, 0.08],
            "retrain": {"epochs": 20, "lr": 0.01, "schedule": "constant"},
        },
        "nodes": {
            "strengths": [2e-4, 3e-4, 1e-3], "start": 0.8002,
            "stage": {"epochs": 30, "lr": 1e-3, "schedule": "constant"},
            "finetune": {"epochs": 20, "lr": 0.1, "weight_decay": 1e-4},
        },
    },
    "lenet_5": {
        "batch": 100,
        "dense": {"epochs": 5, "lr": 0.05, "weight_decay": 1e-4},
        "simd": {
            "width": 8, "thresholds": [0.03, 0.035, 0.04, 0.05, 0.06],
            "retrain": {"epochs": 3, "lr": 0.01, "schedule": "constant"},
        },
        "nodes": {
            "strengths": [5e-5, 1e-4, 2e-4], "start": 0.8002,
            "stage": {"epochs": 3, "lr": 0.01, "schedule": "constant"},
            "finetune": {"epochs": 5, "lr": 0.05, "weight_decay": 1e-4},
        },
    },
}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "lenet_300_100": {
        "removed": {"0.04": 0.606, "0.05": 0.726, "0.06": 0.824, "0.07": 0.887, "0.08": 0.920}, "widths": [161, 64],
        "accuracy": {"dense": 0.9848, "nodes": 0.9854},
    },
    "lenet_5": {"removed": {"last": 0.968}, "widths": [9, 18, 65], "accuracy": {"dense": 0.9934, "nodes": 0.9934}},
}  # fmt: skip
"""What the authors state, for the same networks."""


class Bench:
    """The data, the dense networks, and how to prune and judge, for every cell of a network."""

    def __init__(self, data: Path, work: Path, network: str) -> None:
        self.work, self.network, self.settings = work / network, network, SETTINGS[network]
        images, labels = mnist_data.pixels(data, "train")
        self.train = lenet.Batches(images[:TRAIN], labels[:TRAIN], self.settings["batch"])
        self.validate = _accuracy(images[TRAIN:], labels[TRAIN:])
        self.test = _accuracy(*mnist_data.pixels(data, "test"))
        self.example = images[:1]

    def run(self, kind: str, seed: int) -> dict[str, Any]:
        return {"simd": self.simd, "nodes": self.nodes}[kind](seed)

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
        """The network before pruning; channels last, in which convolutions train in half of the time here."""
        torch.manual_seed(seed)
        config = self.training(self.settings["dense"], seed)
        model = mnist_nets.build(self.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return sec.finetune(model, self.train, config, folder=self.work / f"dense-{seed}").model

    def training(self, wanted: dict[str, Any], seed: int, **more: Any) -> sec.FineTune:
        return sec.FineTune(seed=seed, progress=False, **wanted, **more)


def storage(model: nn.Module, masks: dict[str, Tensor], width: int) -> dict[str, Any]:
    """Bytes of all masked weights, 32-bit numbers throughout: as they are, in SIMD groups, in sparse rows."""
    dense = sum(32 * mask.numel() for mask in masks.values()) // 8
    groups = sum(sec.SimdMatrix.of(model.get_parameter(n), width, mask=mask).bits() for n, mask in masks.items()) // 8
    rows = sum(csr_bits(int(mask.sum()), len(mask)) for mask in masks.values()) // 8
    return {"dense_bytes": dense, "simd_bytes": groups, "csr_bytes": rows, "simd_share": round(groups / dense, 4)}


def cells(seeds: list[int]) -> list[str]:
    """All of LeNet-300-100 first."""
    return [f"{network}-{kind}-{seed}" for network in SETTINGS for seed in seeds for kind in ("simd", "nodes")]


def used(cell: str) -> dict[str, Any]:
    """Those of the settings that decide the result of a cell."""
    network, kind, _ = cell.split("-")
    return {name: SETTINGS[network][name] for name in ("batch", "dense", kind)}


def run(data: Path, work: Path, cell: str) -> dict[str, Any]:
    network, kind, seed = cell.split("-")
    return Bench(data, work, network).run(kind, int(seed))


def _accuracy(images: Tensor, labels: Tensor) -> Any:
    return sec.accuracy(list(zip(images.split(1000), labels.split(1000), strict=True)))


def _say(row: Any) -> None:
    print(f"  {row}", flush=True)


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """Over the seeds of each kind of cell: means, and the spread of the points of test accuracy that are lost."""
    rows: dict[str, Any] = {}
    for network, kind in ((network, kind) for network in SETTINGS for kind in ("simd", "nodes")):
        found = [cell for name, cell in sorted(cells.items()) if name.startswith(f"{network}-{kind}-")]
        if not found:
            continue
        lost = [100 * (cell["test"]["dense"] - cell["test"]["pruned"]) for cell in found]
        row = {
            "seeds": len(found),
            "test_dense": round(mean(cell["test"]["dense"] for cell in found), 4),
            "test_pruned": round(mean(cell["test"]["pruned"] for cell in found), 4),
            "points_lost": round(mean(lost), 2),
            "points_lost_spread": round(stdev(lost), 2) if len(lost) > 1 else None,
        }
        if kind == "simd":
            keys = found[0]["removed"]
            row["removed"] = {key: round(mean(cell["removed"][key] for cell in found), 4) for key in keys}
            row["simd_share"] = round(mean(cell["storage"]["simd_share"] for cell in found), 4)
        else:
            row["widths"] = [cell["widths"][-1] for cell in found]
            row["params_left"] = round(mean(cell["params_left"] for cell in found), 4)
        rows[f"{network}-{kind}"] = row
    return rows


def table(cells: dict[str, Any]) -> Table:
    """What was removed at each threshold beside what was published, and the widths."""
    rows = summary(cells)
    found = Table("cell", "seeds", "result", "published", "test: dense", "pruned", "points lost", box=None)
    for name, row in rows.items():
        published = PUBLISHED[name.split("-")[0]]
        spread = "" if row["points_lost_spread"] is None else f" ± {row['points_lost_spread']}"
        if "removed" in row:
            result = ", ".join(f"{share:.1%}" for share in row["removed"].values())
            known = ", ".join(f"{share:.1%}" for share in published["removed"].values())
        else:
            result = ", ".join("-".join(map(str, widths)) for widths in row["widths"])
            known = "-".join(map(str, published["widths"]))
        shares = [f"{row[part]:.2%}" for part in ("test_dense", "test_pruned")]
        found.add_row(name, str(row["seeds"]), result, known, *shares, f"{row['points_lost']}{spread}")
    return found


STUDY = Study("scalpel", __doc__.splitlines()[0], ("mnist",), cells, used, run, summary, table, PUBLISHED)

if __name__ == "__main__":
    raise SystemExit(STUDY.main())
