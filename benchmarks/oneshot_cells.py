"""The cells of the one-shot comparison: its settings, networks with their images, and which cell comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateurs as sec
from benchmarks import cifar, imagenet
from benchmarks.oneshot_tables import Key

SHARES = (0.8, 0.7, 0.6, 0.5)
PHOTO_NETWORKS = ("mobilenet", "squeezenet")
NETWORKS = ("resnet56", *PHOTO_NETWORKS)
ORDERS = frozenset({"thinet", "lasso"})
"""Criteria that put the units of a layer in order and say nothing about how layers compare."""

SLOW = frozenset({"oracle"})
"""They see a quarter of the images, and their cells come after the others'."""

SETTINGS: dict[str, Any] = {
    "seed": 0, "equalization": "arithmetic_mean", "normalizer": "each criterion's own", "slow_share": 0.25,
    "resnet56": {
        "calibration": 512, "batch": 64, "images": "first of data_batch_1", "judged_on": 1000,
        "reconstruct": {"batches": 4, "samples_per_image": 32},
    },
    "photos": {
        "calibration": 250, "batch": 25, "images": "of classes 0, 4, 8, ...", "judged_on": 500,
        "reconstruct": {"batches": 6, "samples_per_image": 64},
    },
    "reconstruct": {"ridge": 1e-3, "target": "output", "layers": "reading"},
}  # fmt: skip

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Bench:
    """A network with the images that it is calibrated on, and how to judge it."""

    model: nn.Module
    calibration: Batches
    judge: Callable[[nn.Module], float]


def wanted_of(network: str) -> dict[str, Any]:
    """What the settings say of a network's images."""
    found: dict[str, Any] = SETTINGS["photos" if network in PHOTO_NETWORKS else network]
    return found


def build(network: str, data: Path) -> Bench:
    wanted = wanted_of(network)
    if network not in PHOTO_NETWORKS:
        calibration = cifar.train_set(data, wanted["calibration"], wanted["batch"])
        return Bench(cifar.pretrained(data, 56), calibration, sec.accuracy(cifar.held_out(data)))
    make, prepare = {
        "mobilenet": (imagenet.mobilenet, imagenet.centred), "squeezenet": (imagenet.squeezenet, imagenet.standardised)
    }[network]  # fmt: skip
    calibration = list(imagenet.Photos(data, prepare, range(0, 1000, 4), wanted["batch"]))
    judge = sec.accuracy(imagenet.Photos(data, prepare, range(1, 1000, 2), wanted["batch"]))
    layout = torch.channels_last  # halves the time of SqueezeNet; the numbers are the same
    return Bench(make(data).to(memory_format=layout), calibration, lambda net: judge(net.to(memory_format=layout)))


def cells(criteria: Iterable[str]) -> list[Key]:
    """Every cell, the most telling first: ResNet-56 at 30 % and 50 %, photos at 30 %, the rest; slow ones behind."""
    fast = [name for name in criteria if name not in SLOW]
    slow = [name for name in criteria if name in SLOW]
    stages = [
        (("resnet56",), (0.7,), fast), (("resnet56",), (0.5,), fast), (("resnet56",), (0.7, 0.5), slow),
        (PHOTO_NETWORKS, (0.7,), fast), (("resnet56",), SHARES, [*fast, *slow]),
        (PHOTO_NETWORKS, SHARES, fast), (PHOTO_NETWORKS, SHARES, slow),
    ]  # fmt: skip
    found = [
        (network, name, share, "uniform" if name in ORDERS else "global")
        for networks, shares, names in stages
        for network in networks
        for share in shares
        for name in names
    ]
    return list(dict.fromkeys(found))
