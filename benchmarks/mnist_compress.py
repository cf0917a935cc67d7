"""From a dense network to few weights, and from few weights to a small file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import secateurs as sec
from benchmarks.mnist_train import Feed, Training, train
from secateurs.pack.chosen import with_coded
from secateurs.pack.coded import Coded
from secateurs.pack.shared_model import share_weights
from secateurs.pack.sharing import share
from secateurs.sparsity import GroupedWeight, layer_weights


@dataclass(frozen=True)
class Sparse:
    """How weights become zero: `mode`, the part of the training in which they do, and how often masks are computed.

    `power`: weights are ranked over all layers by `|w| * v^(power / 2)`, v being Adam's running mean of squared
    gradients: 0 is magnitude, 1 the size of the weight's effect on the loss.
    """

    training: Training
    mode: str = "hard"
    gradual: float = 0.7
    every: int = 50
    power: float = 0.5


def sparsified(
    model: nn.Module,
    kept: int,
    wanted: Sparse,
    feed: Feed,
    *,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """`model` itself, trained until `kept` weights are left, as many as there are now at the beginning."""
    weights = {name: item.tensor for name, item in layer_weights(model).items()}
    total, now = (sum(int(count(item)) for item in weights.values()) for count in (torch.numel, torch.count_nonzero))
    steps = wanted.training.epochs * feed.steps(wanted.training.batch)
    memory: dict[str, Tensor] = {}

    def effect(weight: GroupedWeight) -> Tensor:
        squares = memory.get(weight.name)
        size = weight.values.abs()
        return size if squares is None else size * squares.double().flatten().pow(wanted.power / 2)

    schedule = sec.Gradual(0, round(wanted.gradual * steps), every=wanted.every, initial=1 - now / total)
    sparsifier = sec.sparsify(
        model, 1 - kept / total, mode=wanted.mode, schedule=schedule, scope="global", importance=effect, seed=seed
    )
    with sparsifier:
        train(model, feed, wanted.training, seed=seed, sparsifier=sparsifier, on_epoch=on_epoch,
              memory=memory if wanted.power else None)  # fmt: skip
    return model


@dataclass(frozen=True)
class Sharing:
    """Bits of the codebooks of weights and of biases, and the training of the weights' codebooks."""

    bits: int
    bias_bits: int
    training: Training


def shared(model: nn.Module, wanted: Sharing, feed: Feed, *, seed: int) -> tuple[nn.Module, dict[str, Coded]]:
    """The model with shared weights, the codebooks and biases trained, and its tensors as they go into a file."""
    found = share_weights(model, wanted.bits, start="optimal", seed=seed)
    train(found, feed, wanted.training, seed=seed)
    plain, coded = found.plain(), found.coded()
    for name, item in plain.named_parameters():
        if item.dim() == 1:
            coded[name] = share(item, wanted.bias_bits, start="optimal", seed=seed)
    return with_coded(plain, coded), coded
