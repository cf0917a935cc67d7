"""Pretrained ImageNet networks and a thousand real photos, for benchmarks and pictures.

    python -m benchmarks.imagenet --data ../shared/data    # top-1 and top-5 of both networks on the photos

The folder holds `imagenet_models/NAME.safetensors`, `imagenet_samples/images_256.zip` (one photo of each class,
256 x 256, JPEG) and `imagenet_samples/labels.csv`. The photos are training images: they compare a network with its
original and are no validation score.

MobileNet: Howard et al., MobileNets, 2017 (arXiv 1704.04861). SqueezeNet: Iandola et al., 2016 (arXiv 1602.07360), in
its version 1.1.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

CROP = 224
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
WIDTHS = (48, 96, 96, 192, 192, 384, 384, 384, 384, 384, 384, 768, 768)
FIRES = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)} | {
    9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)
}  # fmt: skip
"""Place of each Fire block among `features`: its inputs, its squeezed channels, the channels of each of its halves."""


class Same(nn.Conv2d):
    """A 3x3 convolution with TensorFlow's SAME padding: the odd row and column of zeros go to the bottom and right."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride[0]
        spare = [max(0, (-(-size // stride) - 1) * stride + 3 - size) for size in (x.shape[3], x.shape[2])]
        return super().forward(F.pad(x, [part for total in spare for part in (total // 2, total - total // 2)]))


class MobileNet(nn.Module):
    """MobileNet v1 of width 0.75, images [N, 3, 224, 224] -> logits [N, 1000]; names as in Keras."""

    def __init__(self) -> None:
        super().__init__()
        self._add("conv1", Same(3, 24, 2))
        for block, (inputs, outputs, stride) in enumerate(zip((24, *WIDTHS), WIDTHS, STRIDES, strict=False), 1):
            self._add(f"conv_dw_{block}", Same(inputs, inputs, stride, groups=inputs))
            self._add(f"conv_pw_{block}", nn.Conv2d(inputs, outputs, 1, bias=False))
        self.conv_preds = nn.Conv2d(768, 1000, 1)

    def _add(self, name: str, conv: nn.Conv2d) -> None:
        self.add_module(name, conv)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(conv.out_channels, eps=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        layers = dict(self.named_children())
        names = ["conv1", *(f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw"))]
        for name in names:
            x = F.relu6(layers[f"{name}_bn"](layers[name](x)))
        return self.conv_preds(x.mean((2, 3), keepdim=True)).flatten(1)  # type: ignore[no-any-return]


class Fire(nn.Module):
    """A 1x1 convolution that narrows, then a 1x1 and a 3x3 one side by side, concatenated."""

    def __init__(self, inputs: int, squeezed: int, half: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, half, 1)
        self.expand3x3 = nn.Conv2d(squeezed, half, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1, images [N, 3, 224, 224] -> logits [N, 1000]; names as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        layers: dict[int, nn.Module] = {0: nn.Conv2d(3, 64, 3, 2), 1: nn.ReLU()}
        layers |= {place: nn.MaxPool2d(3, 2, ceil_mode=True) for place in (2, 5, 8)}
        layers |= {place: Fire(*widths) for place, widths in FIRES.items()}
        self.features = nn.Sequential(*(layers[place] for place in range(13)))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mean((2, 3))  # type: ignore[no-any-return]


def mobilenet(data: Path) -> MobileNet:
    """MobileNet v1 0.75 with its published weights, in eval mode. It takes `centred` photos."""
    model = MobileNet()
    state = load_file(data / "imagenet_models" / "mobilenet_v1_075_imagenet.safetensors")
    _load(model, state)
    return model.eval()


def squeezenet(data: Path) -> SqueezeNet:
    """SqueezeNet 1.1 with its published weights, in eval mode. It takes `standardised` photos."""
    model = SqueezeNet()
    _load(model, load_file(data / "imagenet_models" / "squeezenet1_1_imagenet.safetensors"))
    return model.eval()


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Every tensor of the file has its place; of the model's, only the counters of batch norms are in no file."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lacking or unexpected:
        raise ValueError(f"the weights do not fit: missing {lacking}, unexpected {list(unexpected)}")


def centred(photos: Tensor) -> Tensor:
    """Bytes as floats from -1 to 1."""
    return photos.float() / 127.5 - 1


def standardised(photos: Tensor) -> Tensor:
    """Bytes as floats with the mean and standard deviation of ImageNet's channels taken out."""
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (photos.float() / 255 - mean) / std


def photos(data: Path, classes: Sequence[int] = range(1000)) -> Tensor:
    """The central 224 x 224 pixels of one photo of each of the `classes`, as bytes [N, 3, 224, 224]."""
    with zipfile.ZipFile(data / "imagenet_samples" / "images_256.zip") as archive:
        return torch.stack([_photo(archive.read(f"{number:04d}.jpg")) for number in classes])


def _photo(jpeg: bytes) -> Tensor:
    from PIL import Image  # only the photos need it

    with Image.open(io.BytesIO(jpeg)) as image:
        pixels = np.asarray(image.convert("RGB"))
    top, left = ((size - CROP) // 2 for size in pixels.shape[:2])
    return torch.from_numpy(pixels[top : top + CROP, left : left + CROP].copy()).permute(2, 0, 1)


def class_names(data: Path) -> list[str]:
    """The names of the thousand classes, by class number."""
    with (data / "imagenet_samples" / "labels.csv").open(newline="") as file:
        rows = {int(row["class_index"]): row["class_name"] for row in csv.DictReader(file)}
    return [rows[number] for number in range(1000)]


class Photos:
    """Batches `(inputs, class numbers)` of the photos of `classes`, decoded as they are asked for."""

    def __init__(
        self, data: Path, prepare: Callable[[Tensor], Tensor], classes: Sequence[int] = range(1000), size: int = 50
    ) -> None:
        self.data, self.prepare, self.classes, self.size = data, prepare, tuple(classes), size

    def __len__(self) -> int:
        return -(-len(self.classes) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.classes), self.size):
            classes = self.classes[start : start + self.size]
            yield self.prepare(photos(self.data, classes)), torch.tensor(classes)


def right(model: nn.Module, batches: Photos) -> tuple[float, float]:
    """Shares of photos whose class is the first, and among the first five, of the model's answers."""
    first = five = count = 0
    with torch.no_grad():
        for inputs, target in batches:
            hits = model(inputs).topk(5).indices == target.unsqueeze(1)
            first, five, count = first + int(hits[:, 0].sum()), five + int(hits.sum()), count + len(target)
    return first / count, five / count


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with imagenet_models/ and imagenet_samples/")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for build, prepare in ((mobilenet, centred), (squeezenet, standardised)):
        first, five = right(build(arguments.data), Photos(arguments.data, prepare))
        print(f"{build.__name__}: top-1 {first:.1%}, top-5 {five:.1%} of 1,000 photos", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
