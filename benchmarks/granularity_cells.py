"""The cells of the granularity study: networks, data, masks, and what is done after them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from benchmarks import cifar, mnist_data
from benchmarks.mnist_nets import LeNet5
from benchmarks.sparse_cifar_cells import Images
from secateurs.base.seeds import seeded
from secateurs.cost.references import References, memory_references
from secateurs.sparsity.storage import stored_ratio

PATTERNS = {
    "weight": "0-D", "vector": "1-D", "kernel": "2-D", "filter": "3-D",
    "rows(4)": "4 output channels", "simd(8)": "8 inputs", "block(4,4)": "4 x 4", "2:4": "2 of 4",
}  # fmt: skip
"""What the convolutions lose, and what that is in the words of the paper."""

SETTINGS: dict[str, Any] = {
    "lenet5": {
        "network": "20-50-500-10, trained here", "seeds": [0, 1, 2], "densities": [0.4, 0.2, 0.1],
        "dense": {"images": 20000, "epochs": 2, "lr": 2e-3, "batch": 64},
        "retrain": {"images": 5000, "epochs": 1, "lr": 1e-3, "batch": 64, "temperature": 4.0, "alpha": 0.7},
        "test_images": 10000,
    },
    "resnet20": {
        "network": "resnet20_cifar10, published weights", "seeds": [0], "densities": [0.7, 0.5, 0.4, 0.3, 0.2],
        "recalibrate": {"batches": 4, "images": 400}, "exclude": ["conv1", "linear"], "test_images": 1000,
        "reference_images": 8,
    },
    "resnet20_retrained": {
        "network": "resnet20_cifar10, published weights", "seeds": [0, 1, 2], "densities": [0.5, 0.3, 0.2],
        "retrain": {
            "images": 10000, "batch": 50, "epochs": 1, "optimizer": "adam", "lr": 5e-3, "warmup": 0.2,
            "distil": {"temperature": 4.0, "alpha": 0.9},
        },
        "exclude": ["conv1", "linear"], "test_images": 1000,
    },
}  # fmt: skip

Cell = tuple[str, str, float, int]
"""Network, pattern, density of the pruned layers, seed."""

FIXED = {"2:4": 0.5}
"""Patterns that fix the density; `weight` is judged there too, for comparison."""


WHOLE: tuple[Cell, ...] = (
    ("resnet20", "weight", 1.0, 0), *(("resnet20_retrained", "weight", 1.0, seed) for seed in (0, 1, 2))
)  # fmt: skip
"""Nothing is removed, but batch norms or weights see the data of every other cell: what those are compared with."""

FURTHER: tuple[Cell, ...] = tuple(
    ("resnet20_retrained", pattern, density, seed)
    for pattern, density in (("weight", 0.1), ("vector", 0.1), ("filter", 0.7))
    for seed in SETTINGS["resnet20_retrained"]["seeds"]
)
"""Where a pattern loses too little, or too much, at all other densities to be compared at equal accuracy."""


def cells() -> list[Cell]:
    """Every cell, the most telling first: the middle densities of both networks, then seeds, then what is around."""
    first = [*_row("lenet5", 0.2, 0), *_fixed("lenet5", 0)]
    first += [
        *WHOLE,
        *_fixed("resnet20", 0),
        *(cell for density in (0.5, 0.3, 0.7) for cell in _row("resnet20", density, 0)),
    ]
    found = list(first)
    for network, wanted in SETTINGS.items():
        for seed in wanted["seeds"]:
            found += [*_row(network, 0.2, seed), *_fixed(network, seed)]
    for network, wanted in reversed(SETTINGS.items()):
        found += [
            cell for seed in wanted["seeds"] for density in wanted["densities"] for cell in _row(network, density, seed)
        ]
    return list(dict.fromkeys([*found, *FURTHER]))


def _row(network: str, density: float, seed: int) -> list[Cell]:
    return [(network, pattern, density, seed) for pattern in PATTERNS if pattern not in FIXED]


def _fixed(network: str, seed: int) -> list[Cell]:
    return [(network, pattern, density, seed) for name, density in FIXED.items() for pattern in (name, "weight")]


def recipe(network: str) -> dict[str, Any]:
    """What decides a cell, as data: all settings but the lists that say which cells there are."""
    return {name: value for name, value in SETTINGS[network].items() if name not in ("densities", "seeds")}


class LeNetStudy:
    """LeNet-5: convolutions lose by the pattern, linear layers single weights at the same density; then retrained."""

    def __init__(self, data: Path, work: Path) -> None:
        self.work, self.wanted = work, SETTINGS["lenet5"]
        self.train, self.test = mnist_data.pixels(data, "train"), mnist_data.pixels(data, "test")
        held = (part[: self.wanted["test_images"]].split(500) for part in self.test)
        self.judge = sec.accuracy(list(zip(*held, strict=True)))
        self._dense: dict[int, float] = {}

    def dense(self, seed: int) -> LeNet5:
        path = self.work / f"lenet5-{seed}.safetensors"
        with seeded(seed):
            model = LeNet5()
            if path.exists():
                model.load_state_dict(load_file(path))
                return model.eval()
            self._train(model, self.wanted["dense"], None)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
        return model.eval()

    def run(self, pattern: str, density: float, seed: int) -> dict[str, Any]:
        dense = self.dense(seed)
        model = LeNet5()
        model.load_state_dict(dense.state_dict())
        convolutions, linear = ["conv*"], ["fc*"]
        share = None if pattern in FIXED else 1 - density
        masks = sec.masks(model, share, pattern=pattern, only=convolutions)
        found = facts(model, masks, pattern)
        rest = sec.masks(model, 1 - density, only=linear)
        with sec.sparsify(model, {**masks, **rest}), seeded(seed):
            self._train(model, self.wanted["retrain"], dense)
        if seed not in self._dense:
            self._dense[seed] = self.judge(dense)
        return {**found, "accuracy": self.judge(model.eval()), "accuracy_dense": self._dense[seed]}

    def _train(self, model: nn.Module, wanted: dict[str, Any], teacher: nn.Module | None) -> None:
        """Adam with cosine decay, on the first images; with a teacher, its softened answers count too."""
        images, labels = (part[: wanted["images"]] for part in self.train)
        steps = wanted["epochs"] * -(-len(labels) // wanted["batch"])
        optimizer = torch.optim.Adam(model.parameters(), lr=wanted["lr"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        model.train()
        orders = (torch.randperm(len(labels)).split(wanted["batch"]) for _ in range(wanted["epochs"]))
        for rows in (rows for order in orders for rows in order):
            logits = model(images[rows])
            loss = F.cross_entropy(logits, labels[rows])
            if teacher is not None:
                loss = _distilled(loss, logits, teacher, images[rows], wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _distilled(loss: Tensor, logits: Tensor, teacher: nn.Module, images: Tensor, wanted: dict[str, Any]) -> Tensor:
    temperature, alpha = wanted["temperature"], wanted["alpha"]
    with torch.no_grad():
        soft = (teacher(images) / temperature).log_softmax(1)
    mine = (logits / temperature).log_softmax(1)
    divergence = F.kl_div(mine, soft, log_target=True, reduction="batchmean")
    return (1 - alpha) * loss + alpha * temperature**2 * divergence


class ResNetStudy:
    """ResNet-20: all convolutions but the first lose by the pattern; then it is recalibrated, or retrained."""

    def __init__(self, data: Path, network: str = "resnet20") -> None:
        self.wanted = SETTINGS[network]
        self.model = cifar.pretrained(data)
        if "retrain" in self.wanted:
            images, labels = cifar.read(data / "cifar10" / "data_batch_1.bin.xz")
            count = self.wanted["retrain"]["images"]
            self.pool = Images(images[:count], labels[:count], self.wanted["retrain"]["batch"])
        else:
            self.calibration = cifar.train_set(data, self.wanted["recalibrate"]["images"])
        held = cifar.held_out(data)[: self.wanted["test_images"] // 100]
        self.judge = sec.accuracy(held)
        self.images = held[0][0][: self.wanted.get("reference_images", 0)]
        self._dense: float | None = None

    def run(self, pattern: str, density: float, seed: int) -> dict[str, Any]:
        share = None if pattern in FIXED else 1 - density
        masks = sec.masks(self.model, share, pattern=pattern, exclude=self.wanted["exclude"])
        pruned = copy.deepcopy(self.model)
        sec.sparsify(pruned, masks).detach()
        found = facts(self.model, masks, pattern)
        fresh = self._mended(pruned, seed)
        if self._dense is None:
            self._dense = self.judge(self.model)
        if len(self.images):
            counted = references(fresh, masks, self.images)
            found["references"] = {"fine": counted.fine, "merged": counted.merged}
        return {**found, "accuracy": self.judge(fresh), "accuracy_dense": self._dense}

    def _mended(self, pruned: nn.Module, seed: int) -> nn.Module:
        if "retrain" not in self.wanted:
            batches = self.wanted["recalibrate"]["batches"]
            return sec.recalibrate(pruned, self.calibration, batches=batches, seed=seed)
        wanted = {name: item for name, item in self.wanted["retrain"].items() if name not in ("images", "batch")}
        config = sec.FineTune(
            distil=sec.Distill(**wanted.pop("distil")), sparsity=sec.Sparsity(hold_zeros=True), progress=False,
            seed=seed, **wanted,
        )  # fmt: skip
        found = sec.finetune(pruned.train(), self.pool, config, teacher=self.model)
        return found.model.eval()


def facts(model: nn.Module, masks: dict[str, Tensor], pattern: str) -> dict[str, Any]:
    """What the masks of the convolutions keep, take to store, and have taken away of `sum |w|`."""
    parameters = dict(model.named_parameters())
    total = sum(float(parameters[name].detach().abs().sum()) for name in masks)
    gone = sum(float(parameters[name].detach().abs()[~mask].sum()) for name, mask in masks.items())
    bits = {"index_bits": 2} if pattern in FIXED else {}
    kept = sum(int(mask.sum()) for mask in masks.values())
    return {
        "density": kept / sum(mask.numel() for mask in masks.values()),
        "storage": stored_ratio(model, masks, pattern, **bits),
        "magnitude_removed": gone / total,
    }


def references(model: nn.Module, masks: dict[str, Tensor], images: Tensor) -> References:
    """References to partial sums in the pruned convolutions on these images, rows of kernels merged."""
    found = References(0, 0)
    for name, seen in inputs_of(model, [name.removesuffix(".weight") for name in masks], images):
        found = found + memory_references(masks[f"{name}.weight"], seen)
    return found


def inputs_of(model: nn.Module, names: list[str], images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What each of these modules reads."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0].detach())
        )
        for name in names
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    yield from seen.items()
