"""What each criterion is worth when nothing is trained: cut once, recalibrate, or reconstruct by least squares.

    python -m benchmarks.oneshot --data ../shared/data                   # whatever is missing, most telling first
    python -m benchmarks.oneshot --data ../shared/data --minutes 30      # starts no cell after half an hour
    python -m benchmarks.oneshot --data ../shared/data --again taylor    # forgets those cells and their scores first
    python -m benchmarks.oneshot --data ../shared/data --networks mobilenet

A cell is a network, a criterion, a share of the MACs and a search. Each gives top-1 accuracy right after the cut, with
batch-norm statistics measured afresh, and with every layer that lost inputs refitted to what it put out in the original
(`sec.reconstruct`, from the cut; its targets are what the original's statistics describe). Finished cells stay in
`results/oneshot.json` with the settings that made them; scores are journalled in `--work`, so a kill costs one step.

`resnet56`: CIFAR-10; calibration on training images, accuracy on the 1,000 lossless test images (standard error about
0.8 points). `mobilenet`, `squeezenet`: ImageNet, a thousand training photos, one of each class: calibration on 250 of
the half with even class numbers, accuracy on the 500 of the other half (standard error about 2 points). So what is
judged is of other classes than what scores, statistics and weights were fitted on; no other images exist. The
published ImageNet networks were trained on all of them. Scores (of the oracle: a quarter) and recalibration see all
calibration images, reconstruction the first batches of them; `SETTINGS` has every number.

Criteria whose scores are orders within a layer are judged with the search `uniform`, all others with `global`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import secateurs as sec
from benchmarks.ledger import code_version
from benchmarks.oneshot_cells import NETWORKS, SETTINGS, SLOW, Batches, Bench, build, cells, wanted_of
from benchmarks.oneshot_tables import Key, Row, bar, figure, key, merged, missing, plot_data, tables
from secateurs.base.files import write_text
from secateurs.base.journal import Journal
from secateurs.device.environment import Environment
from secateurs.train.recalibrate import running_statistics

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "oneshot.json"


class Comparison:
    """Runs cells; networks and scores are made once."""

    def __init__(self, data: Path, work: Path) -> None:
        self.data = data
        self.work = work / hashlib.sha256(json.dumps(SETTINGS, sort_keys=True).encode()).hexdigest()[:12]
        self.code = code_version()
        self._benches: dict[str, tuple[Bench, sec.Graph, sec.Groups, float]] = {}

    def journal(self, network: str, criterion: str) -> Path:
        return self.work / network / f"{criterion}.jsonl"

    def run(self, cell: Key) -> dict[str, Any]:
        """The row of a cell; one with `refused` where the library says why it cannot be."""
        network, criterion, share, search = cell
        row: dict[str, Any] = {"network": network, "criterion": criterion, "macs": share, "search": search}
        try:
            return {**row, **self._accuracies(cell), "seed": SETTINGS["seed"], "code": self.code}
        except sec.SecateursError as error:
            return {**row, "refused": f"{type(error).__name__}: {error}", "code": self.code}

    def _accuracies(self, cell: Key) -> dict[str, Any]:
        network, criterion, share, search = cell
        bench, graph, groups, original = self._bench(network)
        seed, clock = SETTINGS["seed"], _Clock()
        scoring = self._scores(network, criterion)
        scores = {name: torch.tensor(row, dtype=torch.float64) for name, row in scoring["scores"].items()}
        clock.lap("")
        plan = sec.choose(graph, groups, scores, sec.Budget(macs=share), search=search, criterion=criterion, seed=seed)
        cutting = sec.cut_detailed(bench.model, plan, bench.calibration[0][0][:1], groups=groups)
        clock.lap("cut")
        accuracy: dict[str, float | None] = {"original": original, "cut": bench.judge(cutting.model)}
        accuracy["recalibrated"] = None
        clock.lap("")
        if running_statistics(bench.model):
            fresh = sec.recalibrate(cutting.model, bench.calibration, batches=len(bench.calibration), seed=seed)
            clock.lap("recalibrate")
            accuracy["recalibrated"] = bench.judge(fresh)
            clock.lap("")
        how = {**SETTINGS["reconstruct"], **wanted_of(network)["reconstruct"]}
        fitted = sec.reconstruct(cutting.model, bench.model, plan, bench.calibration, seed=seed, **how)
        clock.lap("reconstruct")
        accuracy["reconstructed"] = bench.judge(fitted)
        return {
            "macs_left": round(plan.after["macs"] / plan.before["macs"], 4),
            "params_left": round(plan.after["params"] / plan.before["params"], 4),
            "accuracy": {step: value if value is None else round(value, 4) for step, value in accuracy.items()},
            "form": cutting.form,
            "calibration_images": _images(bench.calibration),
            "scoring": {"images": scoring["images"], "cpu_seconds": round(scoring["cpu_seconds"], 2)},
            "cpu_seconds": clock.laps,
        }

    def _bench(self, network: str) -> tuple[Bench, sec.Graph, sec.Groups, float]:
        """The network, its graph and groups, and the original's accuracy. One is held at a time."""
        if network not in self._benches:
            bench = build(network, self.data)
            graph = sec.capture(bench.model, bench.calibration[0][0][:1])
            self._benches = {network: (bench, graph, sec.couple(graph), bench.judge(bench.model))}
        return self._benches[network]

    def _scores(self, network: str, criterion: str) -> dict[str, Any]:
        """Scores by group, the images that they were taken on (0 for weights alone) and CPU seconds; journalled."""
        bench, _, groups, _ = self._bench(network)
        data = bench.calibration
        if criterion in SLOW:
            data = data[: max(1, round(len(data) * SETTINGS["slow_share"]))]

        def make() -> dict[str, Any]:
            touched = _Watched(data)
            started = time.process_time()
            found = sec.score(groups, bench.model, criterion, data=touched, seed=SETTINGS["seed"])
            seconds = time.process_time() - started
            images = _images(data) if touched.asked else 0
            scores = {name: row.tolist() for name, row in found.items()}
            return {"scores": scores, "images": images, "cpu_seconds": seconds}

        journal = Journal(self.journal(network, criterion), run={"settings": SETTINGS})
        found: dict[str, Any] = journal.once("scores", make)
        return found


