"""Rows of the coverage benchmark on disk, and what they add up to."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import threading
from collections import Counter
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from secateurs.base.files import write_text

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("capture", "couple", "score", "choose", "cut")
PEER_STAGES = ("graph", "step")
COLUMNS = (
    *("suite", "kind", "model", "input", "status", "reason", "captured", "nodes"),
    *(
        "groups_free",
        "groups_frozen",
        "units_free",
        "units_frozen",
        "groups_inexact",
        "frozen_because",
        "form",
        "why_graph",
    ),
    *("seconds", "cpu_s", "build_s", *(f"{stage}_s" for stage in STAGES), "proof_s", "proof_difference"),
    *("masked", "masked_difference", "effect", "macs_left", "params_left", "flops_left"),
    *("params", "peak_mib", "untouched", "note", "code"),
)
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "numpy")
STATUSES = ("proven", "refused", "wrong", "crashed", "timeout")
PEER_STATUSES = ("right", "unchecked", "wrong", "nothing", "crashed", "timeout")
LEAST_PROVEN = {"torchvision": 1.0, "timm": 0.95, "transformers": 0.90}
MOST_MACS_LEFT = 0.40


def version(name: str) -> str:
    """The installed version of a package, `absent` if there is none."""
    try:
        return installed(name)
    except PackageNotFoundError:
        return "absent"


def code_version() -> str:
    """Twelve hexadecimal digits over the package's and the zoo's source and the versions of the libraries."""
    digest = hashlib.sha256("".join(f"{name}{version(name)}" for name in LIBRARIES).encode())
    for folder in (ROOT / "src", ROOT / "benchmarks"):
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("zoo/*.json")]):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Ledger:
    """`<name>.csv` in a folder: one row per model, replaced when the model is run again."""

    def __init__(self, folder: Path, code: str, name: str = "coverage", statuses: tuple[str, ...] = STATUSES) -> None:
        self._folder = folder
        self._code = code
        self._name = name
        self._statuses = statuses
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._csv.exists():
            with self._csv.open(newline="") as file:
                self._rows = {(row["suite"], row["model"]): dict(row) for row in csv.DictReader(file)}

    @property
    def _csv(self) -> Path:
        return self._folder / f"{self._name}.csv"

    def has(self, suite: str, model: str) -> bool:
        """Whether this model was run with this code."""
        return self._rows.get((suite, model), {}).get("code") == self._code

    def add(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Keep one model's row and write the file."""
        spent = [facts[f"{stage}_s"] for stage in (*STAGES, *PEER_STAGES) if f"{stage}_s" in facts]
        row = {**facts, "seconds": round(sum(spent), 3), "code": self._code}
        row["frozen_because"] = " | ".join(facts.get("frozen_because", []))
        row["reason"] = " ".join(str(facts.get("reason", "")).split())[:600]
        with self._lock:
            self._rows[row["suite"], row["model"]] = {key: "" if row.get(key) is None else row[key] for key in COLUMNS}
            write_text(self._csv, _as_csv(self._rows))
        return row

    def suites(self) -> dict[str, list[dict[str, Any]]]:
        """All rows by suite."""
        return _by(list(self._rows.values()), "suite")

    def write_summary(self, command: list[str], *, limit: float) -> dict[str, Any]:
        """`<name>.json`: environment, counts per suite, and whether each bar was met."""
        summary = {
            "command": " ".join(["python -m benchmarks.coverage", *command]).strip(),
            "limit_s": limit,
            "code": self._code,
            "environment": _environment(),
            "suites": {name: self._count(rows) for name, rows in self.suites().items()},
            "kinds": {
                name: {kind: self._count(some) for kind, some in _by(rows, "kind").items()}
                for name, rows in self.suites().items()
            },
            "bars": {name: _bar(name, rows) for name, rows in self.suites().items() if self._statuses == STATUSES},
        }
        write_text(self._folder / f"{self._name}.json", json.dumps(summary, indent=1) + "\n")
        return summary

    def table(self) -> Table:
        """Counts per suite and kind."""
        table = Table(title="Coverage: cut to half of the channels and proven")
        for name in ("suite", "kind", "models", *self._statuses, "native", "MACs left", "worst", "seconds", "slowest"):
            table.add_column(name, justify="left" if name in ("suite", "kind") else "right")
        for suite, rows in self.suites().items():
            for kind, some in _by(rows, "kind").items():
                table.add_row(suite, kind, *self._cells(some))
            table.add_row(suite, "all", *self._cells(rows), style="bold", end_section=True)
        return table

    def _count(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Numbers that a suite or a kind is described by; shares of MACs are over models with the first status."""
        counts = Counter(row["status"] for row in rows)
        good = [row for row in rows if row["status"] == self._statuses[0]]
        left = [float(row["macs_left"]) for row in good]
        seconds = [float(row["cpu_s"]) for row in rows if row["cpu_s"]]
        return {
            "models": len(rows),
            **{status: counts[status] for status in self._statuses},
            "native": sum(row["form"] == "native" for row in good),
            "recorded": sum(row["captured"] == "recorded" for row in rows),
            "masked_checked": sum(str(row["masked"]).startswith("float") for row in rows),
            "untouched": sum(str(row["untouched"]) == "True" for row in rows),
            "macs_left_median": round(median(left), 4) if left else None,
            "macs_left_worst": max(left, default=None),
            "seconds_median": round(median(seconds), 2) if seconds else None,
            "seconds_worst": max(seconds, default=None),
        }

    def _cells(self, rows: list[dict[str, Any]]) -> list[str]:
        count = self._count(rows)
        shown = {"macs_left_median": ".0%", "macs_left_worst": ".0%", "seconds_median": ".1f", "seconds_worst": ".1f"}
        numbers = ["" if count[key] is None else format(count[key], form) for key, form in shown.items()]
        return [str(count[key]) for key in ("models", *self._statuses, "native")] + numbers


def line(row: dict[str, Any]) -> str:
    """One model on one line of the terminal."""
    left = f"MACs {float(row['macs_left']):.0%}" if row.get("macs_left") not in (None, "") else ""
    name, reason = f"{row['suite']}/{row['model']}", str(row.get("reason", ""))[:160]
    return f"{row['status']:8} {name:48} {row['seconds']:6.1f} s  {row.get('form', ''):6} {left}  {reason}"


def _by(rows: list[dict[str, Any]], column: str) -> dict[str, list[dict[str, Any]]]:
    """The rows by their value in one column, in order of appearance."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row[column], []).append(row)
    return parts


def _bar(suite: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Enough proven, none wrong, none hanging; for torchvision also few MACs left on every model but detectors."""
    proven = [row for row in rows if row["status"] == "proven"]
    heavy = [row["model"] for row in proven if float(row["macs_left"]) > MOST_MACS_LEFT and row["kind"] != "detection"]
    bad = [row["model"] for row in rows if row["status"] in ("wrong", "timeout")]
    share = len(proven) / len(rows)
    return {
        "asked": LEAST_PROVEN[suite],
        "proven": round(share, 4),
        "wrong_or_hanging": bad,
        "above_40_percent_macs": heavy,
        "met": share >= LEAST_PROVEN[suite] and not bad and not (heavy and suite == "torchvision"),
    }


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads_per_model": 1,
        **{name: version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (text.split(":", 1)[1].strip() for text in lines if text.startswith("model name"))
    return next(names, platform.processor())


def _as_csv(rows: dict[tuple[str, str], dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    return text.getvalue()
