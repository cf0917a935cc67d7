"""Time: capture, couple, score, choose and cut against Torch-Pruning's graph and step, on the same models and inputs.

    python -m benchmarks.speed
    python -m benchmarks.speed --only race --models resnet50 vgg16_bn
    python -m benchmarks.speed --peer-limits

Every model gets a process of its own, one thread, one run of each side that does not count, then rounds in which the
sides take turns. Both remove half of the channels by L1 magnitude and leave the output layer alone. A ratio is the
peer's seconds over ours in one round; the median over rounds stands for the model. Bars are judged on CPU seconds,
which other programs on the machine do not stretch; the wall clock's ratios stand beside them. The proof is timed
apart: `check` captures the cut model and compares graphs, `prove` runs the oracle. `speed.json` holds every round.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import speed_results as results
from benchmarks.speed_models import ALONE, ROUNDS, SIZES
from secateurs.base.files import write_text
from secateurs.device.environment import Environment

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("race", "alone", "growth")
PEER_LIMIT = 120
LIBRARIES = ("torch", "torchvision", "transformers", "torch-pruning", "numpy", "scipy")


def main() -> int:
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 160)
    found = _stored(arguments.out)
    started = time.monotonic()
    for part, key, task, name in _plan(arguments):
        trial = _peer_limit(name) if part == "peer_limits" else _trial(task, name, ROUNDS.get(name, 3))
        console.print(results.line(trial), highlight=False, soft_wrap=True)
        found.setdefault(part, {})[key] = trial
        _write(arguments.out, found)
    facts = results.summary(found)
    for table in results.tables(found, facts):
        console.print(table)
    console.print(f"{time.monotonic() - started:.0f} s in all")
    return 0 if all(bar["met"] for bar in facts["bars"].values()) else 1


def _plan(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str, str]]:
    """Part, key in the result, task of the worker and name, for everything to run."""
    if "race" in arguments.only:
        yield from (("race", name, "race", name) for name in arguments.models)
    if "alone" in arguments.only:
        yield from (("alone", name, "alone", name) for name in ALONE)
    if "growth" in arguments.only:
        points = [(curve, size) for curve, sizes in SIZES.items() for size in sizes]
        yield from (("growth", f"{curve} {size}", curve, str(size)) for curve, size in points)
    if arguments.peer_limits:
        yield from (("peer_limits", name, "peer", name) for name in ALONE)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run; the others stay as stored"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(ROUNDS),
        default=list(ROUNDS),
        help="models that race; others stay as stored",
    )
    parser.add_argument(
        "--peer-limits",
        action="store_true",
        help=f"give Torch-Pruning {PEER_LIMIT} s of CPU time on each model that it is known not to finish",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "speed.json")
    return parser.parse_args()


def _stored(path: Path) -> dict[str, Any]:
    """The trials of an earlier run, for those that are not run now."""
    data = json.loads(path.read_text()) if path.exists() else {}
    return {name: data[name] for name in (*PARTS, "peer_limits") if name in data}


def _write(path: Path, found: dict[str, Any]) -> None:
    """Everything found so far, so that a run that is stopped keeps what it measured."""
    data = {**_header(), "summary": results.summary(found), **found}
    write_text(path, json.dumps(data, indent=1) + "\n")


def _trial(task: str, name: str, rounds: int, limit: int | None = None) -> dict[str, Any]:
    """What one worker printed. Raises `CalledProcessError` if it failed; `limit` is in seconds of CPU time."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))

    command = [sys.executable, "-m", "benchmarks.speed_trial", task, name, str(rounds)]
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, check=True, text=True, preexec_fn=limited
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "load": round(os.getloadavg()[0], 1)}


def _peer_limit(name: str) -> dict[str, Any]:
    """Torch-Pruning alone on a model: its seconds, or that it did not end within the limit."""
    try:
        return {**_trial("peer", name, 1, limit=PEER_LIMIT), "ended": True}
    except subprocess.CalledProcessError as error:
        killed = error.returncode < 0
        return {"model": name, "ended": False, "limit": PEER_LIMIT, "why": "out of time" if killed else "crashed"}


def _environment() -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = os.pathsep.join(path for path in (str(ROOT), str(ROOT / "src"), *given) if path)
    return {**os.environ, **threads, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}


def _header() -> dict[str, Any]:
    return {
        "last_command": " ".join(["python -m benchmarks.speed", *sys.argv[1:]]),
        "environment": asdict(Environment.now(f"torch {version('torch')}, 1 thread")),
        "versions": {name: version(name) for name in LIBRARIES},
        "input": "1x3x224x224",
        "seconds": "[wall, cpu]",
    }


if __name__ == "__main__":
    sys.exit(main())
