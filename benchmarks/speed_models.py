"""The models that race against the clock, and the networks that grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import operators

SIDE = 224


@dataclass(frozen=True)
class Case:
    """A model, one call of it, and the layers that make its outputs (which Torch-Pruning has to be told).

    `warm_up` names another model for the run that does not count, where the model itself would take too long.
    """

    make: Callable[[], nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    last_layers: tuple[str, ...] = ()
    warm_up: str = ""

    def build(self) -> nn.Module:
        """The model in eval mode; the same weights every time."""
        torch.manual_seed(0)
        return self.make().eval()


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        operators.provide()
        from torchvision import models

        return models.get_model(name, weights=None)

    return make


def _image(name: str, last_layer: str, warm_up: str = "") -> Case:
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return Case(_torchvision(name), (image,), last_layers=(last_layer,), warm_up=warm_up)


def _llama() -> nn.Module:
    """Grouped-query attention: eight query heads share two key and value heads."""
    operators.provide()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=128, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


MODELS: dict[str, Case] = {
    "resnet50": _image("resnet50", "fc"),
    "vgg16_bn": _image("vgg16_bn", "classifier.6"),
    "densenet121": _image("densenet121", "classifier"),
    "densenet201": _image("densenet201", "classifier", warm_up="densenet121"),
    "efficientnet_b0": _image("efficientnet_b0", "classifier.1"),
    "convnext_tiny": _image("convnext_tiny", "classifier.2"),
    "vit_b_16": _image("vit_b_16", "heads.head"),
    "swin_t": _image("swin_t", "head"),
    "maxvit_t": _image("maxvit_t", "classifier.5"),
    "llama_gqa": Case(_llama, kwargs={"input_ids": torch.arange(64).reshape(1, 64) % 1000}, last_layers=("lm_head",)),
}
ROUNDS = {
    "resnet50": 9, "vgg16_bn": 4, "densenet121": 5, "densenet201": 2, "efficientnet_b0": 11, "convnext_tiny": 9,
    "vit_b_16": 7,
}  # fmt: skip
ALONE = ("swin_t", "maxvit_t", "llama_gqa")


def deep(layers: int) -> Case:
    """`layers` times convolution, batch norm, ReLU, all 16 channels wide."""
    blocks = [item for _ in range(layers) for item in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
    return _chain(nn.Conv2d(3, 16, 1), *blocks, head=16)


def wide(channels: int) -> Case:
    """Eight layers of 1x1 convolutions that go from 16 to `channels` and back: weights grow as the width does."""
    blocks: list[nn.Module] = []
    for _ in range(4):
        blocks += [
            nn.Conv2d(16, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 16, 1),
            nn.ReLU(),
        ]
    return _chain(nn.Conv2d(3, 16, 1), *blocks, head=16)


def square(channels: int) -> Case:
    """One 1x1 convolution between two layers of `channels`: weights grow as the width's square."""
    first, second = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 1)
    return _chain(first, nn.BatchNorm2d(channels), nn.ReLU(), second, nn.ReLU(), head=channels)


def _chain(*layers: nn.Module, head: int) -> Case:
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(head, 10))
    return Case(lambda: model, (torch.randn(1, 3, 8, 8),), last_layers=(str(len(model) - 1),))


GROWTH: dict[str, Callable[[int], Case]] = {"depth": deep, "width": wide, "square": square}
SIZES: dict[str, tuple[int, ...]] = {
    "depth": (10, 30, 100, 300, 1000),
    "width": (64, 256, 1024, 4096, 8192),
    "square": (64, 256, 1024, 4096, 8192),
}
