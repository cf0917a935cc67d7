"""`manifest.json`: which files an artifact has, how long each is and its SHA-256; checked before anything is parsed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateurs.base.errors import ArtifactError, explain
from secateurs.base.files import sha256

FORMAT = 1
NAME = "manifest.json"
KIND = "secateurs artifact"
TENSORS, PLAN, RECIPE, REPORT, GRAPH = "model.safetensors", "plan.json", "recipe.yaml", "report.json", "graph.json"
REQUIRED = (TENSORS, PLAN, RECIPE, REPORT)
_MANIFEST_LIMIT = 1_000_000


@dataclass(frozen=True)
class Manifest:
    """The checked list of files; `form` is `"native"` or `"graph"`."""

    form: str
    files: Mapping[str, Mapping[str, Any]]


def write_manifest(folder: Path, form: str, version: str) -> None:
    """Writes `manifest.json` over the files that `folder` holds now."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}
    data = {"kind": KIND, "format": FORMAT, "secateurs": version, "form": form, "files": files}
    (folder / NAME).write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def verify(folder: Path) -> Manifest:
    """Reads the manifest and checks name, size and SHA-256 of every file it lists.

    Raises `ArtifactError` when the folder is foreign, incomplete, cut short, altered, of an unknown format, or when
    the manifest names a file outside the folder.
    """
    manifest = _read(folder)
    for name in (*REQUIRED, *((GRAPH,) if manifest.form == "graph" else ())):
        if name not in manifest.files:
            raise refused(folder, f"it lists no `{name}`", "manifest.json is incomplete")
    for name, facts in manifest.files.items():
        _check_file(folder, name, facts)
    return manifest


def refused(where: Path, evidence: str, what: str = "This folder is not a sound artifact") -> ArtifactError:
    """The error for an artifact that must not be used."""
    return ArtifactError(
        explain(
            what,
            where=str(where),
            evidence=evidence,
            next_step="copy the folder again from where `sec.save` wrote it, or save it again",
        )
    )


def _read(folder: Path) -> Manifest:
    path = folder / NAME
    if not folder.is_dir():
        raise ArtifactError(
            explain(
                f"`{folder}` is not a Secateurs artifact",
                evidence="it is a file" if folder.exists() else "there is no such folder",
                next_step="give the folder that `sec.save` or `secateurs prune --out` wrote",
            )
        )
    if not path.is_file():
        raise refused(folder, f"there is no `{NAME}` in it", "This folder is not a Secateurs artifact")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise refused(path, f"it has {path.stat().st_size:,} bytes, {_MANIFEST_LIMIT:,} is the most that is read")
    data = read_json(path)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise refused(path, f"its kind is not {KIND!r}", "This folder is not a Secateurs artifact")
    if data.get("format") != FORMAT:
        raise ArtifactError(
            explain(
                "The artifact has a format that this version does not know",
                where=str(path),
                evidence=f"it says format {data.get('format')!r}, this version reads format {FORMAT}",
                next_step=f"load it with Secateurs {data.get('secateurs')}, which wrote it, or newer",
            )
        )
    form, files = data.get("form"), data.get("files")
    if form not in ("native", "graph") or not isinstance(files, dict) or not _well_formed(files.values()):
        raise refused(path, f"form is {form!r}, files is a {type(files).__name__}", "manifest.json is damaged")
    return Manifest(form, files)


def _well_formed(entries: Iterable[Any]) -> bool:
    return all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        for entry in entries
    )


def _check_file(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    if name not in (*REQUIRED, GRAPH):
        outside = "/" in name or "\\" in name or name in ("", ".", "..")
        reason = "which leads out of the folder" if outside else "which no artifact of this format has"
        raise refused(folder / NAME, f"it lists {name!r}, {reason}", "The manifest names a file it must not name")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        state = "a link" if path.is_symlink() else "missing"
        raise refused(path, f"the manifest lists it and it is {state}", f"`{name}` cannot be used")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise refused(
            path, f"it has {size:,} bytes, {facts['bytes']:,} were saved", f"`{name}` is cut short or altered"
        )
    found = sha256(path)
    if found != facts["sha256"]:
        raise refused(path, f"SHA-256 is {found[:12]}..., {facts['sha256'][:12]}... was saved", f"`{name}` was altered")


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises `ArtifactError` on anything else, nesting too deep to parse included."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise refused(path, repr(error)[:200], f"`{path.name}` is not JSON") from error
