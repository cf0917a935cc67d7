"""Start a trial in its own process, watch the stage it is in, and kill it when it takes too long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD_LIMIT = 240.0
CHECK_LIMIT = 240.0
PATIENCE = 4.0
OUTSIDE = {"": BUILD_LIMIT, "build": BUILD_LIMIT, "check": CHECK_LIMIT, "untouched": CHECK_LIMIT, "end": CHECK_LIMIT}


def watch(suite: str, name: str, *, limit: float, module: str = "benchmarks.trial") -> dict[str, Any]:
    """All facts that the trial stated; `status` is `timeout` when it was killed, `crashed` when it died.

    `limit` is in seconds of one core, over the stages between building the model and checking the result; a process
    that waits is killed after `PATIENCE` times as long.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.jsonl")
        path.touch()
        with Path(folder, "stderr").open("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", module, suite, name, str(path)],
                cwd=ROOT,
                env=_environment(),
                stdout=errors,
                stderr=errors,
            )
            late = _wait(process, path, limit)
            errors.seek(0)
            said = errors.read()[-2000:]
        facts, stage = _read(path)
    if "status" in facts:
        return facts
    if late:
        return {**facts, "status": "timeout", "reason": f"killed in {stage} after {late}"}
    reason = f"died in {stage or 'start'} with code {process.returncode}"
    return {**facts, "status": "crashed", "reason": reason, "trace": said}


def _environment() -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = os.pathsep.join(path for path in (str(ROOT), str(ROOT / "src"), *given) if path)
    return {**os.environ, **threads, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}


def _wait(process: subprocess.Popen[bytes], path: Path, limit: float) -> str:
    """Wait for the end; what the process was killed for, or nothing."""
    before, begun = None, (0.0, 0.0)
    while process.poll() is None:
        time.sleep(0.1)
        stage = _read(path)[1]
        timed = stage not in OUTSIDE
        now = _core_seconds(process.pid), time.monotonic()
        if timed is not before:
            before, begun = timed, now
        core, wall = now[0] - begun[0], now[1] - begun[1]
        most = limit if timed else OUTSIDE[stage]
        if core > most or wall > PATIENCE * most:
            process.kill()
            process.wait()
            return f"{core:.0f} s of one core, {wall:.0f} s in all"
    return ""


def _core_seconds(pid: int) -> float:
    """Seconds for which this process has run on a core; the clock where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Facts and the last stage begun; a half-written last line is left out."""
    facts: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        try:
            facts |= json.loads(line)
        except json.JSONDecodeError:
            continue
    return facts, facts.pop("stage", "")
