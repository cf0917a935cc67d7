"""`Environment`: where a number was measured, so that it can be judged and repeated."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

_LANES = {"AVX512": 16, "AVX2": 8}


@dataclass(frozen=True)
class Environment:
    """Machine, software and how busy the machine was.

    `cores` are those that this process may use; `load` is the number of runnable processes averaged over the last
    minute, or None where the system does not tell.
    """

    cpu: str
    cores: int
    accelerator: str
    platform: str
    python: str
    torch: str
    runtime: str
    load: float | None

    @classmethod
    def now(cls, runtime: str, accelerator: str = "") -> Environment:
        """The environment of this process. `runtime` is the name and version of what runs the model."""
        return cls(
            cpu=cpu_name(),
            cores=usable_cores(),
            accelerator=accelerator,
            platform=platform.platform(),
            python=platform.python_version(),
            torch=torch.__version__,
            runtime=runtime,
            load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        )

    def __str__(self) -> str:
        load = "" if self.load is None else f", load {self.load:.2f}"
        place = f"{self.accelerator} beside {self.cpu}" if self.accelerator else self.cpu
        return f"{self.runtime} on {place}, {self.cores} cores{load}"


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def simd_lanes() -> int:
    """Float32 numbers that one vector instruction of this CPU holds: 16 with AVX-512, 8 with AVX2, else 4."""
    return _LANES.get(torch.backends.cpu.get_cpu_capability(), 4)
