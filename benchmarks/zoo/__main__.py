"""`python -m benchmarks.zoo`: list the zoo; `--check` builds every model, runs it once and says how long that took."""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import time

import torch

from benchmarks.zoo.entry import Entry, tensors
from benchmarks.zoo.index import SUITES, select


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--suite", choices=[*SUITES, "all"], default="all")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="globs on model names")
    parser.add_argument("--check", action="store_true", help="build and run each model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = csv.writer(sys.stdout)
    failures = 0
    for entry in select(arguments.suite, arguments.only):
        row = check(entry) if arguments.check else ["", "", "", ""]
        failures += row[-1] not in ("", "ok")
        table.writerow([entry.suite, entry.kind, entry.name, *row, entry.note])
        sys.stdout.flush()
    return 1 if failures else 0


def check(entry: Entry) -> list[str]:
    """Input, seconds to build and to run, millions of parameters, peak memory so far in MiB, `ok` or what failed."""
    start = time.perf_counter()
    try:
        model, inputs = entry.build()
        built = time.perf_counter()
        with torch.no_grad():
            outputs = list(tensors(model(*inputs.args, **inputs.kwargs)))
    except Exception as error:  # noqa: BLE001 - whatever happens to a model is its result
        return ["", f"{time.perf_counter() - start:.1f}", "", "", "", f"{type(error).__name__}: {error}"[:200]]
    ran = time.perf_counter()
    floats = [output for output in outputs if output.is_floating_point()]
    finite = all(bool(output.isfinite().all()) for output in floats)
    varied = any(output.numel() > 1 and float(output.std()) > 1e-6 for output in floats)
    verdict = "ok" if finite and varied else f"outputs finite={finite} varied={varied} of {len(floats)}"
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return [str(inputs), f"{built - start:.1f}", f"{ran - built:.1f}", f"{millions:.1f}", str(peak), verdict]


sys.exit(main())
