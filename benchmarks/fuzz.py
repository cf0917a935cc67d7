"""Random networks, random plans: `python -m benchmarks.fuzz --count 10000 --seed 0`.

Every network goes through capture, couple, plan and cut, and is compared with the oracles of
`secateurs.testing.chain`. Writes `benchmarks/results/fuzz.json` (counts by operator, failures with their shrunk
programs, environment) and exits 1 if anything failed. A run that is stopped and started again goes on where it was.

The networks run in a process of their own. Where PyTorch itself dies of one (2.13 does in the backward pass of a group
norm over a map of height 1 that lies channels last), the network alone, without Secateurs, is run in another one: if
that dies too, the network is counted as one that crashes PyTorch, and if not, as a failure.
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
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from secateurs.testing.chain import ChainReport, backward, check_chain, random_kept
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


def facts_of(number_seed: int, size: int) -> dict[str, Any]:
    """What one network adds to the tally, as plain data: `counts` and `operators`, or `error`."""
    program = random_program(number_seed, size=size)
    try:
        report = run_one(program, number_seed)
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {str(error)[:600]}"}
    free = report.groups.free
    counts = {
        "proven": 1,
        f"form {report.form}": 1,
        "units removed": report.removed_units,
        "cut by at least one unit": int(report.removed_units > 0),
        "outputs compared with the masked original": int(report.compared),
        "free groups": len(free),
        "frozen groups": len(report.groups.frozen),
        "networks with a normalisation or reduction over removed channels": int(any(not g.exact for g in free)),
    }
    return {"counts": counts, "operators": sorted({node.op.split(".")[1] for node in report.graph.nodes})}


def alone(number_seed: int, size: int) -> None:
    """The network by itself, forward and backward in both modes, without any of our code around it."""
    for training in (False, True):
        model, example_inputs = random_program(number_seed, size=size).build()
        try:
            backward(model.train(training), example_inputs)
        except (RuntimeError, ValueError):
            continue


class Apart:
    """Runs functions in a child process, one at a time; `None` where the child died of one."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[..., Any], *args: Any) -> tuple[Any] | None:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
        try:
            return (self._pool.submit(function, *args).result(),)
        except BrokenProcessPool:
            self.close()
            return None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


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

    def add(self, facts: dict[str, Any]) -> None:
        self.counts.update(facts["counts"])
        self.operators.update(facts["operators"])

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
    apart = Apart()
    for number in range(done, count):
        start = time.perf_counter()
        own_seed = seed * 1_000_003 + number
        found = apart(facts_of, own_seed, size)
        if found is None and apart(alone, own_seed, size) is None:
            tally.counts["crash PyTorch without Secateurs"] += 1
            say(f"{number}: crashes PyTorch without Secateurs\n   {random_program(own_seed, size=size)!r}")
        elif found is None or "error" in found[0]:
            text = "the process died" if found is None else found[0]["error"]
            program = random_program(own_seed, size=size)
            tally.counts["failed"] += 1
            if found is not None and kind(text) not in seen:
                seen.add(kind(text))
                program = shrink(program, partial(same_failure, seed=own_seed, wanted=text), attempts=150)
                text = error_of(program, own_seed) or text
                seen.add(kind(text))
            tally.failures.append({"number": number, "seed": own_seed, "error": text, "program": repr(program)})
            say(f"{number}: {text}\n   {program!r}  seed {own_seed}")
        else:
            tally.add(found[0])
        tally.seconds += time.perf_counter() - start
        if (number + 1) % 100 == 0 or number + 1 == count:
            write(part, tally.as_json(seed, number + 1))
            say(f"{number + 1} of {count} networks, {len(tally.failures)} failures, {tally.seconds:.0f} s")
    apart.close()
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
