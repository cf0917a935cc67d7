"""Time and memory of packing a network of ResNet-50's size: `python -m benchmarks.pack_size`.

25.5 million float32 weights (the layers of ResNet-50, random): as they are; 90 % of every layer pruned and the rest
shared in 4 bits; integers of 8 bits. Each case runs in a process of its own, which quantises and writes the file and
then reads it back into a model of the class. `peak_mb` is the most memory above what the process held before there was
a model: the float model, codes, file and the model that comes back are in it, pages of the file mapped to be read are
not. Writes `benchmarks/results/pack_size.json`; a case
that is in it is not run again unless `--again`. Exits 1 above 20 s or three times the float model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import secateurs as sec
from secateurs.base.files import write_text
from secateurs.device.environment import Environment

RESULT = Path(__file__).parent / "results" / "pack_size.json"
OPTIONS: dict[str, Any] = {"dense": {}, "pruned and shared": {"share": 4}, "integers": {"integers": 8}}
SECONDS, FACTOR = 20.0, 3.0
PAGE = os.sysconf("SC_PAGE_SIZE")


def build() -> nn.Module:
    """The layers of ResNet-50 with random weights, one after the other; it is not meant to run."""
    torch.manual_seed(0)
    layers = _normed(3, 64, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers += _normed(channels, width, 1) + _normed(width, width, 3) + _normed(width, 4 * width, 1)
            layers += _normed(channels, 4 * width, 1) if block == 0 else []
            channels = 4 * width
    return nn.Sequential(*layers, nn.Linear(2048, 1000)).eval()


def _normed(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, bias=False), nn.BatchNorm2d(outputs)]


def resident() -> int:
    """Bytes of memory that this process holds now, without pages of files."""
    _, pages, of_files = (int(word) for word in Path("/proc/self/statm").read_text().split()[:3])
    return (pages - of_files) * PAGE


class Peak:
    """The most memory held since the last `reset`, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.most = resident()
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        self.most = resident()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, resident())
            time.sleep(0.002)


def case(name: str, path: Path) -> dict[str, Any]:
    """Packs and unpacks once, in this process."""
    baseline, peak = resident(), Peak()
    model = build()
    weights = [item for item in model.parameters() if item.dim() > 1]
    floats = 4 * sum(item.numel() for item in model.parameters())
    if name == "pruned and shared":
        with torch.no_grad():
            for weight in weights:
                least = weight.abs().flatten().kthvalue(int(0.9 * weight.numel())).values
                weight.mul_(weight.abs() > least)
    found: dict[str, Any] = {"weights": sum(item.numel() for item in weights), "float_mb": round(floats / 1e6, 1)}
    for step in ("pack", "unpack"):
        start = time.perf_counter(), time.process_time()
        peak.reset()
        if step == "pack":
            found["bytes"] = sec.pack(model, path, **OPTIONS[name]).bytes
            del model, weights
        else:
            sec.unpack(path, build)
        found[step] = {
            "seconds": round(time.perf_counter() - start[0], 2),
            "cpu_seconds": round(time.process_time() - start[1], 2),
            "peak_mb": round((peak.most - baseline) / 1e6, 1),
        }
    return {**found, "factor": round(floats / found["bytes"], 2)}


def met(row: dict[str, Any]) -> bool:
    """Pack and unpack each fast enough (in CPU seconds: the machine is shared) and small enough."""
    return all(
        row[step]["cpu_seconds"] < SECONDS and row[step]["peak_mb"] <= FACTOR * row["float_mb"]
        for step in ("pack", "unpack")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=OPTIONS, help="run one case in this process and print it")
    parser.add_argument("--again", action="store_true", help="run cases anew that are in the result")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(2)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(case(options.case, Path(folder) / "model.sec")))
        return 0
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"cases": {}}
    for name in OPTIONS:
        if name in found["cases"] and not options.again:
            continue
        command = [sys.executable, "-m", "benchmarks.pack_size", "--case", name]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        found["cases"][name] = {**row, "met": met(row)}
        found["environment"] = asdict(
            Environment.now(f"numpy {np.__version__}, constriction {version('constriction')}")
        )
        write_text(options.out, json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found["cases"][name]), flush=True)
    return 0 if all(row["met"] for row in found["cases"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
