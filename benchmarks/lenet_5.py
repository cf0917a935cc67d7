"""LeNet-5 on MNIST as the benchmarks of its pruning train it, and how they judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateurs as sec
from benchmarks import lenet, mnist_data, mnist_nets
from secateurs.base.seeds import seeded

DENSE: dict[str, Any] = {
    "network": "LeNet-5, 20-50-500-10", "images": 55_000, "batch": 100,
    "train": {"optimizer": "adam", "lr": 2e-3, "epochs": 2, "schedule": "cosine"},
}  # fmt: skip


class Bench:
    """The first 55,000 training images in batches, the accuracy on the 10,000 test images, and dense networks."""

    def __init__(self, data: Path, work: Path) -> None:
        images, labels = mnist_data.pixels(data, "train")
        count = DENSE["images"]
        self.work = work
        self.batches = lenet.Batches(images[:count], labels[:count], DENSE["batch"])
        self.test, labels = mnist_data.pixels(data, "test")
        self.judge = sec.accuracy(lenet.in_order(self.test, labels, 500))

    def dense(self, seed: int) -> nn.Module:
        """Trained from the weights of this seed; channels last, which takes half of the time here."""
        with seeded(seed):
            model = mnist_nets.build("lenet_5")
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.trained(model, DENSE["train"], seed, f"dense-{seed}")

    def trained(
        self,
        model: nn.Module,
        wanted: dict[str, Any],
        seed: int,
        place: str,
        *,
        masks: dict[str, Tensor] | None = None,
        sparsity: sec.Sparsity | None = None,
    ) -> nn.Module:
        """A copy of the model, trained. A training of before gives its result at once."""
        config = sec.FineTune(**wanted, sparsity=sparsity, seed=seed, progress=False)
        return sec.finetune(model, self.batches, config, masks=masks, folder=self.work / place).model
