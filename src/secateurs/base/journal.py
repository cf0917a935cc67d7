"""`Journal`: what a long run has already done, one JSON object per line, so that killing it costs at most one step.

A line counts once its newline is on the disk. Reading drops a torn last line; damage anywhere else is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from secateurs.base.errors import ArtifactError, InputError, explain

Json = Any
"""None, bool, int, finite float, str, or lists and string-keyed dicts of these."""

_HEAD = b'{"run": '
"""How every journal begins."""


class Journal:
    """An append-only record of finished steps. One process writes it at a time.

    `run` identifies the run (recipe hash, seed, versions, ...): it becomes the first line of a new journal, and an
    existing one is continued only if it was written by the same run.

        journal = Journal(folder / "journal.jsonl", run={"recipe": digest, "seed": 0})
        for name in layers:
            drop = journal.once(f"sensitivity/{name}", lambda: measure(name))

    Raises `ArtifactError` when the file is damaged or belongs to another run.
    """

    def __init__(self, path: str | os.PathLike[str], *, run: Mapping[str, Json]) -> None:
        self.path = Path(path)
        self._steps: dict[str, Json] = {}
        lines, whole_bytes = _read(self.path)
        if lines:
            self._continue(lines, _plain("run", dict(run)), whole_bytes)
        else:
            self._create(dict(run))

    def __contains__(self, step: object) -> bool:
        return step in self._steps

    def __getitem__(self, step: str) -> Json:
        """What was recorded for `step`. Raises `KeyError` if it has not been done."""
        return self._steps[step]

    def __iter__(self) -> Iterator[str]:
        """Finished steps, oldest first."""
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: str, value: Json = None) -> Json:
        """Record that `step` is done, with its result. On return it is on the disk, and a crash cannot undo it.

        Returns the value as a later reading gives it (tuples become lists), so a resumed run sees the same data.
        Raises `InputError` when the step is already recorded or the value is not finite JSON data.
        """
        if step in self._steps:
            raise InputError(explain(f"Step {step!r} is already in the journal `{self.path}`"))
        plain = _plain(step, value)
        self._write({"step": step, "value": plain})
        self._steps[step] = plain
        return plain

    def once(self, step: str, compute: Callable[[], Json]) -> Json:
        """The recorded result of `step`, or `compute()`, recorded."""
        return self._steps[step] if step in self._steps else self.append(step, compute())

    def _create(self, run: dict[str, Json]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {"run": _plain("run", run)}
        self.path.unlink(missing_ok=True)
        self._write(line)

    def _continue(self, lines: list[dict[str, Json]], run: Json, whole_bytes: int) -> None:
        recorded = lines[0].get("run")
        if recorded != run:
            raise ArtifactError(
                explain(
                    f"The journal `{self.path}` belongs to another run",
                    evidence=_first_difference(recorded, run),
                    next_step="give a new run folder, or repeat the call that started this one",
                )
            )
        self._steps = {line["step"]: line["value"] for line in lines[1:]}
        if whole_bytes != self.path.stat().st_size:
            os.truncate(self.path, whole_bytes)

    def _write(self, line: dict[str, Json]) -> None:
        with self.path.open("ab") as file:
            file.write((json.dumps(line, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> tuple[list[dict[str, Json]], int]:
    """The whole lines of a journal and how many bytes they take; none if there is no file or only a torn first line."""
    *whole, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    lines = [_parse(text, first=number == 0) for number, text in enumerate(whole)]
    if not whole and not (torn.startswith(_HEAD) or _HEAD.startswith(torn)):
        raise _damaged(path, 1, torn)
    if None in lines:
        raise _damaged(path, lines.index(None) + 1, whole[lines.index(None)])
    return [line for line in lines if line is not None], sum(len(text) + 1 for text in whole)


def _parse(text: bytes, *, first: bool) -> dict[str, Json] | None:
    """One line as data, or None if it is not a line of a journal."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    expected = {"run"} if first else {"step", "value"}
    return line if isinstance(line, dict) and set(line) == expected else None


def _damaged(path: Path, line: int, text: bytes) -> ArtifactError:
    return ArtifactError(
        explain(
            f"`{path}` is not a journal, or is damaged",
            where=f"line {line}",
            evidence=f"{text[:60]!r} is not a finished step",
            next_step="delete the file to start the run again, or name another one",
        )
    )


def _plain(step: str, value: Json) -> Json:
    """The value as JSON gives it back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            explain(
                f"The result of step {step!r} cannot be written to the journal",
                evidence=str(error),
                next_step="record finite numbers, strings, lists and dicts; keep tensors in safetensors files",
            )
        ) from error


def _first_difference(recorded: Json, asked: Json) -> str:
    if not isinstance(recorded, dict) or not isinstance(asked, dict):
        return f"recorded {recorded!r}, asked {asked!r}"
    keys = [key for key in sorted({*recorded, *asked}) if recorded.get(key) != asked.get(key)]
    return "; ".join(f"`{key}` was {recorded.get(key)!r} and is now {asked.get(key)!r}" for key in keys[:1])
