"""Two of five weights gone from a segmentation network: U-Net on CamVid, road against the rest, and what gzip gains.

    python -m benchmarks.camvid --data ../shared/data                # whatever is missing
    python -m benchmarks.camvid --data ../shared/data --only dense-0 layer-0

The example of Arm's article on pruning (U-Net, encoder as MobileNetV2, decoder of transposed convolutions, 40 % of the
weights zero; accuracy 0.9571 -> 0.9165, compressed size 3,613,521 -> 2,243,745 bytes, rate 37.9 %) on other data: its
portraits are not free. Road, not person: pedestrians are 0.7 % of CamVid's pixels, so that a network which sees none
is right on 99.3 % of them and no loss of accuracy would show. Road is 27 % of the test pixels.

Each seed trains a network on the 367 training images and then goes on from it for the same epochs in four ways, alike
in everything else: `dense`, the control; `layer`, with 40 % of the weights of every layer zero; `global`, with the
smallest 40 % of all; `fours`, with the smallest of all in groups of four neighbours along the input (`simd(4)`, one
register of Arm's Neon in float32). Zeros come gradually and are held. A cell is one of them, `WAY-SEED`. Accuracy is
that of pixels, and IoU that of the road, over all labelled pixels of a split at 128 x 96. Settings were set beforehand,
none by looking at results, but `fours`, which came after the gzip rates of the others were known, chosen by the rate of
the dense network cut so; test images are looked at when a cell ends. `rate` is `1 - sparse / dense` of the float32
weights, biases and batch norms in gzip (`secateurs.pack.baseline`), the reduction that the article reports;
`weights_rate` that of the weights of layers alone, which are all that has zeros. Beside them stands what gzip gains on
independent normal numbers of which the smallest are zero: zeros in no order spare less than their share, as their
places have to be coded, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import secateurs as sec
from benchmarks import camvid_data as scenes
from benchmarks import camvid_net, camvid_picture
from secateurs.base.files import write_text
from secateurs.device.environment import Environment
from secateurs.pack.baseline import gzip_bytes

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "camvid.json"
WAYS: dict[str, dict[str, str]] = {
    "dense": {},
    "layer": {"scope": "layer"},
    "global": {"scope": "global"},
    "fours": {"scope": "global", "pattern": "simd(4)"},
}
"""The control, and how the others choose what becomes zero."""
SETTINGS: dict[str, Any] = {
    "network": {"stem": camvid_net.STEM, "stages": [list(stage) for stage in camvid_net.STAGES]},
    "size": list(scenes.SIZE), "batch": 16, "optimizer": "adamw", "weight_decay": 0.01,
    "first": {"epochs": 12, "lr": 3e-3, "warmup": 1.0}, "then": {"epochs": 6, "lr": 1e-3},
    "sparsity": 0.4, "schedule": {"begin": 0, "end": "50%", "every": 8},
}  # fmt: skip
BARS: dict[str, Any] = {"sparsity": 0.4, "points_lost_below": 1.0, "rate": [0.35, 0.40], "seeds": 3}
PUBLISHED = {"sparsity": 0.4, "accuracy": [0.9571, 0.9165], "gzip_bytes": [3_613_521, 2_243_745], "rate": 0.3791}
PICTURED_AFTER = "layer-0"
PICTURED = (20, 80, 140, 200)
"""Test images that are drawn; by number, not by looking."""


class Bench:
    """The data, and what is done with it for a seed."""

    def __init__(self, data: Path, work: Path, settings: Mapping[str, Any] = SETTINGS) -> None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
        self.data, self.work, self.settings = data, work / digest, settings
        self.train = scenes.Scenes(*scenes.read(data, "train"), settings["batch"])
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    def run(self, cell: str) -> dict[str, Any]:
        """Accuracy, IoU and sizes of a cell."""
        way, seed = parse(cell)
        model, dense = self.model(way, seed), self.model("dense", seed)
        row: dict[str, Any] = {"params": sum(item.numel() for item in model.parameters())}
        row |= {split: judged(model, *self.split(split)) for split in ("val", "test")}
        return row | self.sizes(model, dense, self.work / f"{cell}.sec")

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._splits:
            self._splits[name] = scenes.read(self.data, name)
        return self._splits[name]

    def model(self, way: str, seed: int) -> nn.Module:
        """The trained network, from the work folder if it was there before."""
        start, wanted = camvid_net.build(seed).eval(), self.settings["first"]
        found = self._trained("first", start, wanted, seed, None)
        held = None
        if way != "dense":
            schedule = sec.Gradual(**self.settings["schedule"])
            held = sec.Sparsity(self.settings["sparsity"], schedule=schedule, **WAYS[way])
        return self._trained(way, found, self.settings["then"], seed, held)

    def _trained(
        self, name: str, start: nn.Module, wanted: Mapping[str, Any], seed: int, held: sec.Sparsity | None
    ) -> nn.Module:
        config = sec.FineTune(
            optimizer=self.settings["optimizer"], weight_decay=self.settings["weight_decay"], loss=camvid_net.loss,
            sparsity=held, seed=seed, progress=False, **wanted,
        )  # fmt: skip
        return sec.finetune(start, self.train, config, folder=self.work / f"{name}-{seed}").model.eval()

    def sizes(self, model: nn.Module, dense: nn.Module, path: Path) -> dict[str, Any]:
        """Bytes in float32, in gzip and in a packed file; how many weights are zero."""
        ledger = sec.pack(model, path, gzip=True, original=dense)
        assert ledger.baseline is not None
        base, weights = ledger.baseline, sec.sparsity.layer_weights(model)
        layers = {name: (item.tensor.numel(), int((item.tensor == 0).sum())) for name, item in weights.items()}
        total, zeros = (sum(counts) for counts in zip(*layers.values(), strict=True))
        return {
            "sparsity": zeros / total, "float_bytes": base.raw, "gzip_bytes": base.gzip_packed, "rate": base.rate,
            "weights_rate": base.weights_rate,
            "packed_bytes": ledger.bytes,
            "zeros_by_layer": {name: round(zero / count, 4) for name, (count, zero) in layers.items()},
        }  # fmt: skip


def normal_rate(share: float, count: int = 400_000) -> float:
    """The gzip rate of normal float32 numbers when this share of them, the smallest, becomes zero."""
    numbers = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    sparse = numbers.copy()
    sparse[np.abs(numbers).argsort()[: round(share * count)]] = 0
    return 1 - gzip_bytes({"normal": sparse}) / gzip_bytes({"normal": numbers})


@torch.no_grad()
def judged(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, float]:
    """Accuracy of the labelled pixels and IoU of the road, all images together."""
    right = known = both = either = 0
    for part, labels in zip(images.split(16), classes.split(16), strict=True):
        target = scenes.target_of(labels)
        said, road, counts = model(scenes.scaled(part)) > 0, target == 1, target != scenes.IGNORED
        right += int(((said == road) & counts).sum())
        known += int(counts.sum())
        both += int((said & road).sum())
        either += int(((said | road) & counts).sum())
    return {"accuracy": round(right / known, 5), "iou": round(both / either, 5)}


def parse(cell: str) -> tuple[str, int]:
    """Way and seed of a cell. Raises `SystemExit` for another name."""
    way, _, seed = cell.partition("-")
    if way not in WAYS or not seed.isdigit():
        raise SystemExit(f"There is no cell {cell!r}: give WAY-SEED, WAY one of {', '.join(WAYS)}.")
    return way, int(seed)


def summary(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Over the seeds of each way: means; points lost against the dense control of the same seed; the bars."""
    found: dict[str, Any] = {}
    for way in WAYS:
        seeds = [seed for seed in map(int, _seeds(cells, way)) if f"dense-{seed}" in cells]
        if seeds:
            mine, control = ([cells[f"{kind}-{seed}"] for seed in seeds] for kind in (way, "dense"))
            found[way] = _over_seeds(mine, control)
            if way != "dense":
                found[way]["met"] = _met(mine, found[way])
    return found


