"""What holding zeros costs in training: steps of a sparse network against steps of the same network without masks.

    python -m benchmarks.step_overhead
    python -m benchmarks.step_overhead --networks lenet_5 --rounds 30

Both sides have the same zeros, batch and optimizer; one of them holds the zeros with `sec.sparsify`. They take turns,
each with steps for about a fifth of a second, in an order that changes from round to round. A ratio is CPU
seconds with masks over those without in one round; the median and the quartiles over rounds are stored. One thread.

Apart from that, `square_root` holds what PyTorch takes for the square root of 235,200 numbers, of ones and of zeros:
AdamW that is not fused takes it of its second moments, which are exactly zero where weights are masked (and where any
network's inputs are always zero). That part of the ratio is not the masks'.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from benchmarks import cifar, mnist_nets
from secateurs.base.files import write_text
from secateurs.device.environment import Environment

OUT = Path(__file__).resolve().parent / "results" / "step_overhead.json"
SPARSITY = 0.9
BAR = 1.10
"""Largest ratio that is asked for."""

TURN = 0.2
"""Seconds of a turn, about."""

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet_300_100": (lambda: mnist_nets.build("lenet_300_100"), (100, 1, 28, 28)),
    "lenet_5": (lambda: mnist_nets.build("lenet_5"), (100, 1, 28, 28)),
    "resnet20": (lambda: cifar.ResNet(20), (64, 3, 32, 32)),
}
"""Network, and the batch that a step sees."""

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda net: torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), 1e-3),
    "adamw_fused": lambda net: torch.optim.AdamW(net.parameters(), 1e-3, fused=True),
}


class Side:
    """One of the two, ready to take steps."""

    def __init__(self, network: str, optimizer: str, held: bool) -> None:
        make, shape = NETWORKS[network]
        torch.manual_seed(0)
        self.model = make().train()
        masks = sec.masks(self.model, SPARSITY)
        with torch.no_grad():
            for name, mask in masks.items():
                self.model.get_parameter(name).mul_(mask)
        self.hold = sec.sparsify(self.model, masks) if held else None
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.images, self.labels = torch.randn(shape), torch.randint(10, shape[:1])

    def steps(self, count: int) -> float:
        """CPU seconds of so many steps."""
        started = time.process_time()
        for _ in range(count):
            self.optimizer.zero_grad()
            loss: Tensor = F.cross_entropy(self.model(self.images), self.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return time.process_time() - started


def trial(network: str, optimizer: str, rounds: int) -> dict[str, Any]:
    """Seconds of every round as `[without, with]`, and the ratio over them."""
    sides = {held: Side(network, optimizer, held) for held in (False, True)}
    for side in sides.values():
        side.steps(3)
    count = max(2, round(TURN / (sides[False].steps(5) / 5)))
    seconds = []
    for number in range(rounds):
        spent = {held: sides[held].steps(count) for held in ((False, True) if number % 2 else (True, False))}
        seconds.append([round(spent[False], 5), round(spent[True], 5)])
    ratios = [held / plain for plain, held in seconds]
    low, _, high = quantiles(ratios, n=4)
    return {
        "steps_per_turn": count, "milliseconds": round(1000 * median(plain for plain, _ in seconds) / count, 3),
        "ratio": round(median(ratios), 4), "quartiles": [round(low, 4), round(high, 4)], "rounds": seconds,
    }  # fmt: skip


def square_root() -> dict[str, float]:
    """Microseconds, least of 100."""
    found = {}
    for name, tensor in (("ones", torch.ones(300 * 784)), ("zeros", torch.zeros(300 * 784))):
        spent = []
        for _ in range(100):
            started = time.perf_counter()
            torch.sqrt(tensor)
            spent.append(time.perf_counter() - started)
        found[name] = round(1e6 * min(spent), 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(OUT.read_text()).get("trials", {}) if OUT.exists() else {}
    for network in arguments.networks:
        for optimizer in OPTIMIZERS:
            found[f"{network}, {optimizer}"] = trial(network, optimizer, arguments.rounds)
    met = all(row["ratio"] <= BAR for row in found.values())
    environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
    result = {
        "sparsity": SPARSITY,
        "bar": BAR,
        "met": met,
        "trials": found,
        "square_root": square_root(),
        "environment": environment,
    }
    write_text(OUT, json.dumps(result, indent=1) + "\n")
    table = Table("network, optimizer", "ms per step", "with masks", "quartiles", box=None)
    for name, row in found.items():
        table.add_row(
            name, f"{row['milliseconds']:.2f}", f"x {row['ratio']:.3f}", "{:.3f} to {:.3f}".format(*row["quartiles"])
        )
    Console().print(table)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
