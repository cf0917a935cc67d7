"""Random networks, random plans: `python -m benchmarks.fuzz --count 10000 --seed 0`.

Every network goes through capture, couple, plan and cut, and is compared with the oracles of
`secateurs.testing.chain`. Writes `benchmarks/results/fuzz.json` (counts by operator, failures with their shrunk
programs, environment) and exits 1 if anything failed. A run that is stopped and started again goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from secateurs.testing.chain import ChainReport, check_chain, random_kept
from secateurs.testing.networks import Program, random_program
from secateurs.testing.shrinking import shrink

RESULT = Path(__file__).parent / "results" / "fuzz.json"
UNITS = ("heads", "heads", "head_dim")


def run_one(program: Program, seed: int) -> ChainReport:
    model, example_inputs = program.build()
    return check_chain(model, example_inputs, random_kept(seed), unit=UNITS[seed % len(UNITS)])  # type: ignore[arg-type]


def error_of(program: Program, seed: int) -> str | None:
    """The failure as one line, or None. Catches everything: a crash anywhere in the chain is what is looked for."""
    try:
        run_one(program, seed)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {str(error)[:600]}"
    return None


def kind(error: str) -> str:
    """Two failures are taken for one if their type and the words before any number agree."""
    return "".join(c for c in error[:120] if not c.isdigit())


def same_failure(program: Program, seed: int, wanted: str) -> bool:
    error = error_of(program, seed)
    return error is not None and error.split(":")[0] == wanted.split(":")[0]


class Tally:
    """What the run has seen so far, as JSON data."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.seconds = 0.0

    def add(self, program: Program, report: ChainReport) -> None:
        self.counts["proven"] += 1
        self.counts[f"form {report.form}"] += 1
        self.counts["units removed"] += report.removed_units
        self.counts["cut by at least one unit"] += report.removed_units > 0
        self.counts["outputs compared with the masked original"] += report.compared
        self.counts["free groups"] += len(report.groups.free)
        self.counts["frozen groups"] += len(report.groups.frozen)
        self.counts["networks with a normalisation or reduction over removed channels"] += any(
            not group.exact for group in report.groups.free
        )
        self.operators.update({name.split(".")[1] for name in (node.op for node in report.graph.nodes)})

    def as_json(self, seed: int, done: int) -> dict[str, Any]:
        return {
            "seed": seed,
            "networks": done,
            "failures": self.failures,
            "counts": dict(self.counts.most_common()),
            "networks_by_operator": dict(self.operators.most_common()),
            "seconds": round(self.seconds, 1),
            "environment": {
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                "system": platform.system(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
            },
        }

    @classmethod
    def resumed(cls, path: Path, seed: int) -> tuple[Tally, int]:
        """The tally of an unfinished run with the same seed, and how many networks it had done."""
        tally = cls()
        if not path.exists():
            return tally, 0
        data = json.loads(path.read_text())
        if data["seed"] != seed:
            return tally, 0
        tally.counts.update(data["counts"])
        tally.operators.update(data["networks_by_operator"])
        tally.failures, tally.seconds = data["failures"], data["seconds"]
        return tally, data["networks"]


def write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    scratch.write_text(json.dumps(data, indent=1) + "\n")
    scratch.replace(path)


def fuzz(count: int, seed: int, size: int, path: Path, say: Callable[[str], None]) -> int:
    """Checks networks up to number `count`; the number of failures."""
    part = path.with_suffix(".running.json")
    tally, done = Tally.resumed(part, seed)
    seen = {kind(failure["error"]) for failure in tally.failures}
    for number in range(done, count):
        start = time.perf_counter()
        own_seed = seed * 1_000_003 + number
        program = random_program(own_seed, size=size)
        try:
            tally.add(program, run_one(program, own_seed))
        except Exception as error:  # noqa: BLE001
            text = f"{type(error).__name__}: {str(error)[:600]}"
            tally.counts["failed"] += 1
            if kind(text) not in seen:
                seen.add(kind(text))
                program = shrink(program, partial(same_failure, seed=own_seed, wanted=text), attempts=150)
                text = error_of(program, own_seed) or text
                seen.add(kind(text))
            tally.failures.append({"number": number, "seed": own_seed, "error": text, "program": repr(program)})
            say(f"{number}: {text}\n   {program!r}  seed {own_seed}")
        tally.seconds += time.perf_counter() - start
        if (number + 1) % 100 == 0 or number + 1 == count:
            write(part, tally.as_json(seed, number + 1))
            say(f"{number + 1} of {count} networks, {len(tally.failures)} failures, {tally.seconds:.0f} s")
    write(path, tally.as_json(seed, max(done, count)))
    part.unlink(missing_ok=True)
    return len(tally.failures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="networks to check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=8, help="at most this many operators in a network")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    return (
        1 if fuzz(options.count, options.seed, options.size, options.out, lambda text: print(text, flush=True)) else 0
    )


if __name__ == "__main__":
    sys.exit(main())
