"""Every float model that torchvision lists, on small inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import operators
from benchmarks.zoo.entry import Entry, Inputs

# Smallest legal or sensible sides; convolutional classifiers that are not named here take 64.
SIDES = {"inception_v3": 96, "maxvit_t": 224}
VIT_SIDE = 224
DETECTOR_SIDE = 128
FIXED_DETECTOR_SIDES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
# Random weights never reach the default score of 0.05 among 91 classes; without boxes the heads would prove nothing.
TWO_STAGE = {"rpn_post_nms_top_n_test": 50, "box_score_thresh": 0.0, "box_detections_per_img": 10}
CLIPS = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224), "swin3d": (8, 64)}


def entries() -> Iterator[Entry]:
    """One entry per model, in torchvision's own order."""
    operators.provide()
    from torchvision import models

    for kind in KINDS:
        module = models if kind == "classification" else getattr(models, "optical_flow" if kind == "flow" else kind)
        for name in models.list_models(module=module):
            make, inputs, note = KINDS[kind](name)
            yield Entry("torchvision", kind, name, make, inputs, note)


Recipe = tuple[Callable[[], nn.Module], Callable[[], Inputs], str]


def _make(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A builder without pretrained weights."""

    def make() -> nn.Module:
        from torchvision import models

        builder = models.get_model_builder(name)
        if "weights_backbone" in inspect.signature(builder).parameters:
            options["weights_backbone"] = None
        return builder(weights=None, **options)

    return make


def _images(*shape: int) -> Callable[[], Inputs]:
    return lambda: Inputs((torch.randn(*shape),))


def _classification(name: str) -> Recipe:
    if name.startswith("vit_"):
        return _make(name), _images(1, 3, VIT_SIDE, VIT_SIDE), ""
    side = SIDES.get(name, 64)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return _make(name, **options), _images(1, 3, side, side), ""


def _segmentation(name: str) -> Recipe:
    return _make(name), _images(1, 3, 64, 64), ""


def _detection(name: str) -> Recipe:
    side = FIXED_DETECTOR_SIDES.get(name, DETECTOR_SIDE)
    options: dict[str, Any] = {} if name in FIXED_DETECTOR_SIDES else {"min_size": side, "max_size": side}
    if "rcnn" in name:
        options |= TWO_STAGE

    def images() -> Inputs:
        return Inputs(([torch.rand(3, side, side)],))

    return _make(name, **options), images, " ".join(f"{key}={value}" for key, value in options.items())


def _video(name: str) -> Recipe:
    frames, side = next((clip for prefix, clip in CLIPS.items() if name.startswith(prefix)), (8, 64))
    return _make(name), _images(1, 3, frames, side, side), ""


def _flow(name: str) -> Recipe:
    def pair() -> Inputs:
        first = torch.rand(1, 3, 128, 128) * 2 - 1
        return Inputs((first, first.roll((2, 3), dims=(2, 3))))

    return _make(name), pair, ""


KINDS: dict[str, Callable[[str], Recipe]] = {
    "classification": _classification,
    "segmentation": _segmentation,
    "detection": _detection,
    "video": _video,
    "flow": _flow,
}
