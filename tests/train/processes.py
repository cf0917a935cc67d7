"""What the child processes of the tests run."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from train.networks import Augmented, convolutional, images, loader, plain, points

from secateurs.sparsity import Constant, GradientRegrowth, Gradual, Sparsity, Surgery
from secateurs.train.distill import Distill
from secateurs.train.finetune import FineTune, finetune
from secateurs.train.gates import Gates


def forked(target: Callable[..., None], *args: Any) -> BaseProcess:
    """`target(*args)` in a new process, forked from a server that has imported what is slow to import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["secateurs.train.finetune", "train.processes"])
    process = context.Process(target=target, args=args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server does not see this process's own path
        process.start()
    return process


class Slow(Augmented):
    """Takes its time, so that a kill finds the run at work."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(0.001)
        return super().__getitem__(index)


SPARSITIES = {
    "none": None,
    "hard": Sparsity(0.7, schedule=Gradual(begin=2, end="60%", every=3)),
    "dense-update": Sparsity(mode="dense-update", update=Surgery(c=0.5, gamma=0.05), schedule=Constant(end="90%")),
    "regrown": Sparsity(0.6, update=GradientRegrowth(end="100%"), schedule=Constant(every=3)),
}


GATES = {"gates": Gates(strength=0.06, start=0.82)}


def train_to_the_end(folder: str | None, output: str, sparsity: str = "none") -> None:
    """A run with everything that could differ after a resume: shuffling, augmentation, dropout, BN, Adam, a teacher."""
    torch.set_num_threads(1)
    Path(output).with_suffix(".started").touch()
    config = FineTune(
        epochs=4,
        optimizer="adam",
        lr=0.01,
        warmup=0.5,
        distil=Distill(),
        keep="best",
        recalibrate=2,
        checkpoint_steps=1,
        progress=False,
        sparsity=SPARSITIES[sparsity],
    )
    data: DataLoader[Any] = DataLoader(Slow(), batch_size=4, shuffle=True)
    validation = loader(images(12, seed=9), shuffle=False)
    result = finetune(
        convolutional(), data, config, teacher=convolutional(seed=5), validation=validation, folder=folder
    )
    momentum = {f"optimizer.{i}": state["exp_avg"] for i, state in enumerate(result.optimizer.state.values())}
    masks = {f"mask.{name}": mask for name, mask in (result.masks or {}).items()}
    losses = {"history": torch.tensor([row.loss for row in result.history], dtype=torch.float64)}
    save_file({**result.model.state_dict(), **momentum, **losses, **masks}, output)


def train_as_rank(rank: int, world: int, port: int, name: str, output: str) -> None:
    """One process of several, with the environment that `torchrun` gives it."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
    )
    train_distributed(name, output)


def train_distributed(name: str, output: str) -> None:
    torch.set_num_threads(1)
    keep = "best" if name == "convolutional" else "last"
    config = FineTune(epochs=2, lr=0.1, keep=keep, accelerator="cpu", strategy="ddp", progress=False,
                      sparsity=SPARSITIES.get(name), gates=GATES.get(name))  # fmt: skip
    model = convolutional() if name == "convolutional" else plain()
    data = images(20) if name == "convolutional" else points(21)
    result = finetune(model, loader(data), config, validation=loader(data, shuffle=False), folder=output)
    rank = int(os.environ["RANK"])
    rows = {"metric": torch.tensor([row.metric for row in result.history])}
    save_file({**result.model.state_dict(), **rows}, Path(output) / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    train_distributed(sys.argv[1], sys.argv[2])