def _seeds(cells: Mapping[str, Any], way: str) -> list[str]:
    return sorted(name.partition("-")[2] for name in cells if name.startswith(f"{way}-"))


def _over_seeds(mine: list[dict[str, Any]], control: list[dict[str, Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"seeds": len(mine)}
    for name in ("sparsity", "rate", "weights_rate"):
        entry[name] = round(mean(item[name] for item in mine), 4)
    for name in ("float_bytes", "gzip_bytes", "packed_bytes"):
        entry[name] = round(mean(item[name] for item in mine))
    for name in ("accuracy", "iou"):
        lost = [100 * (one["test"][name] - other["test"][name]) for one, other in zip(control, mine, strict=True)]
        entry[name] = round(mean(item["test"][name] for item in mine), 4)
        entry[f"{name}_points_spread"] = _spread([100 * item["test"][name] for item in mine])
        entry[f"{name}_points_lost"] = round(mean(lost), 3)
        entry[f"{name}_points_lost_spread"] = _spread(lost)
    return entry


def _spread(values: list[float]) -> float | None:
    return round(stdev(values), 3) if len(values) > 1 else None


def _met(mine: list[dict[str, Any]], entry: dict[str, Any]) -> dict[str, bool]:
    """Each bar: the zeros in every seed, the others by the mean of the seeds. All are open with too few seeds."""
    enough, (least, most) = entry["seeds"] >= BARS["seeds"], BARS["rate"]
    return {
        "sparsity": enough and all(round(item["sparsity"], 3) >= BARS["sparsity"] for item in mine),
        "accuracy": enough and entry["accuracy_points_lost"] < BARS["points_lost_below"],
        "rate": enough and least <= entry["rate"] <= most,
    }


def table(cells: Mapping[str, Any]) -> Table:
    """One row for each way."""
    found = Table(
        "way", "seeds", "zeros", "accuracy", "lost", "IoU", "lost", "gzip", "rate", "weights", ".sec", box=None
    )
    for way, entry in summary(cells).items():
        lost = [
            f"{entry[f'{name}_points_lost']} ± {entry[f'{name}_points_lost_spread']}" for name in ("accuracy", "iou")
        ]
        found.add_row(
            way, str(entry["seeds"]), f"{entry['sparsity']:.1%}", f"{entry['accuracy']:.2%}", lost[0],
            f"{entry['iou']:.2%}", lost[1], f"{entry['gzip_bytes']:,}", f"{entry['rate']:.1%}",
            f"{entry['weights_rate']:.1%}", f"{entry['packed_bytes']:,}",
        )  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camvid", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with camvid/")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="WAY-SEED")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "camvid", help="where killed cells are resumed")
    arguments = parser.parse_args()
    if not (arguments.data / scenes.ARCHIVE).is_file():
        print(f"There is no CamVid at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    stored = json.loads(OUT.read_text()) if OUT.exists() else {}
    cells = stored.get("cells", {}) if stored.get("settings") == SETTINGS else {}
    wanted = arguments.only or _cells(arguments.seeds)
    missing = [cell for cell in wanted if parse(cell) and cell not in cells]
    bench = Bench(arguments.data, arguments.work) if missing else None
    for cell in missing:
        assert bench is not None
        print(f"== {cell}", flush=True)
        cells[cell] = bench.run(cell)
        _write(cells)
        if cell == PICTURED_AFTER:
            models = {way: bench.model(way, parse(cell)[1]) for way in ("dense", parse(cell)[0])}
            camvid_picture.write(arguments.work / "camvid.png", *bench.split("test"), models, PICTURED)
    Console(width=120).print(table(cells))
    return 0


def _cells(seeds: list[int]) -> list[str]:
    """The published way first, for all seeds."""
    ways = list(WAYS)
    return [f"{way}-{seed}" for part in (ways[:2], ways[2:]) for seed in seeds for way in part]


def _write(cells: dict[str, Any]) -> None:
    environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
    normal = {"normal_rate": {str(share): round(normal_rate(share), 4) for share in (0.4, 0.45)}}
    found: dict[str, Any] = {
        "settings": SETTINGS,
        "ways": WAYS,
        "summary": summary(cells),
        **normal,
        "bars": BARS,
        "published": PUBLISHED,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_text(OUT, json.dumps({**found, "cells": cells, "environment": environment}, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
