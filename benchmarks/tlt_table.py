"""The four equalisations at equal MACs: one cut of the penalised network each, and the retraining of one round.

Scores are Taylor's, not norms of filters: every convolution here is followed by a batch norm, which undoes any
scale, so a penalty on norms leaves the function alone, and the norms within a layer are nearly equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from benchmarks import cifar
from benchmarks.tlt_pool import moved

EQUALIZATIONS = ("arithmetic_mean", "geometric_mean", "keep_any", "keep_all")
IMAGE = torch.zeros(1, 3, 32, 32)

SETTINGS: dict[str, Any] = {
    "network": "resnet20_cifar10, published weights",
    "batch": 64,
    "penalise": {"epochs": 1, "batches": 150, "lr": 0.02, "kind": "bn_scale", "strength": 3e-3},
    "criterion": "taylor", "normalizer": None, "score_batches": 10,
    "granularity": 4, "min_channels": 4, "recalibrate": 10, "validation_images": 1000,
    "retrain": {"epochs": 1, "batches": 150, "lr": 0.02, "weight_decay": 5e-4},
    "distil": {"temperature": 4.0, "alpha": 0.7},
    "table_macs": 0.6,
}  # fmt: skip
"""`batches` are of random crops."""


class Crops:
    """Random batches: images moved by up to four pixels and mirrored half the time (He et al. 2015).

    Order, shifts and mirrors follow from torch's random state, which the trainer sets.
    """

    def __init__(self, images: Tensor, labels: Tensor, size: int) -> None:
        self.images, self.labels, self.size = F.pad(images, (4, 4, 4, 4)), labels, size

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.labels))[: len(self) * self.size].split(self.size):
            yield cifar.normalised(moved(self.images, rows)), self.labels[rows]


class Equalisations:
    """The data, the network and how to train and judge it, for every cell."""

    def __init__(self, data: Path, work: Path) -> None:
        self.work = work
        self.crops = Crops(*cifar.read_batches(data, (1, 2, 3, 4)), size=SETTINGS["batch"])
        images, labels = cifar.read_batches(data, (5,))
        pixels = cifar.normalised(images[: SETTINGS["validation_images"]]).contiguous(memory_format=torch.channels_last)
        self.validate = sec.accuracy(list(zip(pixels.split(250), labels[: len(pixels)].split(250), strict=True)))
        self.test = sec.accuracy(cifar.held_out(data))
        self.model = cifar.pretrained(data)

    def run(self, equalization: str, seed: int) -> dict[str, Any]:
        named = ("criterion", "normalizer", "granularity", "min_channels", "recalibrate")
        penalised = self.train("penalise", seed, self.work / f"whole-{seed}" / "penalise")
        result = sec.train_prune_loop(
            penalised, IMAGE, self.crops, steps=sec.Budget(macs=SETTINGS["table_macs"]), tolerance=1.0,
            evaluate=self.validate, retrain=self.training("retrain", seed), batches=SETTINGS["score_batches"],
            equalization=equalization, folder=self.work / f"{equalization}-{seed}", seed=seed,
            on_round=lambda row: print(f"  {row}", flush=True), **{name: SETTINGS[name] for name in named},
        )  # fmt: skip
        assert result.plan is not None
        whole, left = sec.count(self.model, IMAGE), sec.count(result.model, IMAGE)
        models = {"original": self.model, "penalised": penalised, "pruned": result.model}
        return {
            "rounds": [asdict(row) for row in result.rounds],
            "widths": {group.name: len(group.kept) for group in result.plan.groups if not group.frozen},
            "validation": {"penalised": result.baseline, "finished": result.rounds[-1].metric},
            "params_left": round(left.params / whole.params, 4),
            "macs_left": round(left.macs / whole.macs, 4),
            "test": {name: round(self.test(network), 4) for name, network in models.items()},
        }

    def training(self, phase: str, seed: int) -> sec.FineTune:
        """What the settings say of one phase."""
        wanted = dict(SETTINGS[phase])
        penalty = {name: wanted.pop(name) for name in ("kind", "strength") if name in wanted}
        return sec.FineTune(
            seed=seed, distil=sec.Distill(**SETTINGS["distil"]), checkpoint_steps=50, progress=False,
            penalty=sec.Penalty(**penalty) if penalty else None, **wanted,
        )  # fmt: skip

    def train(self, phase: str, seed: int, folder: Path) -> nn.Module:
        return sec.finetune(self.model, self.crops, self.training(phase, seed), teacher=self.model, folder=folder).model
