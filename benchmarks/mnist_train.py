"""The user's own loop for MNIST: images, labels and what a teacher says of them in memory, Adam, cosine decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.mnist_data import scaled
from secateurs.base.seeds import seeded
from secateurs.sparsity import Sparsifier
from secateurs.train.distill import soft_loss

WARM = 0.05
"""The part of the steps in which the learning rate rises."""


@dataclass(frozen=True)
class Feed:
    """`pool` uint8 [copies, N, 28, 28], labels [N], and the teacher's logits [copies, N, 10], if there is one.

    An epoch has every image once, in an order of its own, each as one of its copies.
    """

    pool: Tensor
    labels: Tensor
    teacher: Tensor | None = None

    def epoch(self, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Images, labels and the teacher's logits, by torch's random state."""
        copies, count = self.pool.shape[:2]
        which = torch.randint(copies, (count,))
        for rows in torch.randperm(count).split(batch):
            place = which[rows], rows
            yield (
                scaled(self.pool[place]),
                self.labels[rows],
                None if self.teacher is None else self.teacher[place].float(),
            )

    def steps(self, batch: int) -> int:
        return math.ceil(len(self.labels) / batch)


@dataclass(frozen=True)
class Training:
    """AdamW with a warm-up and cosine decay to zero; `alpha` (0: no teacher) and `temperature` as in `sec.Distill`."""

    epochs: int
    lr: float
    batch: int = 128
    decay: float = 0.0
    alpha: float = 0.0
    temperature: float = 4.0


def train(
    model: nn.Module,
    feed: Feed,
    wanted: Training,
    *,
    seed: int,
    sparsifier: Sparsifier | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    memory: dict[str, Tensor] | None = None,
) -> nn.Module:
    """Trains `model` itself; `sparsifier`, which holds its zeros, takes part in every step.

    `memory` is filled with Adam's running means of squared gradients, by parameter name.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast
    parameters = [item for item in model.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=wanted.lr, weight_decay=wanted.decay, fused=True)
    total, step = wanted.epochs * feed.steps(wanted.batch), 0
    with seeded(seed):
        for epoch in range(wanted.epochs):
            losses = 0.0
            for images, labels, teacher in feed.epoch(wanted.batch):
                for group in optimizer.param_groups:
                    group["lr"] = wanted.lr * rate(step / total)
                loss = loss_of(model(images.unsqueeze(1)), labels, teacher, wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if memory is not None and not memory:
                    memory.update(
                        {name: optimizer.state[item]["exp_avg_sq"] for name, item in model.named_parameters()}
                    )
                step += 1
                losses += float(loss.detach())
                if sparsifier is not None:
                    sparsifier.step()
            if on_epoch is not None:
                on_epoch(epoch, losses / feed.steps(wanted.batch))
    return model.to(memory_format=torch.contiguous_format)


def rate(done: float) -> float:
    """The learning rate, in parts of the largest, when this part of the steps is done."""
    return done / WARM if done < WARM else (1 + math.cos(math.pi * (done - WARM) / (1 - WARM))) / 2


def loss_of(answer: Tensor, labels: Tensor, teacher: Tensor | None, wanted: Training) -> Tensor:
    own = F.cross_entropy(answer, labels) if wanted.alpha < 1 or teacher is None else answer.new_zeros(())
    if teacher is None or not wanted.alpha:
        return own
    return (1 - wanted.alpha) * own + wanted.alpha * soft_loss(answer, teacher, wanted.temperature)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [N, 10] for bytes [N, 28, 28]."""
    return torch.cat([model(scaled(part).unsqueeze(1)) for part in images.split(250)])


def error(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Per cent of the images that the model gets wrong."""
    return round(100 * float((answers(model, images).argmax(1) != labels).float().mean()), 4)
