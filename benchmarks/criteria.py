"""Criteria against the oracle on ResNet-20 and CIFAR-10, and the oracle against the loop that everybody writes first.

    python -m benchmarks.criteria --data ../shared/data
    python -m benchmarks.criteria --data ../shared/data --only speed

Speed: every unit is removed, one at a time, on 1,000 training images by `masked_means`; the plain model with hooks, run
whole once per unit, does a random sample of the units, and its seconds per unit stand for the rest, for each costs it
the same. The two take turns on parts of the images; seconds are CPU seconds of one thread, which other programs on the
machine do not stretch as much. Correlations: every registered criterion
that applies, on the same images, with Spearman's rho against the oracle per group and over all units.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import cifar
from secateurs.base.files import write_text
from secateurs.capture import capture
from secateurs.couple import Groups, couple
from secateurs.device.environment import Environment
from secateurs.report.criteria import compare_criteria
from secateurs.score.criterion import Context
from secateurs.score.masking import masked_means
from secateurs.score.samples import Samples
from secateurs.score.score import tensors_of

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "criteria.json"
PARTS = ("speed", "correlation")
BAR = 3.0
"""Times that the oracle must be faster than the naive loop."""

CLOSE = 1e-6
"""Largest difference of a loss change between the two."""


def main() -> int:
    arguments = _arguments()
    if not (arguments.data / "cifar10_models").is_dir():
        print(f"There is no CIFAR-10 at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    found = {part: found[part] for part in PARTS if part in found}
    data = cifar.train_set(arguments.data, arguments.images)
    if "speed" in arguments.only:
        found["speed"] = _speed(arguments.data, data, arguments.units, arguments.turns)
        _write(found)
    if "correlation" in arguments.only:
        model = cifar.pretrained(arguments.data)
        comparison = compare_criteria(
            model, data[0][0][:2], data=data, on_stage=lambda stage: print("-", stage, flush=True)
        )
        print(comparison)
        found["correlation"] = {"images": arguments.images, **comparison.to_dict()}
        _write(found)
    speed = found.get("speed", {})
    return 0 if speed.get("met", True) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.criteria", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with cifar10/")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="the other part stays as stored")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--units", type=int, default=40, help="units that the naive loop removes")
    parser.add_argument("--turns", type=int, default=5, help="turns that each side takes, on as many images each")
    return parser.parse_args()


def _speed(folder: Path, data: list[tuple[Tensor, Tensor]], count: int, turns: int) -> dict[str, Any]:
    """Both loops on parts of the images in turns: all units here, a sample of them there."""
    model = cifar.pretrained(folder)
    groups = couple(capture(model, data[0][0][:2]))
    every = [(group.name, unit) for group in groups.free for unit in range(group.size)]
    drawn = sorted(random.Random(0).sample(range(len(every)), min(count, len(every))))
    seconds: list[list[float]] = []
    worst = 0.0
    for turn in range(turns):
        part = data[turn::turns]
        times: dict[str, float] = {}
        changes: dict[str, Tensor] = {}
        for side in ("naive", "oracle") if turn % 2 else ("oracle", "naive"):
            started = time.process_time()
            if side == "naive":
                changes[side] = _naive(model, groups, part, [every[i] for i in drawn])
                times[side] = (time.process_time() - started) * (len(every) + 1) / (len(drawn) + 1)
            else:
                changes[side] = _ours(model, groups, part, every)[drawn]
                times[side] = time.process_time() - started
        seconds.append([times["naive"], times["oracle"]])
        apart = float((changes["naive"] - changes["oracle"]).abs().max())
        worst = max(worst, apart)
        shown = ", ".join(f"{side} {spent:.1f} s" for side, spent in sorted(times.items()))
        print(f"turn {turn + 1}: {shown}, differ by {apart:.1e}", flush=True)
    ratio = sum(naive for naive, _ in seconds) / sum(ours for _, ours in seconds)
    images = sum(len(labels) for _, labels in data)
    print(f"{len(every)} units, {images} images: {ratio:.2f} times faster")
    return {
        "units": len(every), "timed_naively": len(drawn), "images": images, "batch": len(data[0][1]),
        "cpu_seconds": {"order": ["naive, for all units", "oracle"], "turns": seconds}, "times_faster": ratio,
        "bar": BAR, "largest_difference": worst, "allowed_difference": CLOSE, "met": ratio >= BAR and worst <= CLOSE,
    }  # fmt: skip


def _ours(
    model: cifar.ResNet, groups: Groups, data: list[tuple[Tensor, Tensor]], units: list[tuple[str, int]]
) -> Tensor:
    samples = Samples(model, groups.graph, data)
    context = Context(groups, model, tensors_of(groups, model), torch.Generator(), samples)
    plain, masked = masked_means(context, [{name: [unit]} for name, unit in units])
    return masked - plain


def _naive(
    model: cifar.ResNet, groups: Groups, data: list[tuple[Tensor, Tensor]], units: list[tuple[str, int]]
) -> Tensor:
    """The plain model once per unit, with hooks that zero the channel wherever a layer reads it."""
    plain = _loss(model, data)
    found = []
    for name, unit in units:
        hooks = []
        for member in groups[name].members:
            weight = model.get_parameter(member.leaf) if member.leaf.endswith("weight") else None
            if member.role == "in" and weight is not None and weight.dim() > 1:
                layer = model.get_submodule(member.leaf.removesuffix(".weight"))
                hooks.append(layer.register_forward_pre_hook(_silence(member.positions(unit).tolist())))
        found.append(_loss(model, data) - plain)
        for hook in hooks:
            hook.remove()
    return torch.tensor(found, dtype=torch.float64)


def _silence(channels: list[int]) -> Any:
    def silence(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0].clone()
        x[:, channels] = 0
        return (x, *inputs[1:])

    return silence


def _loss(model: cifar.ResNet, data: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return sum(float(F.cross_entropy(model(x), y)) * len(y) for x, y in data) / sum(len(y) for _, y in data)


def _write(found: dict[str, Any]) -> None:
    header = {
        "command": " ".join(["python -m benchmarks.criteria", *sys.argv[1:]]),
        "environment": asdict(Environment.now(f"torch {version('torch')}, 1 thread")),
        "network": "ResNet-20, CIFAR-10, training images, not augmented",
    }
    write_text(OUT, json.dumps({**header, **found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
