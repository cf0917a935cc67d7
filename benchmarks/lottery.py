"""Lottery tickets of LeNet-300-100 on MNIST: do they train as well as the dense network, and do controls not?

    python -m benchmarks.lottery --data ../shared/data                # seeds 0, 1, 2; finished ones are kept

Adam at 1.2e-3 in batches of 60, Glorot's normal initial weights, as in Frankle & Carbin 2019 (1803.03635); 20 % of the
remaining weights go in each of seven rounds, 10 % of the last layer's, which leaves 21.1 %. Every 100 steps the loss on
5,000 training images that no network was trained on is looked at; what is reported are the step at which it was lowest
and the accuracy on the 10,000 test images of the weights of that step. The paper trained for 50,000 steps; here the
budget is `SETTINGS["steps"]`, so that a network whose loss still falls at the end "stops" there. Both controls of the
last round start from new seeds of their own: the same masks on new random weights, and as many weights of each layer at
random places.

A seed is one search; a kill costs at most one of its trainings.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import secateurs as sec
from benchmarks import lenet
from secateurs.base.files import write_text
from secateurs.device.environment import Environment

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "lottery.json"
SETTINGS: dict[str, Any] = {
    "network": "LeNet-300-100", "batch": 60, "optimizer": "adam", "lr": 1.2e-3, "steps": 8000, "look_every": 100,
    "rate": 0.2, "output_rate": 0.1, "rounds": 7, "rewind_to": 0, "control_rounds": [7],
}  # fmt: skip


def search(data: Path, work: Path, seed: int) -> list[dict[str, Any]]:
    """All trainings of one seed."""
    wanted = SETTINGS
    training, validation, test = lenet.splits(data)
    config = sec.FineTune(
        optimizer=wanted["optimizer"], lr=wanted["lr"], schedule="constant", batches=wanted["look_every"],
        epochs=wanted["steps"] // wanted["look_every"], checkpoint_epochs=wanted["steps"], progress=False,
    )  # fmt: skip
    result = sec.lottery(
        lenet.lenet_300_100(seed), lenet.Batches(*training, wanted["batch"]), train=config,
        validation=lenet.in_order(*validation), evaluate=sec.accuracy(lenet.in_order(*test)), rounds=wanted["rounds"],
        rate=wanted["rate"], output_rate=wanted["output_rate"], rewind_to=wanted["rewind_to"],
        control_rounds=wanted["control_rounds"], seeds=[seed], init=lenet.glorot, folder=work / f"seed-{seed}",
        on_draw=lambda draw: print(draw, flush=True),
    )  # fmt: skip
    return [asdict(draw) for draw in result.draws]


def summary(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: mean, least and most, by network."""
    found: dict[str, Any] = {}
    for kind, number in dict.fromkeys((draw["kind"], draw["round"]) for draw in draws):
        mine = [draw for draw in draws if (draw["kind"], draw["round"]) == (kind, number)]
        name = "dense" if number == 0 else f"{kind} {number}"
        found[name] = {"kept": round(mine[0]["kept"], 4), "seeds": len(mine)}
        for what in ("metric", "metric_end", "stop", "loss"):
            values = [draw[what] for draw in mine]
            found[name][what] = {"mean": round(mean(values), 5), "min": min(values), "max": max(values)}
    return found


def verdict(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """Is the last ticket at least as good as the dense network, and better than on new weights? Means of the seeds."""
    found, last = summary(draws), SETTINGS["rounds"]
    named = {"dense": "dense", **{kind: f"{kind} {last}" for kind in ("ticket", "reinit", "random_mask")}}
    if not all(name in found for name in named.values()):
        return {}
    means = {kind: found[name]["metric"]["mean"] for kind, name in named.items()}
    return {
        **means,
        "seeds": found["dense"]["seeds"],
        "at_least_dense": means["ticket"] >= means["dense"],
        "above_reinit": means["ticket"] > means["reinit"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lottery", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with mnist/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "lottery", help="where killed seeds are resumed")
    arguments = parser.parse_args()
    if not (arguments.data / "mnist").is_dir():
        print(f"There is no MNIST at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    stored = json.loads(OUT.read_text()) if OUT.exists() else {}
    draws = stored.get("draws", []) if stored.get("settings") == SETTINGS else []
    for seed in arguments.seeds:
        if not any(draw["seed"] == seed for draw in draws):
            draws = [*draws, *search(arguments.data, arguments.work, seed)]
            environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
            found = {"settings": SETTINGS, "verdict": verdict(draws), "summary": summary(draws), "draws": draws}
            write_text(OUT, json.dumps({**found, "environment": environment}, indent=1) + "\n")
    print(sec.Lottery(tuple(sec.Draw(**draw) for draw in draws), {}, {}, torch.nn.Identity()))
    print(json.dumps(verdict(draws), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
