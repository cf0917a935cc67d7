"""What the frozen front of a network says about moved and mirrored training images, computed once for all trainings.

The published network answers every image of the pool once. What its first stages put out and what it answers at its
end are kept in two NumPy files, in half and single precision; trainings of its last stage, whatever their seed, read
the one as their input and learn from the other. The computation is resumed after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import cifar
from secateurs.base.files import write_text

CHUNK = 500


class Front(nn.Module):
    """Images [N, 3, 32, 32] -> what the last stage reads, [N, 32, 16, 16]."""

    def __init__(self, model: cifar.ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.layer1, self.layer2 = model.conv1, model.bn1, model.layer1, model.layer2

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))  # type: ignore[no-any-return]


class Back(nn.Module):
    """What the last stage reads -> logits [N, 10]."""

    def __init__(self, model: cifar.ResNet) -> None:
        super().__init__()
        self.layer3, self.linear = model.layer3, model.linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer3(x).mean((2, 3)))  # type: ignore[no-any-return]


class Pool:
    """Random batches of `(features, (labels, logits))`: an image a pass, each time in one of its variants.

    Order and variants follow from torch's random state, which the trainer sets. `labels` [N], `logits` [N, 10] of the
    original.
    """

    def __init__(self, features: NDArray[np.float16], logits: NDArray[np.float32], labels: Tensor, size: int) -> None:
        self.features, self.logits, self.labels, self.size = features, logits, labels, size

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        order = torch.randperm(len(self.labels))[: len(self) * self.size]
        variants = torch.randint(0, len(self.features), (len(order),))
        for rows, which in zip(order.split(self.size), variants.split(self.size), strict=True):
            place = which.numpy(), rows.numpy()
            features = torch.from_numpy(self.features[place]).float().permute(0, 3, 1, 2)
            yield features, (self.labels[rows], torch.from_numpy(self.logits[place]))


def pool(model: cifar.ResNet, images: Tensor, labels: Tensor, variants: int, size: int, folder: Path) -> Pool:
    """The pool of `images` (bytes [N, 3, 32, 32]) in `folder`, computed as far as it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    features = _file(folder / "features.npy", np.float16, (variants, len(images), 16, 16, 32))
    logits = _file(folder / "logits.npy", np.float32, (variants, len(images), 10))
    note = folder / "done.json"
    done = json.loads(note.read_text()) if note.exists() else 0
    front, back = Front(model), Back(model)
    padded = F.pad(images, (4, 4, 4, 4))
    places = [(variant, start) for variant in range(variants) for start in range(0, len(images), CHUNK)]
    for number in range(done, len(places)):
        variant, start = places[number]
        rows = torch.arange(start, min(start + CHUNK, len(images)))
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for part in rows.split(100):
                seen = front(cifar.normalised(moved(padded, part, generator)))
                features[variant, part.numpy()] = seen.permute(0, 2, 3, 1).half().numpy()
                logits[variant, part.numpy()] = back(seen).numpy()
        if number % 8 == 7 or number == len(places) - 1:
            features.flush()
            logits.flush()
            write_text(note, json.dumps(number + 1))
            print(f"  pool: {number + 1} of {len(places)}", flush=True)
    return Pool(features, logits, labels, size)


def moved(padded: Tensor, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The images of these rows, each moved by up to four pixels and mirrored half the time (He et al. 2015).

    `padded` are bytes [N, 3, 40, 40] with four pixels of black around; channels are last in the result's memory, which
    is faster.
    """
    shifts = torch.randint(0, 9, (2, len(rows), 1), generator=generator)
    down, right = shifts + torch.arange(32)
    right = torch.where(torch.rand(len(rows), 1, generator=generator) < 0.5, right, right.flip(1))
    return padded[rows.view(-1, 1, 1), :, down.unsqueeze(2), right.unsqueeze(1)].permute(0, 3, 1, 2)


def _file(path: Path, kind: type, shape: tuple[int, ...]) -> np.memmap:  # type: ignore[type-arg]
    mode = "r+" if path.exists() else "w+"
    return np.lib.format.open_memmap(path, mode=mode, dtype=kind, shape=shape)
