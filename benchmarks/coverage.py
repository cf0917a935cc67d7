"""Coverage, proven: every model of the zoo is captured, cut to half of its channels and checked.

    python -m benchmarks.coverage --suite torchvision --only 'resnet*'

Each model runs in a process of its own on one thread and is killed when capture, couple, score, choose and cut (proof
included) together take more than `--limit` seconds of one core. Rows go to `coverage.csv` as they are ready; a second
run skips the rows that were made with the same code and the same libraries. `coverage.json` holds the counts and the
environment.
With `--peer` the same models go through Torch-Pruning, into `coverage_peer.csv`.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from benchmarks import ledger, warden
from benchmarks.zoo.index import SUITES, select

PEER_LIMIT = 120.0
LIMIT = 60.0


def main() -> int:
    arguments = _arguments()
    limit = arguments.limit or (PEER_LIMIT if arguments.peer else LIMIT)
    console = Console(width=None if sys.stdout.isatty() else 160)
    book = _book(arguments)
    wanted = [(entry.suite, entry.kind, entry.name, entry.note) for entry in select(arguments.suite, arguments.only)]
    todo = [item for item in wanted if arguments.fresh or not book.has(item[0], item[2])]
    console.print(f"{len(wanted)} models, {len(wanted) - len(todo)} already done with this code")

    def one(item: tuple[str, str, str, str]) -> None:
        suite, kind, name, note = item
        module = "benchmarks.peer_trial" if arguments.peer else "benchmarks.trial"
        facts = warden.watch(suite, name, limit=limit, module=module)
        row = book.add({"suite": suite, "kind": kind, "model": name, "note": note, **facts})
        console.print(ledger.line(row), highlight=False, markup=False, soft_wrap=True)
        if arguments.traces and "trace" in facts:
            arguments.traces.mkdir(parents=True, exist_ok=True)
            (arguments.traces / f"{suite}-{name.replace('/', '-')}.txt").write_text(facts["trace"])

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, todo))
    console.print(book.table())
    summary = book.write_summary(sys.argv[1:], limit=limit)
    return 0 if all(bar["met"] for bar in summary["bars"].values()) else 1


def _book(arguments: argparse.Namespace) -> ledger.Ledger:
    code = ledger.code_version()
    if arguments.peer:
        return ledger.Ledger(arguments.out, code, "coverage_peer", ledger.PEER_STATUSES)
    return ledger.Ledger(arguments.out, code)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=[*SUITES, "all"], default="all")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="globs on model names")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each")
    parser.add_argument(
        "--limit", type=float, help="seconds of one core for one model, its construction left out (60; peer: 120)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--traces", type=Path, help="folder for the tracebacks of models that were refused or crashed")
    parser.add_argument("--fresh", action="store_true", help="run models again that were run with this code")
    parser.add_argument("--peer", action="store_true", help="run Torch-Pruning on the same models instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
