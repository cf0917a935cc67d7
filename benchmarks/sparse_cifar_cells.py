"""What the cells of `benchmarks.sparse_cifar` do with ResNet-56: a pool of images, the surgeon, training, the file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from benchmarks import cifar, lenet
from secateurs.base.files import write_bytes, write_text
from secateurs.pack.allocate import Candidate, allocate
from secateurs.pack.chosen import with_coded
from secateurs.pack.moments import input_moments
from secateurs.pack.shared_model import share_weights
from secateurs.sparsity import density

CONVOLUTIONS = ["*conv*"]
STAGES = {"layer1": 16, "layer2": 32, "layer3": 64}
"""Whose outputs the sparse network learns from the original, too, and their channels."""

SETTINGS: dict[str, Any] = {
    "network": "resnet56_cifar10, published weights",
    "fit": {"images": 256, "rounds": 4, "samples_per_image": 32, "ridge": 1e-3},
    "curve": {"images": 64, "rounds": 4, "samples_per_image": 64, "ridge": 1e-3, "percents": [50, 70, 85, 94]},
    "effect": {"images": 250, "pattern": "rows(4)", "percent": 85},
    "once": {"weight": [60, 80], "rows(4)": [50, 70]},
    "target": {"weight": 90, "rows(4)": 80},
    "train": {
        "images": 40_000, "batch": 100, "epochs": 10, "optimizer": "adam", "lr": 5e-3, "warmup": 0.2,
        "distil": {"temperature": 4.0, "alpha": 0.9, "feature_weight": 1.0},
    },
    "pack": {"bits": 5, "images": 256},
    "validation_images": 2000,
}  # fmt: skip
EVERY = 100
"""Steps from checkpoint to checkpoint."""


class Late(Exception):
    """The time that was given is over; everything so far is on disk."""


class Images(lenet.Batches):
    """Training images: in batches, moved by up to four pixels on black and mirrored at random, or as they are."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in super().__iter__():
            yield _laid_out(moved(images)), labels

    def calibration(self, images: int, seed: int, size: int = 128) -> list[Tensor]:
        """Batches of images as they are, drawn by the seed."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        return [_laid_out(self.images[rows]) for rows in order[:images].split(size)]


def moved(images: Tensor) -> Tensor:
    """Every image `[N, 3, 32, 32]` moved by -4 to 4 rows and columns, black coming in, and mirrored or not."""
    count = len(images)
    down, right, mirrored = torch.randint(9, (count,)), torch.randint(9, (count,)), torch.rand(count) < 0.5
    padded = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = F.pad(padded, (4, 4, 4, 4))
    rows, columns = down[:, None] + torch.arange(32), right[:, None] + torch.arange(32)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _laid_out(images: Tensor) -> Tensor:
    return cifar.normalised(images).contiguous(memory_format=torch.channels_last)


class Bench:
    """The data, the network, and what the cells do with them."""

    def __init__(self, data: Path, work: Path, settings: dict[str, Any], until: float) -> None:
        self.work, self.settings, self.until = work, settings, until
        self.model = cifar.pretrained(data, 56).to(memory_format=torch.channels_last)
        parts = [cifar.read(data / "cifar10" / f"data_batch_{number}.bin.xz") for number in (1, 2, 3, 4)]
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.pool = Images(images, labels, settings["train"]["batch"])
        images, labels = cifar.read(data / "cifar10" / "data_batch_5.bin.xz")
        self.validate = _accuracy(images[: settings["validation_images"]], labels[: settings["validation_images"]])
        self.test = _accuracy(*cifar.read(data / "cifar10" / cifar.TEST))

    def run(self, cell: str) -> dict[str, Any]:
        kind, pattern, last = cell.split("-")
        return self.once(pattern, int(last)) if kind == "once" else self.trained(pattern, int(last))

    def check(self) -> None:
        if time.monotonic() > self.until:
            raise Late

    def once(self, pattern: str, percent: int) -> dict[str, Any]:
        """Accuracy on test images of every way to that sparsity without training."""
        masks = sec.masks(self.model, percent / 100, pattern=pattern, only=CONVOLUTIONS)
        ways: dict[str, Callable[[], sec.SparsifiedOnce]] = {
            "refitted": lambda: self.fit(self.model, masks, pattern),
            "surgeon": lambda: self.fit(self.model, percent / 100, pattern),
            "allocated": lambda: self.fit(self.model, self.allocated(pattern, percent), pattern),
        }
        zeros = with_masks(self.model, masks)
        row: dict[str, Any] = {"original": self.test(self.model), "magnitude": self.test(zeros)}
        for name, make in ways.items():
            self.check()
            started = time.process_time()
            found = make()
            row[name] = self.test(found.model)
            row[f"{name}_sparsity"] = round(1 - density(found.masks), 4)
            row[f"{name}_cpu_seconds"] = round(time.process_time() - started, 1)
            print(f"  {name}: {row[name]:.1%}", flush=True)
        return row

    def fit(self, model: nn.Module, sparsity: Any, pattern: str, seed: int = 0, **others: Any) -> sec.SparsifiedOnce:
        """`sec.sparsify_once` as the settings have it."""
        wanted = dict(self.settings["fit"])
        data = self.pool.calibration(wanted.pop("images"), seed)
        return sec.sparsify_once(
            model,
            data,
            sparsity,
            pattern=pattern,
            only=CONVOLUTIONS,
            original=self.model,
            seed=seed,
            **wanted,
            **others,
        )

    def allocated(self, pattern: str, percent: int) -> dict[str, float]:
        """Sparsities by layer, of that many weights together, whose errors have the least sum of effects."""
        curves, effects = self.curves(pattern), self.effects()
        sizes = {name: self.model.get_parameter(name).numel() for name in curves}
        listed = {
            name: [
                Candidate(each, error * effects[name], math.ceil(sizes[name] * (1 - each / 100)))
                for each, error in _between(points)
            ]
            for name, points in curves.items()
        }
        found = allocate(listed, round(sum(sizes.values()) * (1 - percent / 100)))
        return {name: candidate.bits / 100 for name, candidate in found.choice.items()}

    def curves(self, pattern: str) -> dict[str, dict[int, float]]:
        """`{weight: {percent: share of the layer's output that is lost}}`, each layer alone; stored."""
        path = self.work / f"curves-{pattern}.json"
        known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
        wanted = dict(self.settings["curve"])
        data, percents = self.pool.calibration(wanted.pop("images"), 0, 64), wanted.pop("percents")
        for percent in percents:
            if str(percent) not in known:
                self.check()
                found = sec.sparsify_once(
                    self.model, data, percent / 100, pattern=pattern, only=CONVOLUTIONS, inputs="original", **wanted
                )
                known[str(percent)] = dict(found.errors)
                write_text(path, json.dumps(known))
        return {
            name: {0: 0.0, **{each: known[str(each)][name] for each in percents}} for name in known[str(percents[0])]
        }

    def effects(self) -> dict[str, float]:
        """By how much the answers change, as KL divergence, for each unit of a layer's error; one layer at a time."""
        path, wanted = self.work / "effects.json", dict(self.settings["effect"])
        if not path.exists():
            self.check()
            data = self.pool.calibration(wanted.pop("images"), 1, 250)
            fit = {name: item for name, item in self.settings["curve"].items() if name not in ("images", "percents")}
            found = sec.sparsify_once(
                self.model, self.pool.calibration(self.settings["curve"]["images"], 0, 64), wanted["percent"] / 100,
                pattern=wanted["pattern"], only=CONVOLUTIONS, inputs="original", **fit,
            )  # fmt: skip
            write_text(path, json.dumps(_effects(self.model, found, data)))
        known: dict[str, float] = json.loads(path.read_text())
        return known

    def trained(self, pattern: str, seed: int) -> dict[str, Any]:
        """The surgeon and training; what is left of the accuracy after each, and of the file."""
        folder = self.work / f"train-{pattern}-{seed}"
        percent = self.settings["target"][pattern]
        start = self._stored(
            folder / f"start-{percent}.safetensors",
            lambda: self.fit(self.model, self.allocated(pattern, percent), pattern, seed).model,
        )
        model = self.train(start, folder, seed)
        row: dict[str, Any] = {"sparsity": round(1 - density(zeros_of(model, self.curves(pattern))), 4)}
        row["validation"] = {"surgeon": self.validate(start), "trained": self.validate(model)}
        row["test"] = {"original": self.test(self.model), "surgeon": self.test(start), "sparse": self.test(model)}
        print(f"  {row}", flush=True)
        return {**row, "packed": self.packed(model, seed)}

    def _stored(self, path: Path, make: Callable[[], nn.Module]) -> nn.Module:
        """The network in that file, or made and written there."""
        if not path.exists():
            self.check()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, save({name: tensor.contiguous() for name, tensor in make().state_dict().items()}))
        model = cifar.ResNet(56).to(memory_format=torch.channels_last)
        model.load_state_dict(load_file(path))
        return model.eval()

    def train(self, start: nn.Module, folder: Path, seed: int) -> nn.Module:
        """Training towards the original, what is zero held. Goes on after a kill."""
        wanted = dict(self.settings["train"])
        images, distil = wanted.pop("images"), sec.Distill(features=_whole(STAGES), **wanted.pop("distil"))
        config = sec.FineTune(
            distil=distil, sparsity=sec.Sparsity(hold_zeros=True, only=CONVOLUTIONS), checkpoint_steps=EVERY, seed=seed,
            progress=False, **{name: item for name, item in wanted.items() if name != "batch"},
        )  # fmt: skip
        data = Images(self.pool.images[:images], self.pool.labels[:images], wanted["batch"])
        found = sec.finetune(start.train(), data, config, teacher=self.model, folder=folder)
        start.eval()
        return found.model.eval()

    def packed(self, model: nn.Module, seed: int) -> dict[str, Any]:
        """The file with its kept weights shared, and what the network in it is worth."""
        wanted = self.settings["pack"]
        moments = input_moments(model, self.pool.calibration(wanted["images"], seed))
        coded = share_weights(model, wanted["bits"], moments=moments).coded()
        path = self.work / "packed.sec"
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = sec.pack(model, path, coded=coded)
        again = sec.unpack(path, build=lambda: cifar.ResNet(56))
        floats = 4 * sum(item.numel() for item in self.model.state_dict().values() if item.is_floating_point())
        check = with_coded(model, coded).state_dict()
        assert all(torch.equal(tensor, check[name]) for name, tensor in again.state_dict().items())
        return {
            "bits": wanted["bits"], "bytes": ledger.bytes, "float_bytes": floats, "parts": ledger.parts,
            "times_smaller": round(floats / ledger.bytes, 2),
            "test": self.test(again), "validation": self.validate(again),
        }  # fmt: skip


