"""Writes are whole or absent: after any failure the old content is there, and nothing else."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateurs.base import files
from secateurs.base.files import WriteError, check_folder, sha256, write_bytes, write_folder, write_text


@contextmanager
def a_disk_that_fills(limit: int) -> Iterator[None]:
    """No file may grow past `limit` bytes: the operating system itself refuses the write, as it does on a full disk."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old_limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_text_and_bytes_come_back(tmp_path: Path) -> None:
    write_text(tmp_path / "deep/er/plan.json", "größe\n")
    write_bytes(tmp_path / "deep/er/raw", b"\x00\xff")
    assert (tmp_path / "deep/er/plan.json").read_bytes() == "größe\n".encode()
    assert (tmp_path / "deep/er/raw").read_bytes() == b"\x00\xff"
    assert names(tmp_path / "deep/er") == ["plan.json", "raw"]


def test_a_file_is_replaced_and_keeps_the_usual_permissions(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("x")
    write_text(tmp_path / "ours", "one")
    write_text(tmp_path / "ours", "two")
    assert (tmp_path / "ours").read_text() == "two"
    assert (tmp_path / "ours").stat().st_mode == ordinary.stat().st_mode


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "plan.json", "old")
    with a_disk_that_fills(1000), pytest.raises(WriteError, match=r"plan\.json.*unchanged.*Next: .*space") as raised:
        write_bytes(tmp_path / "plan.json", bytes(5000))
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.EFBIG
    assert (tmp_path / "plan.json").read_text() == "old"
    assert names(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("writer", ["plain", "safetensors"])
def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, writer: str) -> None:
    with write_folder(tmp_path / "out") as folder:
        save_file({"w": torch.arange(4.0)}, folder / "model.safetensors")
    with (
        a_disk_that_fills(1000),
        pytest.raises(WriteError, match="unchanged"),
        write_folder(tmp_path / "out") as folder,
    ):
        if writer == "plain":
            (folder / "model.safetensors").write_bytes(bytes(5000))
        else:
            save_file({"w": torch.zeros(5000)}, folder / "model.safetensors")
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")["w"], torch.arange(4.0))
    assert names(tmp_path) == ["out"]


def test_an_exception_inside_the_block_passes_and_leaves_the_old_folder(tmp_path: Path) -> None:
    with write_folder(tmp_path / "out") as folder:
        write_text(folder / "a", "old")
    with pytest.raises(ZeroDivisionError), write_folder(tmp_path / "out") as folder:
        write_text(folder / "a", "new")
        raise ZeroDivisionError
    assert (tmp_path / "out/a").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two steps"])
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(sys, "platform", "elsewhere")
    with write_folder(tmp_path / "out") as folder:
        write_text(folder / "a", "old")
        write_text(folder / "part/b", "old")
    with write_folder(tmp_path / "out", owns=["a"]) as folder:
        write_text(folder / "part/c", "new")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["part"]
    assert names(tmp_path / "out/part") == ["c"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux's")
def test_linux_swaps_two_folders_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_text(tmp_path / "a/content", "of a")
    write_text(tmp_path / "b/content", "of b")
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert ((tmp_path / "a/content").read_text(), (tmp_path / "b/content").read_text()) == ("of b", "of a")


def test_somebody_elses_files_are_not_lost(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(WriteError, match=r"would be lost.*thesis\.tex"), write_folder(tmp_path) as folder:
        write_text(folder / "plan.json", "{}")
    assert names(tmp_path) == ["thesis.tex"]


def test_a_folder_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("ours")
    (tmp_path / "file").write_text("")
    check_folder(tmp_path / "new" / "out")
    check_folder(tmp_path / "out", owns=["a"])
    for place in (tmp_path / "out", tmp_path / "file"):
        with pytest.raises(WriteError, match="would be lost"):
            check_folder(place)
    with pytest.raises(WriteError, match="could not be written"):
        check_folder(tmp_path / "file" / "below")
    assert names(tmp_path) == ["file", "new", "out"]
    assert names(tmp_path / "out") == ["a"] and names(tmp_path / "new") == []


def test_a_file_in_the_place_of_the_folder_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(WriteError, match="would be lost"), write_folder(tmp_path / "out") as folder:
        write_text(folder / "plan.json", "{}")
    assert (tmp_path / "out").read_text() == "a file"


def test_an_unwritable_place_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="could not be written"):
        write_text(tmp_path / "file/below", "x")


def test_kill_9_in_the_middle_leaves_the_old_folder(tmp_path: Path) -> None:
    with write_folder(tmp_path / "out") as folder:
        write_text(folder / "a", "old")
    script = """
        import os, signal, sys
        from pathlib import Path
        from secateurs.base.files import write_folder
        with write_folder(Path(sys.argv[1])) as folder:
            (folder / "a").write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "out/a").read_text() == "old"


def test_leftovers_of_killed_runs_go_after_a_day_and_not_before(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".out.11111111.partial", tmp_path / ".out.22222222.partial"
    old.mkdir()
    fresh.mkdir()
    yesterday = time.time() - files.LEFTOVER_SECONDS - 60
    os.utime(old, (yesterday, yesterday))
    with write_folder(tmp_path / "out") as folder:
        write_text(folder / "a", "x")
    assert names(tmp_path) == [fresh.name, "out"]


def test_sha256_agrees_with_the_content(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    write_bytes(tmp_path / "raw", data)
    assert sha256(tmp_path / "raw") == hashlib.sha256(data).hexdigest()
