"""Two processes hold the same zeros, and train what one process trains."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateurs as sec


def build(mode: str) -> tuple[nn.Module, sec.Sparsifier]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    return model, sec.sparsify(model, 0.8, mode=mode, schedule=sec.Gradual(begin=0, end=4, every=2))


def samples(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


def train(model: nn.Module, wrapped: nn.Module, held: sec.Sparsifier, rows: slice) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(6):
        optimizer.zero_grad()
        x, y = samples(step)
        nn.functional.mse_loss(wrapped(x[rows]), y[rows]).backward()
        optimizer.step()
        held.step()
        for name, parameter in model.named_parameters():
            if name in held.masks:
                gone = ~held.masks[name]
                values = [parameter]
                if held.mode == "hard":
                    values += [parameter.grad, *optimizer.state[parameter].values()]
                assert not any(bool(item[gone].any()) for item in values if item is not None and item.dim() == 2), name


def as_rank(rank: int, port: int, folder: str, mode: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    model, held = build(mode)
    wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    train(model, wrapped, held, slice(4 * rank, 4 * rank + 4))
    dense = {f"dense.{name}": item.clone() for name, item in held.dense.items()}
    save_file({**model.state_dict(), **dense}, Path(folder) / f"{rank}.safetensors")
    torch.distributed.barrier()
    # PyTorch may hang taking its Reducer apart: it waits for a thread of gloo, which waits for the interpreter lock.
    os._exit(0)


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_two_processes_equal_one(mode: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparsity.test_hold_ddp"])
    ranks = [context.Process(target=as_rank, args=(rank, port, str(tmp_path), mode)) for rank in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server does not see this process's own path
        for process in ranks:
            process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    model, held = build(mode)
    train(model, model, held, slice(None))
    assert held.sparsity == pytest.approx(0.8, abs=0.01)
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name] == 0, tensor == 0)
    for name, tensor in held.dense.items():
        assert torch.equal(first[f"dense.{name}"], second[f"dense.{name}"])
        torch.testing.assert_close(first[f"dense.{name}"], tensor, rtol=1e-4, atol=1e-5)
