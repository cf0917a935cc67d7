"""What the cells of `benchmarks.sparse_cifar` do with ResNet-56: a pool of images, the surgeon, training, the file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from benchmarks import cifar
from secateurs.base.files import write_bytes, write_text
from secateurs.pack.allocate import Candidate, allocate
from secateurs.pack.chosen import with_coded
from secateurs.pack.moments import input_moments
from secateurs.pack.shared_model import share_weights
from secateurs.sparsity import density
from secateurs.train import checkpoint
from secateurs.train.distill import soft_loss

CONVOLUTIONS = ["*conv*"]
SHIFTS = ((0, 0), (2, 1), (-1, 2), (1, -3))
"""Rows down and columns right; every variant of an image is one of these, mirrored or not."""

SETTINGS: dict[str, Any] = {
    "network": "resnet56_cifar10, published weights",
    "fit": {"images": 256, "rounds": 4, "samples_per_image": 32, "ridge": 1e-3},
    "curve": {"images": 64, "rounds": 4, "samples_per_image": 64, "ridge": 1e-3, "percents": [50, 70, 85, 94]},
    "effect": {"images": 250, "pattern": "rows(4)", "percent": 85},
    "once": {"weight": [60, 80], "rows(4)": [50, 70]},
    "steps": {"weight": [90], "rows(4)": [80]},
    "train": {
        "batch": 100, "images": [40_000], "epochs": [2], "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4,
        "temperature": 4.0, "soft": 0.9,
    },
    "pack": {"bits": 5, "images": 256},
    "validation_images": 2000,
}  # fmt: skip
PART = 2000
"""Images whose answers are in one file."""

EVERY = 50
"""Batches from checkpoint to checkpoint."""


class Late(Exception):
    """The time that was given is over; everything so far is on disk."""


class Pool:
    """Training images in a few variants each, and what the original answers to them; computed when first asked for."""

    def __init__(self, data: Path, work: Path, teacher: nn.Module) -> None:
        parts = [cifar.read(data / "cifar10" / f"data_batch_{number}.bin.xz") for number in (1, 2, 3, 4)]
        self.images, self.labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.work, self.teacher = work / "pool", teacher

    def images_of(self, rows: Tensor, variant: int) -> Tensor:
        """Normalised images in that variant of `2 * len(SHIFTS)`."""
        down, right = SHIFTS[variant // 2 % len(SHIFTS)]
        images = F.pad(self.images[rows], (4, 4, 4, 4))[..., 4 + down : 36 + down, 4 + right : 36 + right]
        return cifar.normalised(images.flip(3) if variant % 2 else images).contiguous(memory_format=torch.channels_last)

    def answers(self, variant: int, part: int, check: Callable[[], None]) -> Tensor:
        """The original's logits for images `part * PART` on, `[PART, 10]`."""
        path = self.work / f"variant-{variant % (2 * len(SHIFTS))}-part-{part}.safetensors"
        if not path.exists():
            rows = torch.arange(part * PART, (part + 1) * PART)
            with torch.no_grad():
                found = torch.cat([self.teacher(self.images_of(each, variant)) for each in rows.split(250)])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, save({"logits": found}))
            check()
        return load_file(path)["logits"]

    def calibration(self, images: int, seed: int, size: int = 128) -> list[Tensor]:
        """Batches of images as they are, drawn by the seed."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        return [self.images_of(rows, 0) for rows in order[:images].split(size)]


class Bench:
    """The data, the network, and what the cells do with them."""

    def __init__(self, data: Path, work: Path, settings: dict[str, Any], until: float) -> None:
        self.work, self.settings, self.until = work, settings, until
        self.model = cifar.pretrained(data, 56).to(memory_format=torch.channels_last)
        self.pool = Pool(data, work, self.model)
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
        """Steps of the surgeon and training; what is left of the accuracy after each, and of the file."""
        model, masks = self.model, None
        steps: list[dict[str, Any]] = []
        wanted = self.settings["train"]
        for number, percent in enumerate(self.settings["steps"][pattern]):
            folder = self.work / f"train-{pattern}-{seed}" / f"{percent}"
            start = self._stored(
                folder / "start.safetensors",
                lambda model=model, masks=masks, percent=percent: (
                    self.fit(model, self.allocated(pattern, percent), pattern, seed, within=masks).model
                ),
            )
            masks = {name: start.get_parameter(name) != 0 for name in self.curves(pattern)}
            before = self.validate(start)
            model = self.train(start, masks, folder, seed, wanted["images"][number], wanted["epochs"][number])
            steps.append({
                "sparsity": round(1 - density(masks), 4), "images": wanted["images"][number],
                "epochs": wanted["epochs"][number],
                "validation_before": round(before, 4), "validation": round(self.validate(model), 4),
            })  # fmt: skip
            print(f"  {steps[-1]}", flush=True)
        row = {"steps": steps, "sparsity": steps[-1]["sparsity"]}
        row["test"] = {"original": self.test(self.model), "sparse": self.test(model)}
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

    def train(
        self, start: nn.Module, masks: dict[str, Tensor], folder: Path, seed: int, images: int, epochs: int
    ) -> nn.Module:
        """Masked training towards the original's answers; goes on from the checkpoint in `folder`."""
        wanted, step = self.settings["train"], 0
        per_epoch = images // wanted["batch"]
        model = start
        holding = sec.sparsify(model, masks)
        optimizer = torch.optim.SGD(
            model.parameters(), wanted["lr"], wanted["momentum"], weight_decay=wanted["weight_decay"], nesterov=True
        )
        stored = checkpoint.read(folder / "checkpoint")
        if stored is not None:
            tensors, record = stored
            checkpoint.load_model(model, tensors, "model.")
            for number, parameter in enumerate(model.parameters()):
                optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{number}"].clone()
            step = int(record["step"])
        model.train()
        answers = torch.zeros(0)
        while step < epochs * per_epoch:
            epoch, batch = divmod(step, per_epoch)
            if step % EVERY == 0 and step:
                self._keep(folder, model, optimizer, step)
                self.check()
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * wanted["lr"] * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
            order = torch.randperm(images, generator=torch.Generator().manual_seed(1000 * seed + epoch))
            rows = order[batch * wanted["batch"] : (batch + 1) * wanted["batch"]]
            variant = (1 + 3 * epoch) % (2 * len(SHIFTS))
            if len(answers) == 0 or batch == 0:
                answers = torch.cat([self.pool.answers(variant, part, self.check) for part in range(images // PART)])
            found = model(self.pool.images_of(rows, variant))
            hard = F.cross_entropy(found, self.pool.labels[rows])
            soft = soft_loss(found, answers[rows], wanted["temperature"])
            optimizer.zero_grad()
            ((1 - wanted["soft"]) * hard + wanted["soft"] * soft).backward()
            optimizer.step()
            step += 1
        self._keep(folder, model, optimizer, step)
        holding.detach()
        return model.eval()

    def _keep(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        momentum = {
            f"momentum.{number}": optimizer.state[parameter]["momentum_buffer"]
            for number, parameter in enumerate(model.parameters())
        }
        own = {f"model.{name}": tensor for name, tensor in checkpoint.model_tensors(model).items()}
        checkpoint.write(folder / "checkpoint", {**own, **momentum}, {"step": step})

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
        found["steps"] = settings["steps"][pattern]
    return found
