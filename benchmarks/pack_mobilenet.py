"""MobileNet v1 0.75 as one small file without training: integers with error feedback, bits by their effect, zeros.

    python -m benchmarks.pack_mobilenet --data ../shared/data               # whatever is missing
    python -m benchmarks.pack_mobilenet --data ../shared/data --only dense-6  # of that kind and size, all seeds

A cell, `KIND-TIMES-SEED`, is a file that many times smaller than the float32 numbers of the network. Every kernel is
coded in 2 to 8 bits with error feedback (`quantise(gram=)`): what rounding one weight spoils in the layer's output, the
others make good. An exact search takes for each kernel the bits whose relative output errors have the least sum within
the bytes. Batch norms are measured anew afterwards (`recalibrated`) or not (`packed`). `dense` codes the network as it
is; `zeros` after `sec.sparsify_once`, which empties half of each pointwise layer and refits the rest; `plain` codes
every kernel in as many bits as the next, without feedback.

Calibrated on the 500 photos of half of the classes (seed 0: even numbers, 1: odd ones, then halves at random); accuracy
on those and on the 500 of the other classes, beside the original's (standard error of the difference about a point).
All of them are training photos of the published network; no other images exist. Finished cells stay in
`results/pack_mobilenet.json`; moments are kept in `--work`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save
from torch import Tensor, nn

import secateurs as sec
from benchmarks import imagenet
from secateurs.base.files import write_bytes, write_text
from secateurs.device.environment import Environment
from secateurs.pack.allocate import Candidate, allocate
from secateurs.pack.chosen import weights
from secateurs.pack.coded import Coded
from secateurs.pack.feedback import output_error
from secateurs.pack.integers import quantise
from secateurs.pack.mixed import file_bytes
from secateurs.pack.moments import input_moments

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "pack_mobilenet.json"
KINDS = ("dense-6", "dense-8", "plain-6", "dense-10", "zeros-8", "zeros-10")

SETTINGS: dict[str, Any] = {
    "network": "mobilenet_v1_075_imagenet, published weights",
    "photos": {"calibration": "seed 0: even class numbers; 1: odd ones; others: a random half", "batch": 50},
    "moments": {"samples_per_image": 64},
    "bits": [2, 3, 4, 5, 6, 7, 8],
    "zeros": {"layers": "conv_pw_*", "sparsity": 0.5, "batches": 5, "samples_per_image": 64, "rounds": 4},
    "recalibrate": 10,
}
BAR = {"times": 5.0, "points": 1.0}


class Bench:
    """The network, the photos, and what is the same for all cells of a seed."""

    def __init__(self, data: Path, work: Path, seed: int) -> None:
        size = SETTINGS["photos"]["batch"]
        self.model = imagenet.mobilenet(data)
        calibration, judged = halves(seed)
        self.calibration = imagenet.Photos(data, imagenet.centred, calibration, size)
        self.judged = imagenet.Photos(data, imagenet.centred, judged, size)
        self.work = work / f"seed-{seed}"
        self._networks: dict[str, tuple[nn.Module, dict[str, dict[int, Coded]], dict[str, dict[int, float]]]] = {}

    def floats(self) -> int:
        """Bytes of the network's numbers in float32, without any header."""
        return 4 * sum(item.numel() for item in self.model.state_dict().values() if item.is_floating_point())

    def accuracy(self, model: nn.Module) -> dict[str, float]:
        """Top-1 on both halves of the photos."""
        both = {"calibration": self.calibration, "judged": self.judged}
        return {name: round(imagenet.right(model, photos)[0], 4) for name, photos in both.items()}

    @cached_property
    def original(self) -> dict[str, float]:
        return self.accuracy(self.model)

    def ways(self, kind: str) -> tuple[nn.Module, dict[str, dict[int, Coded]], dict[str, dict[int, float]]]:
        """The network of that kind, its kernels in every number of bits, and their relative output errors."""
        if kind not in self._networks:
            model = self.zeros() if kind == "zeros" else self.model
            moments = self.moments(kind, model)
            coded: dict[str, dict[int, Coded]] = {}
            errors: dict[str, dict[int, float]] = {}
            for name, weight in weights(model).items():
                gram = moments[name]
                coded[name] = {bits: quantise(weight, bits, gram=gram) for bits in SETTINGS["bits"]}
                values, moment = weight.detach().double().numpy(), gram.numpy()
                whole = output_error(values, moment)
                errors[name] = {bits: output_error(item.decode() - values, moment) / whole
                                for bits, item in coded[name].items()}  # fmt: skip
            self._networks[kind] = model, coded, errors
        return self._networks[kind]

    def zeros(self) -> nn.Module:
        """Half of the pointwise weights emptied, without training; kept in the work folder."""
        path = self.work / "zeros.safetensors"
        if not path.exists():
            wanted = dict(SETTINGS["zeros"])
            layers, sparsity = wanted.pop("layers"), wanted.pop("sparsity")
            found = sec.sparsify_once(self.model, self.calibration, sparsity, only=[layers], **wanted)
            _store(path, found.model.state_dict())
        model = imagenet.MobileNet()
        model.load_state_dict(load_file(path))
        return model.eval()

    def moments(self, kind: str, model: nn.Module) -> dict[str, Tensor]:
        path = self.work / f"moments-{kind}.safetensors"
        if not path.exists():
            _store(path, input_moments(model, self.calibration, **SETTINGS["moments"]))
        return load_file(path)

    def run(self, cell: str) -> dict[str, Any]:
        """The file of a cell, and the accuracy of what is in it."""
        kind, times, _ = cell.split("-")
        started = time.process_time()
        budget = int(self.floats() / float(times))
        model, coded = self.plain(budget) if kind == "plain" else self.chosen(kind, budget)
        path = self.work / f"{cell}.sec"
        ledger = sec.pack(model, path, coded=coded)
        assert kind == "plain" or ledger.bytes <= budget
        packed = sec.unpack(path, build=imagenet.MobileNet)
        row: dict[str, Any] = {"original": self.original, "bytes": ledger.bytes, "float_bytes": self.floats()}
        row["parts"] = ledger.parts
        row["times_smaller"] = round(self.floats() / ledger.bytes, 2)
        row["bits"] = {name: item.content.bits for name, item in coded.items()}  # type: ignore[union-attr]
        row["accuracy"] = {"packed": self.accuracy(packed)}
        fresh = sec.recalibrate(packed, self.calibration, batches=SETTINGS["recalibrate"])
        row["accuracy"]["recalibrated"] = self.accuracy(fresh)
        return {**row, "cpu_seconds": round(time.process_time() - started, 1)}

    def chosen(self, kind: str, budget: int) -> tuple[nn.Module, dict[str, Coded]]:
        """Bits by error, the whole file within the budget."""
        model, coded, errors = self.ways(kind)
        smallest = {name: each[min(each)] for name, each in coded.items()}
        rest = _file(model, smallest, self.work) - sum(file_bytes(item) for item in smallest.values())
        listed = {
            name: [Candidate(bits, errors[name][bits], file_bytes(item)) for bits, item in each.items()]
            for name, each in coded.items()
        }
        found = allocate(listed, budget - rest - 16 * len(listed))
        return model, {name: coded[name][bits] for name, bits in found.bits.items()}

    def plain(self, budget: int) -> tuple[nn.Module, dict[str, Coded]]:
        """The most bits, the same for all kernels and without feedback, with which the file comes nearest to it."""
        ways = {bits: {name: quantise(weight, bits) for name, weight in weights(self.model).items()}
                for bits in SETTINGS["bits"]}  # fmt: skip
        sizes = {bits: _file(self.model, coded, self.work) for bits, coded in ways.items()}
        return self.model, ways[min(sizes, key=lambda bits: abs(sizes[bits] - budget))]