class _Watched:
    """Batches that know whether somebody has asked for them."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.asked = batches, False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked = True
        return iter(self.batches)


class _Clock:
    """CPU seconds of this process between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.process_time()

    def lap(self, name: str) -> None:
        now = time.process_time()
        if name:
            self.laps[name] = round(now - self._since, 2)
        self._since = now


def _images(batches: Batches) -> int:
    return sum(len(labels) for _, labels in batches)


def stored(path: Path) -> list[Row]:
    """The rows that these settings made; none if the file is absent or of other settings."""
    found = json.loads(path.read_text()) if path.exists() else {}
    return list(found["rows"]) if found.get("settings") == SETTINGS else []


def write(path: Path, rows: list[Row], wanted: list[Key]) -> None:
    environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
    left = [list(cell) for cell in missing(wanted, rows)]
    found = {"settings": SETTINGS, "environment": environment, "bar": bar(rows), "missing": left, "rows": rows,
             "plot": plot_data(rows)}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")


def main() -> int:
    arguments = _arguments()
    lacking = [name for name in ("cifar10_models", "imagenet_models") if not (arguments.data / name).is_dir()]
    if lacking:
        print(f"There is no {' or '.join(lacking)} at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    comparison = Comparison(arguments.data, arguments.work)
    rows = [row for row in stored(OUT) if row["criterion"] not in arguments.again]
    wanted = cells(sec.list("criteria"))
    for network, criterion, _, _ in wanted:
        if criterion in arguments.again:
            comparison.journal(network, criterion).unlink(missing_ok=True)
    write(OUT, rows, wanted)
    started = time.monotonic()
    for cell in [cell for cell in missing(wanted, rows) if cell[0] in arguments.networks]:
        if arguments.minutes is not None and time.monotonic() - started > 60 * arguments.minutes:
            break
        row = comparison.run(cell)
        rows = merged(stored(OUT), row)  # others may run other networks meanwhile
        write(OUT, rows, wanted)
        print(*key(row), row.get("accuracy") or row["refused"], flush=True)
    Console(width=120).print(*tables(rows))
    left = missing(wanted, rows)
    print(f"{len(rows)} cells, {len(left)} missing; bar: {bar(rows)}")
    if rows:
        arguments.work.mkdir(parents=True, exist_ok=True)
        page = arguments.work / "oneshot.html"
        write_text(page, figure(plot_data(rows)).to_html(include_plotlyjs=True))
        print(f"plot: {page}")
    return 0 if left or bar(rows)["met"] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oneshot", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of images, weights")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="the others stay as stored")
    parser.add_argument("--minutes", type=float, help="start no cell after so many")
    parser.add_argument("--again", nargs="+", default=[], metavar="CRITERION", help="forget these and run them again")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "oneshot", help="journals of scores, and the plot")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
