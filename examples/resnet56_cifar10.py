"""ResNet-56 on CIFAR-10, cut to half of its multiply-accumulates: pretrained weights, real images.

    python examples/resnet56_cifar10.py --data ../shared/data

The folder holds `cifar10/` (the binary distribution's batches, xz-compressed) and
`cifar10_models/resnet56_cifar10.safetensors`. The published network saw all 50,000 training images, so accuracy is
taken on the 1,000 lossless test images (standard error about 0.8 points), and fine-tuning uses a part of the training
images. With the defaults it takes about ten minutes on two cores.

The network is that of He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015 (arXiv 1512.03385), with
parameter-free shortcuts: where the shape changes, every second pixel, and new channels of zeros on both sides.
"""

from __future__ import annotations

import argparse
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from secateurs.train.evaluate import accuracy

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
TEST = "test_batch_first1000.bin.xz"


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.widens = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widens:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.widens, self.widens))
        return F.relu(y + x)


class ResNet56(nn.Module):
    """Images [N, 3, 32, 32] -> logits [N, 10]: a stem, three stages of nine blocks, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(8)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


class Batches:
    """Shuffled training batches, each image moved by up to four pixels and mirrored half the time (He et al. 2015).

    The order and the changes follow from torch's random state, which the trainer sets for each epoch.
    """

    def __init__(self, images: Tensor, labels: Tensor, size: int = 128) -> None:
        self.images, self.labels, self.size = images, labels, size

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.labels))[: len(self) * self.size].split(self.size):
            yield normalised(self._moved(self.images[rows])), self.labels[rows]

    @staticmethod
    def _moved(images: Tensor) -> Tensor:
        count = len(images)
        padded = F.pad(images, (4, 4, 4, 4))
        steps = torch.arange(32)
        down = torch.randint(0, 9, (count, 1)) + steps
        right = torch.randint(0, 9, (count, 1)) + steps
        right = torch.where(torch.rand(count, 1) < 0.5, right, right.flip(1))
        rows = torch.arange(count).view(-1, 1, 1, 1)
        channels = torch.arange(3).view(1, -1, 1, 1)
        return padded[rows, channels, down.view(count, 1, 32, 1), right.view(count, 1, 1, 32)]


def normalised(images: Tensor) -> Tensor:
    """Bytes [N, 3, 32, 32] as the floats that the network was trained on."""
    return (images.float() / 255 - MEAN) / STD


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] as bytes and labels [N] of one file of records: label, red, green and blue plane."""
    with lzma.open(path) as file:
        records = np.frombuffer(file.read(), np.uint8).reshape(-1, 3073)
    images, labels = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels)


def pretrained(data: Path) -> ResNet56:
    model = ResNet56()
    model.load_state_dict(load_file(data / "cifar10_models" / "resnet56_cifar10.safetensors"))
    return model.eval()


def main() -> int:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    folder = arguments.data / "cifar10"
    parts = [read(folder / f"data_batch_{number}.bin.xz") for number in range(1, 1 + -(-arguments.images // 10_000))]
    images = torch.cat([part[0] for part in parts])[: arguments.images]
    labels = torch.cat([part[1] for part in parts])[: arguments.images]
    test_images, test_labels = read(folder / TEST)
    test = list(zip(normalised(test_images).split(250), test_labels.split(250), strict=True))

    result = sec.prune(
        pretrained(arguments.data),
        normalised(test_images[:1]),
        budget=sec.Budget(macs=arguments.macs),
        criterion=arguments.criterion,
        data=Batches(images, labels),
        evaluate=accuracy(test),
        finetune=sec.FineTune(
            epochs=arguments.epochs, lr=0.02, weight_decay=1e-4, distil=sec.Distill(), seed=arguments.seed
        ),
        device="onnxruntime",
        seed=arguments.seed,
        on_stage=lambda stage: print(f"- {stage}", flush=True),
    )
    print(result)
    saved = sec.save(result, arguments.out)
    again = sec.load(saved, build=ResNet56)
    with torch.no_grad():
        same = torch.equal(again(test[0][0]), result.model.eval()(test[0][0]))
    print(f"Saved to {saved}; loaded again, its outputs are {'bit for bit the same' if same else 'DIFFERENT'}.")
    return 0 if result.met and same else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/ and cifar10_models/")
    parser.add_argument("--macs", type=float, default=0.5, help="share of multiply-accumulates that may remain")
    parser.add_argument("--criterion", default="l1")
    parser.add_argument("--images", type=int, default=10_000, help="training images to fine-tune on, at most 50000")
    parser.add_argument("--epochs", type=int, default=3, help="passes over them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("resnet56-cut"), help="folder for the artifact")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
