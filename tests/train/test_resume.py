"""A run that is killed and started again ends with the very bits of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train.networks import convolutional, images, loader, plain, points, same, state
from train.processes import forked, train_to_the_end
from train.stopping import Interrupted, Stopping

from secateurs.base.errors import TrainError
from secateurs.train import checkpoint
from secateurs.train.finetune import FineTune, finetune

QUIET = FineTune(epochs=2, lr=0.1, progress=False)


def written(folder: Path) -> int:
    """When the checkpoint was written, in nanoseconds; 0 if there is none."""
    path = folder / checkpoint.FILE
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.medium
@pytest.mark.parametrize("sparsity", ["none", "hard", "dense-update"])
def test_killed_at_random_moments(sparsity: str, tmp_path: Path) -> None:
    whole = forked(train_to_the_end, None, str(tmp_path / "whole"), sparsity)
    delays = random.Random(7)
    positions = set()
    for attempt in range(40):
        output = tmp_path / f"killed{attempt}"
        run = forked(train_to_the_end, str(tmp_path / "run"), str(output), sparsity)
        if attempt < 4:
            seen = written(tmp_path / "run")
            while run.is_alive() and not output.with_suffix(".started").exists():
                time.sleep(0.002)
            while run.is_alive() and attempt > 0 and written(tmp_path / "run") == seen:
                time.sleep(0.002)
            run.join(timeout=delays.uniform(0.0, 0.08 * (attempt + 1)))
            if run.exitcode is None and run.pid is not None:
                os.kill(run.pid, signal.SIGKILL)
        run.join()
        if run.exitcode == 0:
            break
        assert run.exitcode == -signal.SIGKILL
        stored = checkpoint.read(tmp_path / "run")
        if stored is not None:
            positions.add((stored[1]["progress"]["epoch"], stored[1]["progress"]["batch"]))
    whole.join()

    assert whole.exitcode == 0
    assert run.exitcode == 0
    assert any(batch for _, batch in positions), f"no kill found the run inside an epoch: {positions}"
    assert len(positions) >= 2
    assert same(load_file(tmp_path / "whole"), load_file(output))


def test_every_step_can_be_the_last_before_a_resume(tmp_path: Path) -> None:
    config = FineTune(epochs=2, optimizer="adamw", progress=False, checkpoint_steps=1)
    data = loader(images(20))
    undisturbed = finetune(convolutional(), data, config)
    stopping = Stopping()

    stopped = FineTune(epochs=2, optimizer="adamw", progress=False, checkpoint_steps=1, loss=stopping)
    for _ in range(10):
        try:
            result = finetune(convolutional(), data, stopped, folder=tmp_path)
            break
        except Interrupted:
            continue
    assert stopping.calls == 6 + 5
    assert same(state(result.model), state(undisturbed.model))
    assert [row.loss for row in result.history] == [row.loss for row in undisturbed.history]


def test_a_finished_run_gives_its_result_again(tmp_path: Path) -> None:
    data = loader(points())
    first = finetune(plain(), data, QUIET, folder=tmp_path)
    before = (tmp_path / checkpoint.FILE).read_bytes()
    again = finetune(plain(), data, QUIET, folder=tmp_path)
    assert same(state(first.model), state(again.model))
    assert first.history == again.history
    assert (tmp_path / checkpoint.FILE).read_bytes() == before


def test_the_end_is_stored_whatever_the_interval(tmp_path: Path) -> None:
    steps = 0

    def counted(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return torch.nn.functional.cross_entropy(outputs, target)

    config = FineTune(epochs=2, checkpoint_epochs=5, loss=counted, progress=False)
    for _ in range(2):
        finetune(plain(), loader(points()), config, folder=tmp_path)
    assert steps == 6


def test_starting_over_replaces_the_checkpoint(tmp_path: Path) -> None:
    data = loader(points())
    finetune(plain(), data, QUIET, folder=tmp_path)
    with pytest.raises(TrainError, match="`lr`"):
        finetune(plain(), data, FineTune(epochs=2, lr=0.2, progress=False), folder=tmp_path)
    other = finetune(plain(), data, FineTune(epochs=2, lr=0.2, progress=False), folder=tmp_path, resume=False)
    again = finetune(plain(), data, FineTune(epochs=2, lr=0.2, progress=False), folder=tmp_path)
    assert same(state(other.model), state(again.model))


def test_another_run_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    data = loader(points())
    finetune(plain(), data, QUIET, folder=tmp_path)
    with pytest.raises(
        TrainError, match=r"`model tensors` `0.weight`.*was '\[6, 4\] float32' and is now '\[5, 4\] float32'"
    ):
        finetune(plain(width=5), data, QUIET, folder=tmp_path)
    with pytest.raises(TrainError, match=r"`starting weights`"):
        finetune(plain(seed=3), data, QUIET, folder=tmp_path)
    with pytest.raises(TrainError, match=r"`batches per epoch`.*was 3 and is now 4"):
        finetune(plain(), loader(points(32)), QUIET, folder=tmp_path)
    with pytest.raises(TrainError, match=r"`config` `epochs`.*was 2 and is now 3"):
        finetune(plain(), data, FineTune(epochs=3, lr=0.1, progress=False), folder=tmp_path)
    with pytest.raises(TrainError, match=r"`metric`.*was False and is now True"):
        finetune(plain(), data, QUIET, folder=tmp_path, evaluate=lambda model: 0.0)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    data = loader(points())
    finetune(plain(), data, QUIET, folder=tmp_path)
    path = tmp_path / checkpoint.FILE
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-7], b"\xff" * 200):
        path.write_bytes(damaged)
        with pytest.raises(TrainError, match="cannot be read"):
            finetune(plain(), data, QUIET, folder=tmp_path)


def test_buffers_outside_the_state_dict_are_resumed(tmp_path: Path) -> None:
    class Counting(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(inputs) * (1 + 0.01 * self.calls)

    torch.manual_seed(0)
    model = Counting()
    data = loader(points())
    finetune(model, data, QUIET, folder=tmp_path)
    again = finetune(model, data, QUIET, folder=tmp_path)
    assert float(again.model.calls) == 6


class Smoothed:
    """A loss with a setting, described by its repr."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, target, label_smoothing=self.smoothing)


class SmoothedAndNamed(Smoothed):
    def __repr__(self) -> str:
        return f"Smoothed({self.smoothing})"


def test_losses_of_ones_own(tmp_path: Path) -> None:
    data = loader(points())
    for name, kind in (("plain", Smoothed), ("named", SmoothedAndNamed)):
        config = FineTune(epochs=1, loss=kind(0.1), progress=False)
        finetune(plain(), data, config, folder=tmp_path / name)
        finetune(plain(), data, FineTune(epochs=1, loss=kind(0.1), progress=False), folder=tmp_path / name)
    with pytest.raises(TrainError, match=r"`loss`.*Smoothed\(0.1\).*Smoothed\(0.2\)"):
        other = FineTune(epochs=1, loss=SmoothedAndNamed(0.2), progress=False)
        finetune(plain(), data, other, folder=tmp_path / "named")
