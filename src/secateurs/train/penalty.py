"""Penalties that push what does not matter towards zero, so that small norms come to mean something before a cut.

Group and layer norms: Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016 (arXiv 1608.03665).
Batch-norm scales: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017 (1708.06519).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from secateurs.base.batches import Batches, device_of, split, to_device
from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.globs import fits
from secateurs.base.loss import Loss
from secateurs.train.evaluate import in_eval_mode
from secateurs.train.failure import run as forward_pass

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda weight: weight.abs().sum(),
    "squared_l2": lambda weight: weight.square().sum(),
    "layer_norm": lambda weight: torch.linalg.vector_norm(weight),
    "filter_norm": lambda filters: torch.linalg.vector_norm(filters.flatten(1), dim=1).sum(),
    "bn_scale": lambda weight: weight.abs().sum(),
}
BALANCE = "balance"


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """`loss + strength * penalty`, where the penalty sums over weight matrices and kernels W (biases and norms not).

    `kind`: `"l1"`, sum of |w|; `"squared_l2"`, sum of w^2; `"layer_norm"`, sum over layers of ||W||_2, not squared;
    `"filter_norm"`, sum over filters of ||W[k]||_2 (group lasso: whole filters go to zero); `"bn_scale"`, sum of
    |gamma| over batch norms. Where a norm is zero its gradient is taken as zero.

    `strength` is a number, or `"balance"`: measured once before the first step so that the penalty equals the main
    loss, `mean loss / penalty` over at most `batches` batches, and fixed from then on.

    `exclude` leaves out parameters whose name, or whose module's path, matches one of these globs, and those of all
    that lies below such a path, as in `couple`.

    Raises `UnknownNameError` for an unknown kind, or in training for a glob that matches nothing, and `InputError` for
    a number out of range.
    """

    kind: str = "filter_norm"
    strength: float | str = BALANCE
    batches: int | None = None
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            close = nearest(str(self.kind), KINDS)
            raise UnknownNameError(
                explain(
                    f"There is no penalty named {self.kind!r}",
                    where="Penalty(kind=...)",
                    evidence=f"known: {', '.join(KINDS)}",
                    next_step=f"did you mean {close[0]!r}?" if close else "pick one of the known names",
                )
            )
        number = isinstance(self.strength, (int, float)) and not isinstance(self.strength, bool)
        if self.strength != BALANCE and not (number and 0 <= float(self.strength) < math.inf):
            raise _unusable("strength", self.strength, "give a finite number of at least 0, or 'balance'")
        whole = isinstance(self.batches, int) and not isinstance(self.batches, bool)
        if self.batches is not None and not (whole and self.batches >= 1):
            raise _unusable("batches", self.batches, "give an integer above 0, or None for one epoch")
        if isinstance(self.exclude, str):
            raise _unusable("exclude", self.exclude, f"give a list: exclude=[{self.exclude!r}]")
        object.__setattr__(self, "exclude", tuple(self.exclude))

    def identity(self) -> dict[str, Any]:
        """The settings as JSON data."""
        return {**asdict(self), "exclude": list(self.exclude)}

    def parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """What it is taken over, by name, tied parameters once.

        Raises `InputError` when that is nothing, and `UnknownNameError` for a glob of `exclude` that matches nothing.
        """
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        self._check_exclude(model)
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                norm = isinstance(module, _BatchNorm) and name == "weight"
                wanted = norm if self.kind == "bn_scale" else parameter.dim() > 1
                left_out = any(_matches(full, glob) for glob in self.exclude)
                if wanted and parameter.requires_grad and not left_out and id(parameter) not in seen:
                    found[full] = parameter
                    seen.add(id(parameter))
        if not found:
            raise InputError(
                explain(
                    f"The penalty {self.kind!r} has nothing to act on",
                    evidence="the model has no trainable "
                    + ("batch norm" if self.kind == "bn_scale" else "weight matrix or kernel")
                    + (f" besides those excluded by {', '.join(self.exclude)}" if self.exclude else ""),
                    next_step="take another kind, or exclude less",
                )
            )
        return found

    def _check_exclude(self, model: nn.Module) -> None:
        for glob in self.exclude:
            parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
            if not any(_matches(name, glob) for name in parameters):
                names = list(dict.fromkeys(name.rpartition(".")[0] for name in parameters if "." in name))
                close = nearest(glob, (*names, *parameters))
                raise UnknownNameError(
                    explain(
                        f"The penalty's exclusion {glob!r} matches nothing",
                        where="Penalty(exclude=...)",
                        evidence=f"{len(names)} modules hold parameters, such as {', '.join(names[:5])}",
                        next_step=f"did you mean {', '.join(close)}?" if close else "",
                    )
                )

    def value(self, model: nn.Module) -> Tensor:
        """The penalty without its strength: a differentiable scalar >= 0. Raises `InputError`."""
        measure = KINDS[self.kind]
        found = self.parameters(model)
        if self.kind == "filter_norm":
            found = {name: _filters(model, name, parameter) for name, parameter in found.items()}
        return torch.stack([measure(parameter) for parameter in found.values()]).sum()


def _filters(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """The weight with what produces one output in each row: a transposed convolution keeps its inputs in front."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(owner, _ConvTransposeNd):
        return weight
    per_group = weight.reshape(owner.groups, -1, *weight.shape[1:])
    return per_group.transpose(1, 2).flatten(0, 1)


def balanced(penalty: Penalty, model: nn.Module, data: Iterable[Any], loss: Loss, seed: int = 0) -> float:
    """The strength at which the penalty equals the main loss: `mean loss / penalty`, in eval mode, without gradients.

    Raises `InputError` when the penalty is zero, so that no strength would do.
    """
    device = device_of(model)
    batches = Batches(data, limit=penalty.batches, seed=seed)
    losses: list[float] = []
    try:
        with in_eval_mode(model), torch.no_grad():
            for number, batch in enumerate(islice(batches.epoch(0), batches.length)):
                place = f"batch {number} (to balance the penalty)"
                inputs, target = split(to_device(batch, device), place)
                losses.append(float(loss(forward_pass(model, inputs, place), target)))
    finally:
        batches.close()
    size = float(penalty.value(model).detach())
    mean = sum(losses) / len(losses)
    if not (size > 0 and math.isfinite(mean)):
        raise InputError(
            explain(
                "The penalty cannot be balanced against the loss",
                evidence=f"the loss is {mean:g}, the penalty {size:g}",
                next_step="give `strength` as a number",
            )
        )
    return mean / size


def _matches(parameter: str, glob: str) -> bool:
    module = parameter.rpartition(".")[0]
    return fits(parameter, glob) or fits(module, glob) or module.startswith(glob + ".")


def _unusable(field: str, value: object, next_step: str) -> InputError:
    return InputError(explain(f"Penalty({field}={value!r}) cannot be used", next_step=next_step))
