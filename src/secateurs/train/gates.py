"""Node pruning: a gate for every unit, open or closed, that training itself moves.

Yu et al., Scalpel: customizing DNN pruning to the underlying hardware parallelism, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import Batches
from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.couple.columns import reading_columns
from secateurs.couple.group import ChannelGroup, Groups, Member
from secateurs.sparsity.held import Held
from secateurs.train.coupled import coupled_on


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Every unit x of a group (a neuron, a feature map, a head) is read as `alpha * x`, alpha 1 (open) or 0 (closed).

    alpha follows a number beta with hysteresis: open from `threshold + margin` on, closed below `threshold`, as it was
    in between. beta begins at `start` and falls by `lr * strength` at every step (a penalty `strength * |beta|`) and by
    `lr * sum x * dL/dy`, y being what is read; x is taken as if the gate were open, so a closed unit can come back. It
    never exceeds 1. `lr=None` is the training's own, as its schedule has it. A start just above the threshold, such as
    0.8002, lets small strengths act within few steps.

    While a unit is closed, nothing that produces or reads it gets a gradient from it; weight decay goes on. At least
    one unit of every group stays open.

    A group takes part if nothing but columns of trained weights reads it, and removing units changes nothing else (no
    layer norm over them). `exclude` keeps groups whole, as in `couple`; `only` names the groups that take part.

    Raises `InputError` for a number out of range.
    """

    strength: float
    threshold: float = 0.8
    margin: float = 0.01
    start: float = 1.0
    lr: float | None = None
    exclude: Sequence[str] = ()
    only: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _number("strength", self.strength, 0.0, math.inf)
        _number("threshold", self.threshold, 0.0, 1.0)
        _number("margin", self.margin, 0.0, 1.0)
        _number("start", self.start, float(self.threshold), 1.0)
        if self.lr is not None:
            _number("lr", self.lr, 0.0, math.inf)
        for name in ("exclude", "only"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise _unusable(name, given, f"give a list: {name}=[{given!r}]")
            if given is not None:
                object.__setattr__(self, name, tuple(given))

    def identity(self) -> dict[str, Any]:
        """The settings as JSON data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def moved(self, beta: Tensor, alpha: Tensor, slope: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Beta and alpha (bool) after one step of the rule above; `slope` is the data's gradient to alpha."""
        beta = (beta - lr * (slope + self.strength * beta.sign())).clamp(max=1.0)
        return beta, (beta >= self.threshold + self.margin) | (alpha & (beta >= self.threshold))


@dataclass(frozen=True)
class GateState:
    """Where the gates of a run ended: the open units and the beta of every unit, by group name.

    `missing` says of every other group that could lose units why it has no gates.
    """

    open: Mapping[str, tuple[int, ...]]
    beta: Mapping[str, tuple[float, ...]]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def closed(self) -> int:
        """How many units are closed."""
        return sum(len(beta) for beta in self.beta.values()) - sum(len(units) for units in self.open.values())

    def __str__(self) -> str:
        lines = [f"{name}: {len(self.open[name])} of {len(beta)} open" for name, beta in self.beta.items()]
        return "\n".join([*lines, *(f"{name}: no gates: {why}" for name, why in self.missing.items())])


class NodeGates:
    """The gates of one network in training. They sit in the columns of the weights that read the units.

    Between optimizer steps, columns of closed units are zero in the model. Call `learn` when gradients are there and
    `settle` after the optimizer's step; in between the optimizer finds the weights as they are behind closed gates.
    """

    def __init__(self, groups: Groups, model: nn.Module, config: Gates) -> None:
        self.config = config
        columns = reading_columns(groups)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.missing = dict(columns.missing)
        taking: dict[str, tuple[ChannelGroup, tuple[Member, ...]]] = {}
        for name, members in columns.found.items():
            still = next((item.leaf for item in members if not parameters[item.leaf].requires_grad), None)
            if config.only is not None and not any(fnmatchcase(name, glob) for glob in config.only):
                continue
            if still is not None:
                self.missing[name] = f"`{still}`, which reads it, is not trained"
            else:
                taking[name] = groups[name], members
        _check_only(config, groups)
        if not taking:
            raise InputError(_nothing(groups, self.missing))
        self._slices: dict[str, slice] = {}
        start = 0
        for name, (group, _) in taking.items():
            self._slices[name] = slice(start, start + group.size)
            start += group.size
        self.beta = torch.full((start,), float(config.start), dtype=torch.float64)
        self.alpha = torch.ones(start, dtype=torch.bool)
        self._places = self._find_places(taking, parameters)

    @classmethod
    def of(cls, model: nn.Module, batches: Batches, config: Gates) -> NodeGates:
        """Gates on a model's units as they are coupled on the first batch."""
        return cls(coupled_on(batches, model, config.exclude), model, config)

    def learn(self, lr: float) -> None:
        """Move the gates along the gradients that are there, then take those of closed units away.

        `lr` is the training's. A parameter without a gradient counts as one with zeros.
        """
        rate, slope = lr if self.config.lr is None else self.config.lr, self.slope()
        with torch.no_grad():
            for place in self._places:
                place.held.clear_gradient()
                place.held.show()
        self.beta, alpha = self.config.moved(self.beta, self.alpha, slope, rate)
        alpha = self._with_one_each(alpha)
        self._changed = not torch.equal(alpha, self.alpha)
        self.alpha = alpha

    def slope(self) -> Tensor:
        """The loss's gradient to alpha, `sum x * dL/dy` over all that reads a unit, from the weights' gradients."""
        total = torch.zeros_like(self.beta)
        for place in self._places:
            gradient = place.held.parameter.grad
            if gradient is not None:
                total.index_add_(0, place.units, place.slope(gradient))
        return total

    def settle(self) -> None:
        """Columns of closed units are zero again, as the gates now stand."""
        with torch.no_grad():
            for place in self._places:
                place.held.put(place.mask(self.alpha)) if self._changed else place.held.hide()
        self._changed = False

    def state(self) -> GateState:
        """Where the gates stand."""
        parts = {name: (self.alpha[mine], self.beta[mine]) for name, mine in self._slices.items()}
        return GateState(
            open={name: tuple(alpha.nonzero().flatten().tolist()) for name, (alpha, _) in parts.items()},
            beta={name: tuple(beta.tolist()) for name, (_, beta) in parts.items()},
            missing=self.missing,
        )

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """What a checkpoint has to hold: beta, alpha, and the weights behind closed gates."""
        dense = {f"{prefix}dense/{place.held.name}": place.held.dense for place in self._places}
        return {f"{prefix}beta": self.beta, f"{prefix}alpha": self.alpha, **dense}

    def load(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Put back what `tensors` gave, once the model's own tensors are there."""
        self.beta, self.alpha = tensors[f"{prefix}beta"].clone(), tensors[f"{prefix}alpha"].clone()
        with torch.no_grad():
            for place in self._places:
                place.held.put(place.mask(self.alpha))
                place.held.restore(tensors[f"{prefix}dense/{place.held.name}"])

    _changed = False

    def _find_places(
        self, taking: Mapping[str, tuple[ChannelGroup, tuple[Member, ...]]], parameters: Mapping[str, nn.Parameter]
    ) -> list[_Place]:
        """One per weight: the gate, numbered through all groups, of every index along the axis that reads."""
        units: dict[tuple[str, int], Tensor] = {}
        for name, (_, members) in taking.items():
            for member in members:
                own = torch.from_numpy(member.units.copy())
                there = units.setdefault((member.leaf, member.dim), torch.full_like(own, -1))
                there[own >= 0] = own[own >= 0] + self._slices[name].start
        places = []
        for (leaf, dim), gates in units.items():
            parameter = parameters[leaf]
            held = Held(leaf, parameter, torch.ones(parameter.shape, dtype=torch.bool), dense=True)
            mine = gates >= 0
            places.append(_Place(held, dim, mine.nonzero().flatten(), gates[mine]))
        return places

    def _with_one_each(self, alpha: Tensor) -> Tensor:
        """Of a group whose gates are all closed, the one with the highest beta is open."""
        for mine in self._slices.values():
            if not alpha[mine].any():
                alpha[mine.start + int(self.beta[mine].argmax())] = True
        return alpha


@dataclass(frozen=True)
class _Place:
    """A weight that reads units along `dim`: its indices `mine` are behind the gates `units`."""

    held: Held
    dim: int
    mine: Tensor
    units: Tensor

    def slope(self, gradient: Tensor) -> Tensor:
        """`sum W * dL/dW` over all but `dim`, at the indices `mine`: float64, on the CPU as the gates are."""
        product = self.held.dense * gradient
        wide = product if product.dtype == torch.float64 else product.float()
        along = wide.movedim(self.dim, 0).reshape(gradient.shape[self.dim], -1).sum(1)
        return along.to("cpu", torch.float64)[self.mine]

    def mask(self, alpha: Tensor) -> Tensor:
        """Which entries of the weight are not behind a closed gate."""
        shape = self.held.parameter.shape
        kept = torch.ones(shape[self.dim], dtype=torch.bool)
        kept[self.mine] = alpha[self.units]
        return kept.reshape([-1 if dim == self.dim else 1 for dim in range(len(shape))]).expand(shape)


def _check_only(config: Gates, groups: Groups) -> None:
    names = [group.name for group in groups]
    for glob in config.only or ():
        if not any(fnmatchcase(name, glob) for name in names):
            close = nearest(glob, names)
            raise UnknownNameError(
                explain(
                    f"There is no group named {glob!r}",
                    where="Gates(only=...)",
                    next_step=f"did you mean {close[0]!r}?" if close else "see sec.couple(graph) for their names",
                )
            )


def _nothing(groups: Groups, missing: Mapping[str, str]) -> str:
    held = [(group.name, group.frozen or "") for group in groups.frozen] + list(missing.items())
    return explain(
        "There is no unit to put a gate on",
        evidence="; ".join(f"`{name}`: {why}" for name, why in held[:5]) or "the model has no groups of channels",
        next_step="exclude less, or prune weights instead (sec.sparsify)",
    )


def _number(name: str, value: object, least: float, most: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= most or math.isinf(value):  # type: ignore[operator, arg-type]
        upper = f" to {most:g}" if most < math.inf else " or more"
        raise _unusable(name, value, f"give a finite number, {least:g}{upper}")


def _unusable(field: str, value: object, next_step: str) -> InputError:
    return InputError(explain(f"Gates({field}={value!r}) cannot be used", next_step=next_step))


__all__ = ["GateState", "Gates", "NodeGates"]
