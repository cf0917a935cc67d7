"""What every test may ask for, and what every test may rely on: one thread, quiet generators, repeatable examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

MEDIUM = (
    "bench",
    "cli",
    "cut/test_writes.py",
    "deliver/test_onnx.py",
    "deliver/test_packed.py",
    "deliver/test_quantised.py",
    "device",
    "engine/test_known_counts.py",
    "engine/test_random_networks.py",
    "pack",
    "report",
    "score/test_conformance.py",
    "sparsity/test_callbacks.py",
    "train/test_after_a_cut.py",
    "train/test_ddp.py",
    "train/test_resume.py",
)
"""Folders and files whose tests take seconds each: marked `medium`, so `make check` leaves them to `make test`."""

settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data",
        type=Path,
        default=SHARED_DATA,
        help="folder of real images and pretrained weights (default: ../shared/data beside the repository)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = tuple(REPOSITORY / "tests" / name for name in MEDIUM)
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in folders):
            item.add_marker(pytest.mark.medium)


@pytest.fixture(scope="session")
def data(request: pytest.FixtureRequest) -> Path:
    """The folder of real data; a test that asks for it is skipped where there is none."""
    folder: Path = request.config.getoption("--data")
    if not folder.is_dir():
        pytest.skip(f"needs real data: no folder {folder}; give one with --data")
    return folder
