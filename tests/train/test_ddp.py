"""Two processes train what one process trains."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train.networks import loader, plain, points, same
from train.processes import GATES, SPARSITIES, forked, train_as_rank

from secateurs.sparsity import Sparsity
from secateurs.train.finetune import FineTune, finetune
from secateurs.train.gates import Gates


def two_ranks(name: str, folder: Path) -> list[dict[str, torch.Tensor]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [forked(train_as_rank, rank, 2, port, name, str(folder)) for rank in range(2)]
    for process in ranks:
        process.join(timeout=60)
    assert [process.exitcode for process in ranks] == [0, 0]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def compare_with_one_process(
    weights: dict[str, torch.Tensor], sparsity: Sparsity | None = None, gates: Gates | None = None
) -> None:
    data = points(21)
    config = FineTune(epochs=2, lr=0.1, progress=False, sparsity=sparsity, gates=gates)
    alone = finetune(plain(), loader(data), config, validation=loader(data, shuffle=False))
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)
    assert weights["metric"].tolist() == pytest.approx([row.metric for row in alone.history])


@pytest.mark.medium
def test_two_processes_equal_one(tmp_path: Path) -> None:
    first, second = two_ranks("plain", tmp_path)  # the last of 3 batches has 5 rows: 3 and 2
    assert same(first, second)
    compare_with_one_process(first)


@pytest.mark.medium
def test_batch_norm_ends_the_same_in_both_processes(tmp_path: Path) -> None:
    first, second = two_ranks("convolutional", tmp_path)
    assert same(first, second)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["hard", "dense-update", "regrown"])
def test_two_processes_hold_the_zeros_of_one(name: str, tmp_path: Path) -> None:
    """Regrowth looks at gradients of masked weights, which no process has whole."""
    first, second = two_ranks(name, tmp_path)
    assert same(first, second)
    assert bool((first["0.weight"] == 0).any())
    compare_with_one_process(first, SPARSITIES[name])


@pytest.mark.medium
def test_two_processes_close_the_gates_of_one(tmp_path: Path) -> None:
    first, second = two_ranks("gates", tmp_path)
    assert same(first, second)
    closed = int((first["2.weight"] == 0).all(0).sum())
    assert 0 < closed < 6
    compare_with_one_process(first, gates=GATES["gates"])


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    script = Path(__file__).with_name("processes.py")
    root = script.parents[2]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            script,
            "plain",
            tmp_path,
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}", "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert same(first, second)
    compare_with_one_process(first)
