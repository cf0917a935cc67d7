"""The ledger: what every byte of a packed file is for."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from secateurs.pack.baseline import SIMD, Baseline
from secateurs.pack.container import CHECK, Packed, read
from secateurs.pack.record import STREAMS, Layout, Record

PARTS = ("header", "indices", "codebooks", "codes", "biases", "norms", "tables", "texts", "checksums", "padding")
"""`codes`: values or codes of weights, `codebooks`: with scales, `norms`: all of batch norms and the like, `tables`: of
entropy coders, `texts`: metadata and program."""

SINGLE = {part: (part,) for part in PARTS}
GROUPS = {
    "indices": ("indices",),
    "values": ("codebooks", "codes", "biases", "norms"),
    "rest": ("header", "tables", "texts", "checksums", "padding"),
}
"""Columns of a table where there is room for few."""

FILE = "(file)"

FORMS = {
    "csr": "in sparse rows",
    "relative": "with gaps between kept weights",
    "simd": f"in groups of {SIMD}",
}
"""What `summary` calls the sizes in plain formats."""


@dataclass(frozen=True)
class Row:
    """Bytes of one tensor (or text, or of the file as such) by part, and how it is stored."""

    name: str
    form: str
    entries: int
    kept: int
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "form": self.form, "entries": self.entries, "kept": self.kept, "bytes": self.bytes,
            "parts": dict(self.parts),
        }  # fmt: skip


@dataclass(frozen=True)
class Ledger:
    """Every byte of a file, once: the rows sum to `bytes`. `tensors` are the bytes that it decodes to."""

    rows: tuple[Row, ...]
    bytes: int
    tensors: int
    baseline: Baseline | None = None

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, over all rows."""
        return {part: sum(row.parts.get(part, 0) for row in self.rows) for part in PARTS}

    def with_baseline(self, baseline: Baseline) -> Ledger:
        return replace(self, baseline=baseline)

    def to_json(self) -> dict[str, Any]:
        return {
            "bytes": self.bytes,
            "tensors": self.tensors,
            "parts": self.parts,
            "rows": [row.to_json() for row in self.rows],
            "gzip": None if self.baseline is None else self.baseline.to_json(),
        }

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=150, no_color=True, highlight=False, legacy_windows=False)
        console.print(self, markup=False)
        console.print(Text(self.summary()), markup=False)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, with fewer columns where it would not fit."""
        whole = self.table()
        needed = Measurement.get(console, options.update(max_width=1 << 16), whole).maximum
        yield whole if needed <= options.max_width else self.table(GROUPS)

    def table(self, groups: Mapping[str, tuple[str, ...]] = SINGLE) -> Table:
        """A row per tensor, a column for every part that there is, or for `groups` of parts, and the sums."""
        rows = [{name: sum(row.parts.get(part, 0) for part in groups[name]) for name in groups} for row in self.rows]
        totals = {name: sum(row[name] for row in rows) for name in groups}
        sums = {name: size for name, size in totals.items() if size}
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, show_footer=True)
        table.add_column("tensor", footer=Text("all"), overflow="fold")
        table.add_column("form", overflow="fold")
        for name in ("kept", *sums, "bytes"):
            total = self.bytes if name == "bytes" else sums.get(name)
            table.add_column(name, justify="right", footer=Text("" if total is None else f"{total:,}"))
        for row, parts in zip(self.rows, rows, strict=True):
            share = f"{row.kept / row.entries:.1%}" if row.entries else ""
            cells = [f"{parts[name]:,}" if parts[name] else "" for name in sums]
            table.add_row(*map(Text, (row.name, row.form, share, *cells, f"{row.bytes:,}")))
        return table

    def summary(self) -> str:
        """The size, beside that of the tensors in it, or of float32 and what gzip makes of it."""
        if self.baseline is None:
            times = f"{self.tensors / self.bytes:.2f} times smaller than the {self.tensors:,} bytes of its tensors"
            return f"{self.bytes:,} bytes, {times}."
        base = self.baseline
        alone = "" if base.weights_rate is None else f" (weights alone: rate {base.weights_rate:.2%})"
        plain = ", ".join(f"{FORMS[name]} {size:,} bytes" for name, size in base.forms.items())
        return (
            f"{self.bytes:,} bytes, {base.raw / self.bytes:.2f} times smaller than {base.raw:,} bytes of float32. "
            f"gzip alone makes {base.gzip_original:,} bytes of the original's values and {base.gzip_packed:,} of the "
            f"packed ones: rate {base.rate:.2%}, factor {base.factor:.4f}{alone}."
            + (f" The packed values as plain float32: {plain}." if plain else "")
        )


def ledger(packed: Packed | str | os.PathLike[str]) -> Ledger:
    """What every byte of a file is for, from its header alone: a path, or what `sec.read_packed` gives.

    Raises `ArtifactError` for a file that is not sound.
    """
    packed = packed if isinstance(packed, Packed) else read(packed)
    norms = _norms(packed)
    rows = [
        _row(record, layout, _role(record, norms))
        for record, layout in zip(packed.records, packed.layouts, strict=True)
    ]
    texts = [
        Row(f"({text.name})", "text", 0, 0, {"header": text.header - CHECK, "checksums": CHECK, "texts": text.stored})
        for text in packed.texts
    ]
    inside = sum(record.header for record in packed.records) + sum(text.header for text in packed.texts)
    whole = Row(FILE, "", 0, 0, {"header": packed.header - CHECK - inside, "checksums": CHECK})
    return Ledger((whole, *texts, *rows), packed.end, sum(record.decoded for record in packed.records))


def _row(record: Record, layout: Layout, role: str) -> Row:
    fields = len(record.streams) - STREAMS[record.content]
    parts: Counter[str] = Counter(header=record.header - CHECK, checksums=CHECK, padding=layout.padding)
    for place, stream in enumerate(record.streams):
        parts["tables"] += stream.table
        parts["indices" if place < fields else role] += stream.payload
    parts["codebooks"] += record.float_bytes
    parts[role] += record.raw_bytes
    content = ("raw", "shared", "scaled", "split")[record.content]
    index = "dense" if record.encoding is None else record.encoding.name
    return Row(record.names[0], f"{content} {index}", record.size, record.count, {k: v for k, v in parts.items() if v})


def _norms(packed: Packed) -> frozenset[str]:
    """Modules that are norms, as their tensors show: running statistics, or a weight that is a vector."""
    return frozenset(
        name.rpartition(".")[0]
        for record in packed.records
        for name in record.names
        if name.endswith("running_mean") or (name.endswith("weight") and len(record.shape) == 1)
    )


def _role(record: Record, norms: frozenset[str]) -> str:
    owner, _, last = record.names[0].rpartition(".")
    if owner in norms:
        return "norms"
    return "biases" if "bias" in last else "codes"


__all__ = ["FILE", "PARTS", "Ledger", "Row", "ledger"]