def _whole(channels: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(range(count)) for name, count in channels.items()}


def zeros_of(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The masks of these weights: what is not zero."""
    return {name: model.get_parameter(name) != 0 for name in names}


def with_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy with zeros there and nothing else changed."""
    fresh = cifar.ResNet(56).to(memory_format=torch.channels_last)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, mask in masks.items():
            fresh.get_parameter(name).mul_(mask)
    return fresh.eval()


def _effects(model: nn.Module, found: sec.SparsifiedOnce, data: list[Tensor]) -> dict[str, float]:
    """KL divergence from the model's answers with one layer (and the mean behind it) as found, per unit of error."""
    own, new = dict(model.state_dict()), found.model.state_dict()
    with torch.no_grad():
        before = [F.log_softmax(model(images), 1) for images in data]
        effects = {}
        for name, error in found.errors.items():
            parts = (name, name.replace("conv", "bn").replace(".weight", ".running_mean"))
            saved = {part: own[part].clone() for part in parts}
            for part in parts:
                own[part].copy_(new[part])
            after = [F.log_softmax(model(images), 1) for images in data]
            for part in parts:
                own[part].copy_(saved[part])
            rows = zip(after, before, strict=True)
            effects[name] = mean(float(F.kl_div(a, b, reduction="batchmean", log_target=True)) for a, b in rows) / error
    return effects


def _between(points: Mapping[int, float]) -> Iterator[tuple[int, float]]:
    """Every percent up to the largest, errors in between by the logarithm (of one part in a million more)."""
    known = np.array(sorted(points))
    logs = np.log(np.array([points[percent] for percent in known]) + 1e-6)
    for percent in range(known[-1] + 1):
        yield percent, float(np.exp(np.interp(percent, known, logs)))


def _accuracy(images: Tensor, labels: Tensor) -> Callable[[nn.Module], float]:
    pixels = cifar.normalised(images).contiguous(memory_format=torch.channels_last)
    return sec.accuracy(list(zip(pixels.split(250), labels.split(250), strict=True)))


def used(cell: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that decide the result of a cell."""
    kind, pattern, _ = cell.split("-")
    found = {name: settings[name] for name in ("network", "fit", "curve", "effect")}
    if kind == "train":
        found |= {name: settings[name] for name in ("train", "pack", "validation_images")}
        found["target"] = settings["target"][pattern]
    return found
