"""MNIST in memory: the original files, and a pool of distorted copies of every training image.

Copy 0 of the pool is the images as they are. The others are turned, scaled, sheared and moved a little, and bent by a
smooth random field, as in Simard, Steinkraus, Platt: Best practices for convolutional neural networks applied to
visual document analysis, 2003. Made once, they cost nothing while networks are trained, and what a teacher says of each
can be kept too.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs.base.seeds import seeded

FILES = {"train": "train", "test": "t10k"}
TURN, SCALE, SHEAR, MOVE, BEND = 7.0, 0.07, 0.08, 1.2, 0.45
"""Largest turn (degrees), change of size, shear, and shift (pixels); standard deviation of the bending (pixels)."""


def read(data: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 28, 28] and labels int64 [N] of `"train"` (60,000) or `"test"` (10,000)."""
    images = _idx(data / "mnist" / f"{FILES[part]}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return torch.from_numpy(images), torch.from_numpy(
        _idx(data / "mnist" / f"{FILES[part]}-labels-idx1-ubyte.gz", 8)
    ).long()


def pixels(data: Path, part: str) -> tuple[Tensor, Tensor]:
    """The same as the networks see them: [N, 1, 28, 28] in 0..1, and labels."""
    images, labels = read(data, part)
    return scaled(images).unsqueeze(1), labels


def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header).copy()


def pool(images: Tensor, copies: int, seed: int) -> Tensor:
    """uint8 [copies, N, 28, 28]; copy 0 is `images`, each other one distorts every image in a way of its own."""
    found = torch.empty((copies, *images.shape), dtype=torch.uint8)
    found[0] = images
    with seeded(seed):
        for copy in range(1, copies):
            for start in range(0, len(images), 2000):
                part = images[start : start + 2000]
                found[copy, start : start + len(part)] = distorted(part)
    return found


def distorted(images: Tensor) -> Tensor:
    """Each image [28, 28] of uint8 [N, 28, 28] distorted at random, by torch's random state."""
    n = len(images)
    angle, larger, shear, right, down = (2 * torch.rand(5, n) - 1) * torch.tensor(
        [[math.radians(TURN)], [SCALE], [SHEAR], [MOVE / 14], [MOVE / 14]]
    )
    cos, sin, scale = angle.cos(), angle.sin(), 1 + larger
    rows = [torch.stack([scale * cos, scale * (shear * cos - sin), right], 1)]
    rows.append(torch.stack([scale * sin, scale * (shear * sin + cos), down], 1))
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, 28, 28], align_corners=False)
    field = F.interpolate(torch.randn(n, 2, 6, 6) * (BEND / 14), (28, 28), mode="bicubic", align_corners=True)
    pixels = F.grid_sample(images.unsqueeze(1).float(), grid + field.permute(0, 2, 3, 1), align_corners=False)
    return pixels.squeeze(1).round().clamp(0, 255).to(torch.uint8)


def scaled(images: Tensor) -> Tensor:
    """Pixels as the networks see them: float32 in 0..1."""
    return images.float() / 255
