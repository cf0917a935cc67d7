"""Packed files that were tampered with: `python -m benchmarks.hostile --count 1000000 --seed 0`.

Every file of `secateurs.testing.hostile` is used as far as a user would: read to the end, and where it holds a program,
made into a model without and with the class, and run under a tight limit. It must be refused, or hold what was written
(or, where nothing vouches for that, what was forged); nothing may crash, hang, import, change settings or take memory
that it did not declare. Files of the released Deep Compression layout are compared with a second, slow reader. Writes
`benchmarks/results/hostile.json` (outcomes by kind of file and of damage, failures by number, slowest file, peak
memory, environment) and exits 1 if anything failed. A run that is stopped and started again goes on where it was, and
one that has ended goes on to a larger count. One that hangs for ten minutes says where and ends.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.base.files import write_text
from secateurs.device.environment import Environment
from secateurs.testing.hostile import SHARES, mutant, outcome

RESULT = Path(__file__).parent / "results" / "hostile.json"
STEP = 10_000
"""Files between two notes of how far the run is."""
HANGS = 600
"""Seconds for a hundred files."""


def start(path: Path, seed: int) -> dict[str, Any]:
    """The tally of an earlier run with this seed and these kinds of files, or an empty one."""
    empty: dict[str, Any] = {
        "seed": seed, "shares": SHARES, "files": 0, "failures": [], "kinds": {}, "outcomes": {}, "seconds": 0.0,
        "slowest_cpu_ms": 0.0, "peak_mib": 0,
    }  # fmt: skip
    if not path.exists():
        return empty
    found: dict[str, Any] = json.loads(path.read_text())
    return found if (found["seed"], found.get("shares")) == (seed, SHARES) else empty


def run(tally: dict[str, Any], count: int) -> None:
    """Reads the next `count` files and adds what came of them."""
    outcomes = Counter(tally["outcomes"])
    kinds = {kind: Counter(tally["kinds"].get(kind, {})) for kind in SHARES}
    faulthandler.dump_traceback_later(HANGS, exit=True)
    begin = time.process_time()
    for number in range(tally["files"], tally["files"] + count):
        subject = mutant(tally["seed"] * 1_000_000_007 + number)
        clock = time.thread_time()
        result = outcome(subject)
        tally["slowest_cpu_ms"] = max(tally["slowest_cpu_ms"], round(1000 * (time.thread_time() - clock), 1))
        if result.startswith("wrong"):
            tally["failures"].append({"number": number, "file": subject.label, "result": result})
            result = "wrong"
        outcomes[f"{subject.label}: {result}"] += 1
        kinds[subject.kind][result] += 1
        if number % 100 == 0:
            faulthandler.dump_traceback_later(HANGS, exit=True)
    faulthandler.cancel_dump_traceback_later()
    tally["outcomes"] = dict(sorted(outcomes.items()))
    tally["kinds"] = {kind: dict(sorted(counts.items())) for kind, counts in kinds.items()}
    tally["files"] += count
    tally["seconds"] = round(tally["seconds"] + time.process_time() - begin, 1)
    tally["peak_mib"] = max(tally["peak_mib"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="files to read in total")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    faulthandler.enable()
    part = options.out.with_suffix(".running.json")
    tally = start(part if part.exists() else options.out, options.seed)
    while tally["files"] < options.count:
        run(tally, min(STEP, options.count - tally["files"]))
        write_text(part, json.dumps(tally, indent=1) + "\n")
        rate = tally["files"] / max(tally["seconds"], 1e-9)
        print(f"{tally['files']:,} files, {len(tally['failures'])} failures, {rate:,.0f} a second", flush=True)
    runtime = f"numpy {np.__version__}, constriction {version('constriction')}"
    tally["environment"] = asdict(Environment.now(runtime))
    write_text(options.out, json.dumps(tally, indent=1) + "\n")
    part.unlink(missing_ok=True)
    return 1 if tally["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