def halves(seed: int) -> tuple[list[int], list[int]]:
    """The classes whose photos calibrate, and those whose photos judge."""
    if seed < 2:
        return list(range(seed, 1000, 2)), list(range(1 - seed, 1000, 2))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[:500]), sorted(order[500:])


def _file(model: nn.Module, coded: Mapping[str, Coded], work: Path) -> int:
    work.mkdir(parents=True, exist_ok=True)
    return sec.pack(model, work / "trial.sec", coded=coded).bytes


def _store(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def main() -> int:
    arguments = _arguments()
    if not (arguments.data / "imagenet_models").is_dir():
        print(f"There are no ImageNet networks at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    cells = found.get("cells", {}) if found.get("settings") == SETTINGS else {}
    for seed in arguments.seeds:
        bench = Bench(arguments.data, arguments.work, seed)
        for cell in (f"{kind}-{seed}" for kind in arguments.only or KINDS):
            if cell not in cells:
                print(f"== {cell}", flush=True)
                cells[cell] = bench.run(cell)
                print(f"  {cells[cell]['times_smaller']}x: {cells[cell]['accuracy']}, {bench.original}", flush=True)
                _write(cells)
    Console().print(_table(cells))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pack_mobilenet", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="with imagenet_models/")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "pack_mobilenet", help="where moments are kept")
    return parser.parse_args()


def _write(cells: Mapping[str, Any]) -> None:
    environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
    found = {
        "settings": SETTINGS, "summary": summary(cells), "cells": dict(sorted(cells.items())),
        "environment": environment,
    }  # fmt: skip
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_text(OUT, json.dumps(found, indent=1) + "\n")


def summary(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Points lost by kind, means over the seeds, over both halves (`all`) and on each; and the smallest file within the
    bar both on all of the 1,000 photos and on those that nothing was calibrated on, with three seeds.
    """
    rows, within = {}, []
    for kind in dict.fromkeys(name.rsplit("-", 1)[0] for name in cells):
        mine = [cell for name, cell in cells.items() if name.rsplit("-", 1)[0] == kind]
        steps = {step: [_lost(cell["original"], cell["accuracy"][step]) for cell in mine]
                 for step in mine[0]["accuracy"]}  # fmt: skip
        lost = {
            step: {half: round(mean(each[half] for each in seeds), 2) for half in seeds[0]}
            for step, seeds in steps.items()
        }
        spread = {step: round(stdev(each["judged"] for each in seeds), 2) if len(seeds) > 1 else None
                  for step, seeds in steps.items()}  # fmt: skip
        times = min(cell["times_smaller"] for cell in mine)
        rows[kind] = {"times_smaller": times, "seeds": len(mine), "points_lost": lost, "judged_spread": spread}
        if len(mine) >= 3 and any(max(each["all"], each["judged"]) <= BAR["points"] for each in lost.values()):
            within.append(times)
    return {"rows": rows, "smallest_within": max(within, default=None), "met": max(within, default=0) >= BAR["times"]}


def _lost(original: Mapping[str, float], accuracy: Mapping[str, float]) -> dict[str, float]:
    """Points on each half, and on both."""
    found = {half: 100 * (original[half] - accuracy[half]) for half in original}
    return {**found, "all": mean(found.values())}


def _table(cells: Mapping[str, Any]) -> Table:
    table = Table("kind", "seeds", "times smaller", "points lost, packed", "recalibrated", "other classes", box=None)
    for name, row in summary(cells)["rows"].items():
        lost = row["points_lost"]
        table.add_row(
            name, f"{row['seeds']}", f"{row['times_smaller']}", f"{lost['packed']['all']}",
            f"{lost['recalibrated']['all']}", f"{lost['packed']['judged']}, {lost['recalibrated']['judged']}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    raise SystemExit(main())
