"""A study on MNIST that is run once for each seed: what is stored is kept, what is missing is run, and the picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from secateurs.base.files import write_text
from secateurs.device.environment import Environment

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """`name`: of the module and of its result. `run(data, work, seed)` makes the row of a seed."""

    name: str
    about: str
    settings: dict[str, Any]
    run: Callable[[Path, Path, int], Row]
    summary: Callable[[list[Row]], Row]
    figure: Callable[[Row], Any]

    @property
    def out(self) -> Path:
        return ROOT / "benchmarks" / "results" / f"{self.name}.json"

    def main(self) -> int:
        """The command: 0 when done, 2 when the data are not there."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=self.about)
        parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with mnist/")
        parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
        parser.add_argument("--work", type=Path, default=ROOT / "out" / self.name, help="where seeds are resumed")
        parser.add_argument("--figure", type=Path, help="only draw what is stored, into this HTML file")
        arguments = parser.parse_args()
        stored = json.loads(self.out.read_text()) if self.out.exists() else {}
        if arguments.figure is not None:
            arguments.figure.parent.mkdir(parents=True, exist_ok=True)
            write_text(arguments.figure, self.figure(stored["summary"]).to_html())
            return 0
        if not (arguments.data / "mnist").is_dir():
            print(f"There is no MNIST at {arguments.data}: give the folder with --data.")
            return 2
        torch.set_num_threads(1)
        rows = stored.get("by_seed", []) if stored.get("settings") == self.settings else []
        for seed in arguments.seeds:
            if not any(done["seed"] == seed for done in rows):
                rows = [*rows, self.run(arguments.data, arguments.work, seed)]
                self._write(rows)
        print(json.dumps(self.summary(rows), indent=1))
        return 0

    def _write(self, rows: list[Row]) -> None:
        environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
        found = {"settings": self.settings, "summary": self.summary(rows), "by_seed": rows, "environment": environment}
        write_text(self.out, json.dumps(found, indent=1) + "\n")
