"""A study of many runs, each kept when it ends with the settings that made it; what is missing is run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from secateurs.base.files import write_text
from secateurs.device.environment import Environment

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """`name`: of the module and of its result. A cell is known by a name, such as `lenet_5-nodes-0`.

    `cells(seeds)` says which there are; `used(cell)` which settings decide it (raises `KeyError` or `ValueError` for a
    name that is not one); `run(data, work, cell)` makes its row. `folders` of the data are needed. What is stored as
    `cpu_seconds` is the cost of the process that ended the cell: after a kill, what was left to do.
    """

    name: str
    about: str
    folders: tuple[str, ...]
    cells: Callable[[list[int]], list[str]]
    used: Callable[[str], Row]
    run: Callable[[Path, Path, str], Row]
    summary: Callable[[dict[str, Row]], Row]
    table: Callable[[dict[str, Row]], Table]
    published: Row | None = None

    @property
    def out(self) -> Path:
        return ROOT / "benchmarks" / "results" / f"{self.name}.json"

    def stored(self) -> dict[str, Row]:
        """The rows that the settings of now have made, by cell."""
        found = json.loads(self.out.read_text()).get("cells", {}) if self.out.exists() else {}
        return {name: row for name, row in found.items() if self._current(name, row)}

    def main(self) -> int:
        """The command: 0 when done, 2 when the data are not there."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=self.about)
        parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data")
        parser.add_argument("--only", nargs="+", metavar="CELL", help=f"such as {self.cells([0])[0]}")
        parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        parser.add_argument(
            "--work", type=Path, default=ROOT / "out" / self.name, help="where killed cells are resumed"
        )
        arguments = parser.parse_args()
        for folder in self.folders:
            if not (arguments.data / folder).is_dir():
                print(f"There is no {folder} at {arguments.data}: give the folder with --data.")
                return 2
        torch.set_num_threads(1)
        rows = self.stored()
        for cell in arguments.only or self.cells(arguments.seeds):
            if cell not in rows:
                print(f"== {cell}", flush=True)
                started, settings = time.process_time(), self.used(cell)
                row = self.run(arguments.data, arguments.work, cell)
                spent = round(time.process_time() - started, 1)
                rows[cell] = {"settings": settings, **row, "cpu_seconds": spent}
                self._write(rows)
        Console(width=120).print(self.table(rows))
        return 0

    def _current(self, name: str, row: Row) -> bool:
        try:
            return bool(row["settings"] == self.used(name))
        except (KeyError, ValueError):
            return False

    def _write(self, rows: dict[str, Row]) -> None:
        environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
        found = {"summary": self.summary(rows), "published": self.published, "cells": rows, "environment": environment}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.out, json.dumps(found, indent=1) + "\n")
