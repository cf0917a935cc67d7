"""What scoring costs: every criterion against passes of inference, and forward and backward, over the same data.

    python -m benchmarks.criteria_cost --data ../shared/data               # what is missing in each round

ResNet-20 and CIFAR-10, 1,000 training images in batches of 100, one thread. In a round every criterion scores all
units once (`sec.score`, groups found beforehand), in an order that turns from round to round. Before and after each
four of them the plain model does its passes: a criterion is compared with the mean of the passes on either side.
Seconds are CPU seconds, which other programs on the machine do not stretch as much. The oracle takes part with fewer
images, its seconds scaled to all of them, since its cost grows with their number.

The bar is for criteria that promise one pass; what others do is in `MORE`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from benchmarks import cifar
from secateurs.base.files import write_text
from secateurs.device.environment import Environment
from secateurs.score import CRITERIA

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "criteria_cost.json"
FEW = {"oracle": 0.2}
"""The share of the images that a criterion sees whose cost grows with their number only."""

TOGETHER = 4
"""Criteria between two measurements of the passes."""

SETTINGS: dict[str, Any] = {"network": "resnet20_cifar10", "images": 1000, "batch": 100, "share_of_images": FEW}
BAR = 4.0
"""Most forward-backward passes that a one-pass criterion may cost."""

MORE = {
    "oracle": "an evaluation for each unit",
    "thinet": "one forward pass, then a greedy order for each layer that reads",
    "lasso": "one forward pass, then coordinate descent for each layer that reads",
    "nisp": "one forward pass, then feature selection cubic in the last responses and one pass back",
    "obd hutchinson": "two forward-backward passes for each probe, here 2 probes instead of 32",
    "obd gauss_newton": "a backward pass for each output of the network, here 10",
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "obd hutchinson": ("obd", {"diagonal": "hutchinson", "probes": 2}),
    "obd gauss_newton": ("obd", {"diagonal": "gauss_newton"}),
}
"""Options that change what a criterion costs, beside the defaults."""

Batches = Sequence[tuple[Tensor, Tensor]]
Round = list[dict[str, Any]]
"""In the order of the run: `{"name", "seconds"}`; the passes are named `inference` and `forward_backward`."""


def turned(names: Sequence[str], number: int, rounds: int) -> list[str]:
    """The names in an order that starts elsewhere in every round, every other round backwards."""
    start = number * len(names) // max(1, rounds)
    order = [*names[start:], *names[:start]]
    return order[::-1] if number % 2 else order


def ratios(found: Round) -> dict[str, dict[str, float]]:
    """Each criterion's seconds over those of each pass, the mean of the passes before and after it."""
    result: dict[str, dict[str, float]] = {}
    for place, item in enumerate(found):
        if item["name"] in PASSES:
            continue
        result[item["name"]] = {}
        for name in PASSES:
            before = [each["seconds"] for each in found[:place] if each["name"] == name][-1:]
            after = [each["seconds"] for each in found[place:] if each["name"] == name][:1]
            around = before + after
            result[item["name"]][name] = item["seconds"] * len(around) / sum(around)
    return result


def kind(name: str) -> str:
    """What a criterion looks at: `weights`, `one pass`, or what it does instead."""
    if name in MORE:
        return MORE[name]
    return "one pass" if CRITERIA[VARIANTS.get(name, (name,))[0]].needs else "weights"


def summary(rounds: Sequence[Round]) -> dict[str, dict[str, Any]]:
    """Per criterion: median, least and most over the rounds of its cost in passes, cheapest first."""
    by_name: dict[str, list[dict[str, float]]] = {}
    for each in rounds:
        for name, found in ratios(each).items():
            by_name.setdefault(name, []).append(found)
    rows: dict[str, dict[str, Any]] = {}
    for name, found in by_name.items():
        rows[name] = {"kind": kind(name), "rounds": len(found)}
        for which in PASSES:
            costs = [one[which] for one in found]
            rows[name][which] = [round(number, 3) for number in (median(costs), min(costs), max(costs))]
    return dict(sorted(rows.items(), key=lambda item: float(item[1]["forward_backward"][0])))


