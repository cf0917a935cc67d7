"""Coverage, proven: every model of the zoo is captured, cut to half of its channels and checked.

    python -m benchmarks.coverage --suite torchvision --only 'resnet*'

Each model runs in a process of its own on one thread and is killed when capture, couple, score, choose and cut (proof
included) together take longer than `--limit`. Rows go to `coverage.csv` as they are ready; a second run skips the rows
that were made with the same code and the same libraries. `coverage.json` holds the counts and the environment.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from benchmarks import ledger, warden
from benchmarks.zoo.index import SUITES, select


def main() -> int:
    arguments = _arguments()
    console = Console()
    book = ledger.Ledger(arguments.out, ledger.code_version())
    wanted = [(entry.suite, entry.kind, entry.name, entry.note) for entry in select(arguments.suite, arguments.only)]
    todo = [item for item in wanted if arguments.fresh or not book.has(item[0], item[2])]
    console.print(f"{len(wanted)} models, {len(wanted) - len(todo)} already done with this code")

    def one(item: tuple[str, str, str, str]) -> None:
        suite, kind, name, note = item
        facts = warden.watch(suite, name, limit=arguments.limit)
        row = book.add({"suite": suite, "kind": kind, "model": name, "note": note, **facts})
        console.print(ledger.line(row), highlight=False, soft_wrap=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, todo))
    console.print(book.table())
    summary = book.write_summary(sys.argv[1:], limit=arguments.limit)
    return 0 if all(bar["met"] for bar in summary["bars"].values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=[*SUITES, "all"], default="all")
    parser.add_argument("--only", default="*", help="glob on model names")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one model, its construction left out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--fresh", action="store_true", help="run models again that were run with this code")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
