"""One run of the loop: penalty, thresholds that rise as long as validation allows, and a longer last retraining.

The last stage of ResNet-20 has three quarters of its parameters and a third of its MACs, so it alone is cut and
trained; the stem and the stages before stay as published, and what they put out is computed once (`tlt_pool`). An epoch
then costs an eighth of one of the whole network.

A round: channels whose norm, relative to the largest in the layer, is below the threshold go, in the toolkit's own
settings; the layers that lost inputs are refitted by least squares; then the stage learns the original's answers on
moved and mirrored images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from benchmarks import cifar
from benchmarks.tlt_pool import Back, Front, Pool, pool
from secateurs.train.distill import soft_loss

IMAGE, FEATURES = torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 16, 16)

SETTINGS: dict[str, Any] = {
    "network": "resnet20_cifar10, published weights; stem, stage 1 and stage 2 frozen",
    "variants": 2, "batch": 128, "distil": {"temperature": 4.0, "alpha": 0.9},
    "penalise": {"epochs": 1, "batches": 60, "lr": 0.02, "kind": "filter_norm", "strength": 1e-3},
    "criterion": "l2", "normalizer": "max", "equalization": "keep_any", "granularity": 8, "min_channels": 16,
    "thresholds": [0.80, 0.86, 0.90, 0.92], "reconstruct": 16,
    "tolerance": 0.11, "reference": "penalised", "validation_images": 1000,
    "retrain": {"epochs": 1, "batches": 60, "lr": 0.02, "weight_decay": 5e-4},
    "finish": {"epochs": 24, "lr": 0.03, "weight_decay": 5e-4},
}  # fmt: skip


@dataclass(frozen=True)
class Taught:
    """The loss of `sec.Distill`, of a target `(labels, logits)` that brings the teacher's answers along."""

    temperature: float
    alpha: float

    def __call__(self, outputs: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        labels, answers = target
        own = F.cross_entropy(outputs, labels)
        return (1 - self.alpha) * own + self.alpha * soft_loss(outputs, answers, self.temperature)


class Whole(nn.Module):
    """Front and back as one network again."""

    def __init__(self, front: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.front, self.back = front, back

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.front(x))  # type: ignore[no-any-return]


class Loop:
    """The data, the network and how to train and judge it, for every seed."""

    def __init__(self, data: Path, work: Path, settings: dict[str, Any] = SETTINGS) -> None:
        self.work, self.settings = work, settings
        model = cifar.pretrained(data)
        self.front, self.back = Front(model).eval(), Back(model).eval()
        self.pool = pool_of(data, work, settings)
        images, labels = cifar.read_batches(data, (5,))
        count = settings["validation_images"]
        with torch.no_grad():
            seen = [self.front(part) for part in cifar.normalised(images[:count]).split(250)]
        self.validate = sec.accuracy(list(zip(seen, labels[:count].split(250), strict=True)))
        self.test = sec.accuracy(cifar.held_out(data))

    def run(self, seed: int) -> dict[str, Any]:
        wanted, folder = self.settings, self.work / f"seed-{seed}"
        named = ("criterion", "normalizer", "equalization", "granularity", "min_channels", "reconstruct")
        result = sec.train_prune_loop(
            self.back, FEATURES, self.pool,
            steps=[sec.Budget(threshold=threshold) for threshold in wanted["thresholds"]],
            evaluate=self.validate, penalise=self.training("penalise", seed), retrain=self.training("retrain", seed),
            tolerance=wanted["tolerance"], reference=wanted["reference"], folder=folder, seed=seed,
            on_round=lambda row: print(f"  {row}", flush=True), **{name: wanted[name] for name in named},
        )  # fmt: skip
        print(result, flush=True)
        penalised = self.train(self.back, "penalise", seed, folder / "penalise")
        finished = self.train(result.model, "finish", seed, folder / f"finish-{wanted['finish']['epochs']}")
        widths = {} if result.plan is None else {g.name: len(g.kept) for g in result.plan.groups if not g.frozen}
        return {
            "rounds": [asdict(row) for row in result.rounds],
            "widths": widths,
            "validation": {
                "original": result.baseline,
                "penalised": result.penalised,
                "finished": self.validate(finished),
            },
            **self.figures({"original": self.back, "penalised": penalised, "pruned": finished}),
        }

    def training(self, phase: str, seed: int) -> sec.FineTune:
        """What the settings say of one phase."""
        wanted = dict(self.settings[phase])
        penalty = {name: wanted.pop(name) for name in ("kind", "strength") if name in wanted}
        return sec.FineTune(
            seed=seed, loss=Taught(**self.settings["distil"]), checkpoint_steps=100, progress=False,
            penalty=sec.Penalty(**penalty) if penalty else None, **wanted,
        )  # fmt: skip

    def train(self, back: nn.Module, phase: str, seed: int, folder: Path) -> nn.Module:
        return sec.finetune(back, self.pool, self.training(phase, seed), folder=folder).model

    def figures(self, backs: dict[str, nn.Module]) -> dict[str, Any]:
        """Shares of the whole original that remain, and accuracies of whole networks on the test images."""
        networks = {name: Whole(self.front, back) for name, back in backs.items()}
        whole, left = sec.count(networks["original"], IMAGE), sec.count(networks["pruned"], IMAGE)
        return {
            "params_left": round(left.params / whole.params, 4),
            "macs_left": round(left.macs / whole.macs, 4),
            "test": {name: round(self.test(network), 4) for name, network in networks.items()},
        }


def pool_of(data: Path, work: Path, settings: dict[str, Any]) -> Pool:
    """Four of the five training batches in their variants, made in `work` if they are not there."""
    images, labels = cifar.read_batches(data, (1, 2, 3, 4))
    folder = work / f"pool-{settings['variants']}"
    return pool(cifar.pretrained(data), images, labels, settings["variants"], settings["batch"], folder)