def bar(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Do the medians of all one-pass criteria keep the bar? Names those that do not."""
    over = {
        name: row["forward_backward"][0]
        for name, row in rows.items()
        if row["kind"] == "one pass" and row["forward_backward"][0] > BAR
    }
    measured = any(row["kind"] == "one pass" for row in rows.values())
    return {"most_forward_backward_passes": BAR, "over": over, "met": measured and not over}


def table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    found = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("criterion", "forward-backward passes", "inference passes", "rounds", "what it does"):
        found.add_column(name, justify="left" if name in ("criterion", "what it does") else "right")
    for name, row in rows.items():
        spans = ["{:.2f} ({:.2f} to {:.2f})".format(*row[which]) for which in ("forward_backward", "inference")]
        found.add_row(name, *spans, str(row["rounds"]), row["kind"])
    return found


def inference(model: nn.Module, data: Batches) -> None:
    with torch.no_grad():
        for inputs, _ in data:
            model(inputs)


def forward_backward(model: nn.Module, data: Batches) -> None:
    parameters = list(model.parameters())
    for inputs, target in data:
        torch.autograd.grad(F.cross_entropy(model(inputs), target), parameters)


PASSES = {"inference": inference, "forward_backward": forward_backward}


def measure(model: nn.Module, data: Batches, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A round's items as they come: `names` in this order, the passes before, between and behind a few of them."""
    groups = sec.couple(sec.capture(model, data[0][0][:2]))
    images = sum(len(labels) for _, labels in data)
    for place, name in enumerate(names):
        if place % TOGETHER == 0:
            yield from passes(model, data)
        criterion, options = VARIANTS.get(name, (name, {}))
        part = data[: max(1, round(len(data) * FEW.get(name, 1.0)))]
        started = time.process_time()
        sec.score(groups, model, criterion, data=part, options=options)
        spent = time.process_time() - started
        yield {"name": name, "seconds": spent * images / sum(len(labels) for _, labels in part)}
    yield from passes(model, data)


def passes(model: nn.Module, data: Batches) -> Iterator[dict[str, Any]]:
    for name, go in PASSES.items():
        started = time.process_time()
        go(model, data)
        yield {"name": name, "seconds": time.process_time() - started}


def left(found: Round, order: Sequence[str]) -> list[str]:
    """The names that a round lacks, which is all that running it again adds."""
    done = {item["name"] for item in found}
    return [name for name in order if name not in done]


def stored(path: Path, names: Sequence[str]) -> list[Round]:
    """The rounds that these settings made, finished or not, without criteria that are no longer there."""
    found = json.loads(path.read_text()) if path.exists() else {}
    rounds = found.get("rounds", []) if found.get("settings") == SETTINGS else []
    return [[item for item in each if item["name"] in {*names, *PASSES}] for each in rounds]


def main() -> int:
    arguments = _arguments()
    if not (arguments.data / "cifar10_models").is_dir():
        print(f"There is no CIFAR-10 at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    names = [*sec.list("criteria"), *VARIANTS]
    rounds = stored(OUT, names)
    model = cifar.pretrained(arguments.data)
    data = cifar.train_set(arguments.data, SETTINGS["images"], SETTINGS["batch"])
    inference(model, data[:1])
    for number in range(arguments.rounds):
        if number == len(rounds):
            rounds.append([])
        for item in measure(model, data, left(rounds[number], turned(names, number, arguments.rounds))):
            rounds[number].append(item)
            _write(rounds)
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    rows = summary(rounds)
    Console(width=140).print(table(rows))
    print(f"bar: {bar(rows)}")
    return 0 if bar(rows)["met"] else 1


def _write(rounds: list[Round]) -> None:
    rows = summary(rounds)
    environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
    found = {"settings": SETTINGS, "environment": environment, "bar": bar(rows), "criteria": rows, "rounds": rounds}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_text(OUT, json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.criteria_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with cifar10/")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
