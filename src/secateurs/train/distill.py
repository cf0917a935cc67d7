"""Distillation: the cut network also learns from what the uncut one answers.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateurs.base.batches import forward
from secateurs.base.errors import InputError, TrainError, UnknownNameError, explain, nearest
from secateurs.base.loss import logits


@dataclass(frozen=True, kw_only=True)
class Distill:
    """`loss = (1 - alpha) * own + alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + features`.

    `temperature` is T, `alpha` the share of the soft term in [0, 1] (0 is plain training, bit for bit), `dim` the
    dimension of the classes in the logits. `features` maps module names to the channels of the teacher that the
    student kept (`kept_channels` reads them from a plan); each adds `feature_weight` times the mean squared difference
    between the outputs of the two modules of that name, channels along `feature_dim`.

    Costs one forward pass of the teacher per step. Raises `InputError` for a number out of range.
    """

    temperature: float = 4.0
    alpha: float = 0.7
    dim: int = 1
    features: Mapping[str, Sequence[int]] = field(default_factory=dict)
    feature_weight: float = 1.0
    feature_dim: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise _unusable("temperature", self.temperature, "give a finite number above 0; 4 is customary")
        if not 0.0 <= self.alpha <= 1.0:
            raise _unusable("alpha", self.alpha, "give a share from 0 (labels only) to 1 (teacher only)")
        if not 0.0 <= self.feature_weight < float("inf"):
            raise _unusable("feature_weight", self.feature_weight, "give a finite number of at least 0")
        plain = {str(name): tuple(int(index) for index in kept) for name, kept in self.features.items()}
        object.__setattr__(self, "features", plain)

    def identity(self) -> dict[str, Any]:
        """The settings as JSON data."""
        features = {name: list(kept) for name, kept in self.features.items()}
        return {
            "temperature": self.temperature,
            "alpha": self.alpha,
            "dim": self.dim,
            "features": features,
            "feature_weight": self.feature_weight,
            "feature_dim": self.feature_dim,
        }


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, dim: int = 1) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, the mean over rows (and positions, if any).

    Logits of any one shape, classes along `dim`. T^2 keeps the gradient's size about the same for every T. Zero when
    both agree. Raises `TrainError` when the shapes differ.
    """
    if student.shape != teacher.shape:
        raise TrainError(
            explain(
                "Teacher and student do not answer in the same shape",
                evidence=f"teacher {list(teacher.shape)}, student {list(student.shape)}",
                next_step="give a teacher with the same outputs, such as the model before the cut",
            )
        )
    classes = student.shape[dim]
    student_log = functional.log_softmax(student.movedim(dim, -1).reshape(-1, classes) / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher.movedim(dim, -1).reshape(-1, classes) / temperature, dim=1)
    return functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2


class Distillation:
    """One run's teacher: a copy in eval mode without gradients, and the recorders on both networks' features."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        config: Distill,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.config = config
        self._teacher = copy.deepcopy(teacher).requires_grad_(False).eval().to(device)
        self._autocast = autocast
        self._kept = {name: torch.tensor(kept, device=device) for name, kept in config.features.items()}
        self._student_features = _Recorder(student, config.features, "student")
        self._teacher_features = _Recorder(self._teacher, config.features, "teacher")

    def loss(self, inputs: Any, outputs: Any, own: Tensor) -> Tensor:
        """The loss with the teacher's part, given the student's `outputs` on `inputs` and its `own` loss."""
        with torch.no_grad(), self._autocast():
            answer = forward(self._teacher, inputs)
        total = own
        if self.config.alpha:
            student = logits(outputs)
            teacher = logits(answer).to(student.dtype)
            soft = soft_loss(student, teacher, self.config.temperature, self.config.dim)
            total = (1 - self.config.alpha) * own + self.config.alpha * soft
        for name, kept in self._kept.items():
            total = total + self.config.feature_weight * self._difference(name, kept)
        return total

    def close(self) -> None:
        """Take the recorders off the student."""
        self._student_features.close()
        self._teacher_features.close()

    def _difference(self, name: str, kept: Tensor) -> Tensor:
        dim = self.config.feature_dim
        student, teacher = self._student_features[name], self._teacher_features[name]
        if kept.numel() and int(kept.max()) < teacher.shape[dim]:
            teacher = teacher.index_select(dim, kept)
        if student.shape != teacher.shape:
            raise TrainError(
                explain(
                    "The features of teacher and student do not match after selecting the kept channels",
                    where=f"module `{name}`, channels along dimension {dim}",
                    evidence=f"{len(kept)} kept; teacher {list(teacher.shape)}, student {list(student.shape)}",
                    next_step="list for each module exactly the channels that the cut kept, in ascending order",
                )
            )
        return functional.mse_loss(student.float(), teacher.float())


def uses_teacher(config: Distill | None) -> bool:
    """Whether a teacher changes the loss at all."""
    return config is not None and (config.alpha > 0 or bool(config.features and config.feature_weight > 0))


def kept_channels(
    model: nn.Module, removed: Mapping[str, Mapping[int, Sequence[int]]], modules: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """For each named convolution, linear or normalisation layer of the uncut `model`, the output channels that stay.

    `removed` is a plan's `removed`. Use it for `Distill(features=...)`. Raises `UnknownNameError` for a module that
    does not exist and `InputError` for one whose weight has no output dimension known here.
    """
    found = dict(model.named_modules())
    _all_known(modules, found, "model")
    kept = {}
    for name in modules:
        weight = getattr(found[name], "weight", None)
        if not isinstance(weight, Tensor):
            raise InputError(
                explain(f"Module `{name}` has no weight that tells its channels", next_step="name the layer before it")
            )
        dim = 1 if isinstance(found[name], nn.modules.conv._ConvTransposeNd) else 0
        names = [other for other, tensor in model.named_parameters(remove_duplicate=False) if tensor is weight]
        gone = {int(index) for other in names for index in removed.get(other, {}).get(dim, ())}
        kept[name] = tuple(index for index in range(weight.shape[dim]) if index not in gone)
    return kept


class _Recorder:
    """Keeps the last output of some modules of one network."""

    def __init__(self, model: nn.Module, names: Mapping[str, Any], role: str) -> None:
        found = dict(model.named_modules())
        _all_known(names, found, role)
        self._outputs: dict[str, Tensor] = {}
        self._hooks = [found[name].register_forward_hook(self._keeper(name)) for name in names]

    def __getitem__(self, name: str) -> Tensor:
        if name in self._outputs:
            return self._outputs[name]
        raise TrainError(
            explain(
                f"Module `{name}` gave no tensor in this step",
                next_step="name modules that run in every forward pass and return one tensor",
            )
        )

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keeper(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._outputs[name] = output

        return keep


def _all_known(names: Mapping[str, Any] | Sequence[str], found: Mapping[str, nn.Module], role: str) -> None:
    for name in names:
        if name not in found:
            close = nearest(name, found)
            raise UnknownNameError(
                explain(
                    f"The {role} has no module named {name!r}",
                    evidence=f"it has {len(found) - 1} modules",
                    next_step=f"did you mean {' or '.join(map(repr, close))}?" if close else "see `named_modules()`",
                )
            )


def _unusable(name: str, value: object, next_step: str) -> InputError:
    return InputError(explain(f"Distill({name}={value!r}) cannot be used", next_step=next_step))
