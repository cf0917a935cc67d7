"""CamVid's street scenes in memory, small: which pixels are road, which are not, and which nobody labelled.

The folder given by `--data` holds `camvid/camvid_224x168.zip`: images and label images of three splits.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ARCHIVE = Path("camvid", "camvid_224x168.zip")
SIZE = (96, 128)
"""Rows and columns to which images (box filter) and labels (nearest neighbour) are reduced."""
ROAD, UNLABELLED = 3, 11
IGNORED = -1
"""In a target: the pixel counts for nothing."""


def read(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images as bytes [N, 3, H, W] and classes as bytes [N, H, W] of `"train"`, `"val"` or `"test"`, by file name."""
    from PIL import Image  # only reading needs it

    down = Image.Resampling
    with zipfile.ZipFile(data / ARCHIVE) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(f"{split}/") and name.endswith(".jpg"))
        images = [_pixels(Image, archive.read(name), down.BOX) for name in names]
        labels = [_pixels(Image, archive.read(f"{split}annot/{Path(name).stem}.png"), down.NEAREST) for name in names]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack(labels))


def _pixels(pillow: Any, file: bytes, how: Any) -> Any:
    with pillow.open(io.BytesIO(file)) as image:
        return np.asarray(image.resize(SIZE[::-1], how)).copy()


def target_of(classes: Tensor) -> Tensor:
    """1 where the road is, 0 where it is not, `IGNORED` where nothing is labelled: float [N, 1, H, W]."""
    wanted = (classes == ROAD).float()
    return wanted.masked_fill_(classes == UNLABELLED, IGNORED).unsqueeze(1)


def scaled(images: Tensor) -> Tensor:
    """Bytes as floats from -1 to 1, in the layout that convolutions like best."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class Scenes:
    """Batches of training images in an order drawn anew, mirrored and brightened at random, by torch's random state."""

    def __init__(self, images: Tensor, classes: Tensor, size: int) -> None:
        self.images, self.targets, self.size = images, target_of(classes), size

    def __len__(self) -> int:
        return len(self.images) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.images))[: len(self) * self.size].split(self.size):
            images, targets = self.images[rows], self.targets[rows]
            mirrored = torch.rand(len(rows)) < 0.5
            images[mirrored], targets[mirrored] = images[mirrored].flip(3), targets[mirrored].flip(3)
            light = 1 + 0.4 * (torch.rand(len(rows), 1, 1, 1) - 0.5)
            yield scaled((images * light).clamp_(max=255)), targets


__all__ = ["ARCHIVE", "IGNORED", "ROAD", "SIZE", "UNLABELLED", "Scenes", "read", "scaled", "target_of"]
