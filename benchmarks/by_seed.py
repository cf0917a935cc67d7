"""A study on MNIST that is run once for each seed: what is stored is kept, what is missing is run, and the picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import snapshot
from secateurs.base.files import write_text
from secateurs.device.environment import Environment
from secateurs.report.figures.gallery import Picture, write_page

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
    figure: Callable[[Row], Any] | None = None
    pictures: Callable[[Path, Path, Row], tuple[Row, list[Picture]]] | None = None
    """`pictures(data, work, stored)`: what they took to find out, kept beside the rows; and the pictures themselves."""

    @property
    def out(self) -> Path:
        return ROOT / "benchmarks" / "results" / f"{self.name}.json"

    def main(self) -> int:
        """The command: 0 when done, 2 when the data are not there."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=self.about)
        parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with mnist/")
        parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
        parser.add_argument("--work", type=Path, default=ROOT / "out" / self.name, help="where seeds are resumed")
        if self.figure is not None:
            parser.add_argument("--figure", type=Path, help="only draw what is stored, into this .html or .png")
        if self.pictures is not None:
            parser.add_argument(
                "--figures", type=Path, nargs="?", const=ROOT / "out" / self.name / "figures", metavar="FOLDER",
                help="also find out what is missing for all pictures, and draw them (default: %(const)s)",
            )  # fmt: skip
        arguments = parser.parse_args()
        stored = json.loads(self.out.read_text()) if self.out.exists() else {}
        if self.figure is not None and arguments.figure is not None:
            arguments.figure.parent.mkdir(parents=True, exist_ok=True)
            return self._one(arguments.figure, self.figure(stored["summary"]))
        if not (arguments.data / "mnist").is_dir():
            print(f"There is no MNIST at {arguments.data}: give the folder with --data.")
            return 2
        torch.set_num_threads(1)
        rows = stored.get("by_seed", []) if stored.get("settings") == self.settings else []
        for seed in arguments.seeds:
            if not any(done["seed"] == seed for done in rows):
                rows = [*rows, self.run(arguments.data, arguments.work, seed)]
                environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
                found = {"settings": self.settings, "summary": self.summary(rows), "by_seed": rows}
                stored = {**stored, **found, "environment": environment}
                self._write(stored)
        print(json.dumps(self.summary(rows), indent=1))
        if self.pictures is not None and arguments.figures is not None:
            self._draw(arguments.data, arguments.work, arguments.figures, stored)
        return 0

    def _one(self, path: Path, figure: Any) -> int:
        program = snapshot.browser()
        if path.suffix != ".png":
            write_text(path, figure.to_html())
        elif program is not None:
            snapshot.write_png(figure, path, program)
        else:
            print("There is no Chromium to make a PNG: give the name of an HTML file.")
            return 2
        return 0

    def _draw(self, data: Path, work: Path, folder: Path, stored: Row) -> None:
        """One page of all pictures, and a PNG of each where there is a browser; what they found is stored."""
        assert self.pictures is not None
        found, drawn = self.pictures(data, work, stored)
        self._write({**stored, **found})
        folder.mkdir(parents=True, exist_ok=True)
        write_page(folder / f"{self.name}.html", drawn, self.about)
        program = snapshot.browser()
        for picture in drawn if program is not None else ():
            snapshot.write_png(picture.figure, folder / f"{self.name}-{picture.name}.png", program)
        print(f"{len(drawn)} pictures in {folder}" + ("" if program else ", as a page alone: no Chromium to make PNGs"))

    def _write(self, found: Row) -> None:
        write_text(self.out, json.dumps(found, indent=1) + "\n")
