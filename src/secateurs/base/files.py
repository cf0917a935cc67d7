"""Files that are written whole or not at all.

New content goes to a hidden sibling first, is flushed to the disk, and takes the old one's place in a single rename.
A full disk, an exception or a `kill -9` at any moment leaves what was there before. Such a kill may also leave a
sibling named `.<name>.<random>.partial`; the next write to the same path removes those older than a day.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from secateurs.base.errors import SecateursError, explain

LEFTOVER_SECONDS = 24 * 3600
"""A partial write that is older than this belongs to no living process."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class WriteError(SecateursError):
    """A file or folder could not be written; whatever was there before is unchanged."""


def write_bytes(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Replace the file at `path` by `parts`, end to end. Raises `WriteError`; the old file is then unchanged."""
    target = Path(path)
    with _reporting(target):
        partial = _sibling(target)
        try:
            with partial.open("xb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            _sync_folder(target.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8. Raises `WriteError`; the old file is then unchanged."""
    write_bytes(path, text.encode())


@contextmanager
def write_folder(path: str | os.PathLike[str], *, owns: Collection[str] = ()) -> Iterator[Path]:
    """Fill the folder that is yielded; on leaving the block it takes the place of `path`, old content included.

    An old folder is replaced only if nothing of somebody else's goes with it: every name in it must be written again,
    or be listed in `owns` (names that an earlier version may have had and this one lacks).

    Raises `WriteError` when a write fails or the old folder holds other files. After any exception, `path` is as it
    was and the partial folder is gone.
    """
    target = Path(path)
    with _reporting(target):
        partial = _sibling(target)
        partial.mkdir()
        try:
            yield partial
            _refuse_to_lose(target, kept={entry.name for entry in partial.iterdir()} | set(owns))
            _sync_tree(partial)
            _swap(partial, target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_folder(path: str | os.PathLike[str], *, owns: Collection[str] = ()) -> None:
    """Raises `WriteError` now if `write_folder(path, owns=owns)` would refuse later, after the work that fills it."""
    target = Path(path)
    with _reporting(target):
        _refuse_to_lose(target, kept=set(owns))
        probe = _sibling(target)
        probe.mkdir()
        probe.rmdir()


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reporting(target: Path) -> Iterator[None]:
    """Turn a failed write (safetensors has its own exception for one) into a `WriteError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(
            explain(
                f"`{target}` could not be written, and what was there before is unchanged",
                evidence=getattr(error, "strerror", None) or str(error),
                next_step="check the free space and the permissions of that folder, or write elsewhere",
            )
        ) from error


def _sibling(target: Path) -> Path:
    """A fresh hidden name beside `target`, after removing what killed runs left there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.partial"):
        if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"


def _refuse_to_lose(target: Path, kept: set[str]) -> None:
    if target.is_dir():
        lost = sorted(entry.name for entry in target.iterdir() if entry.name not in kept)
    else:
        lost = [target.name] if target.exists() else []
    if lost:
        raise WriteError(
            explain(
                f"`{target}` holds files that were not written by Secateurs and would be lost",
                evidence=", ".join(f"`{name}`" for name in lost[:5]) + (" ..." if len(lost) > 5 else ""),
                next_step="give a new or empty folder",
            )
        )


def _swap(partial: Path, target: Path) -> None:
    """Put `partial` in the place of `target`; what was there ends up under the name `partial`, to be removed."""
    if not target.exists():
        partial.rename(target)
    elif not _exchange(partial, target):
        old = _sibling(target)
        target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            old.rename(target)
            raise
        old.rename(partial)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step where the system can (Linux); False where it cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    failed = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(failed == 0)


def _sync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; a system that cannot open folders (Windows) does so on its own."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
