"""`Sparsity`: which zeros a training puts in place and holds, as plain data that a recipe can hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields, is_dataclass
from typing import Any

from torch import nn

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.loss import Loss
from secateurs.base.reference import name_of, resolve
from secateurs.sparsity.hold import MODES
from secateurs.sparsity.importance import Importance
from secateurs.sparsity.measured import reads_data
from secateurs.sparsity.pattern import Pattern, parse_pattern
from secateurs.sparsity.regrow import GradientRegrowth, RandomRegrowth
from secateurs.sparsity.schedules import Constant, Gradual, Iterative, OneShot, Schedule
from secateurs.sparsity.sparsify import Sparsifier, sparsify
from secateurs.sparsity.spec import ByLayer, Masks, Spec, Target, plain_targets
from secateurs.sparsity.surgery import Surgery
from secateurs.sparsity.threshold import Threshold
from secateurs.sparsity.time import in_steps
from secateurs.sparsity.updates import Update

SCHEDULES = {"constant": Constant, "gradual": Gradual, "iterative": Iterative, "one_shot": OneShot}
UPDATES = {"gradient_regrowth": GradientRegrowth, "random_regrowth": RandomRegrowth, "surgery": Surgery}

_CLASS = re.compile(r"[\w.]+:[\w.]+")


@dataclass(frozen=True)
class Sparsity:
    """What `sparsify` takes, for `FineTune(sparsity=...)`; every field has the meaning of the argument there.

        sec.FineTune(epochs=10, sparsity=sec.Sparsity(0.9, schedule=sec.Gradual("1 epoch", "75%")))

    `sparsity` is one number, a `Threshold`, or either by layer. The length of a training is known, so the moments of a
    `schedule` or an `update` may be text: `"2 epochs"`, `"75%"`. Without a schedule the zeros come before the first
    step. `Sparsity(hold_zeros=True)` trains a pruned model as it is: what is zero stays zero.

    An importance that looks at data sees the first `batches` batches of the training data (None: all), with the
    training's loss, whenever masks are computed.

    Raises `InputError` for fields that contradict each other and `UnknownNameError` for unknown names.
    """

    sparsity: Target | ByLayer[Target] | None = None
    _: KW_ONLY
    mode: str = "hard"
    schedule: Schedule | None = None
    update: Update | None = None
    pattern: str | Pattern = "weight"
    importance: str | Importance | None = None
    scope: str = "layer"
    distribution: str = "uniform"
    exclude: Sequence[str | type] = ()
    only: Sequence[str | type] | None = None
    hold_zeros: bool = False
    options: Mapping[str, Any] | None = None
    batches: int | None = 16

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise _unusable("mode", self.mode, f"give one of {', '.join(MODES)}")
        for name in ("exclude", "only"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise _unusable(name, given, f"give a list: {name}=[{given!r}]")
            object.__setattr__(self, name, None if given is None else tuple(given))
        object.__setattr__(self, "sparsity", plain_targets(self.sparsity))
        decided = self.update is not None and self.update.decides
        if self.sparsity is not None or self._form.decides or not (self.hold_zeros or decided):
            Spec(self.sparsity, self.pattern, self.importance, self.scope, self.distribution, self.options or {})

    @property
    def _form(self) -> Pattern:
        return parse_pattern(self.pattern)

    def attach(
        self,
        model: nn.Module,
        *,
        per_epoch: int,
        epochs: int,
        within: Masks | None = None,
        data: Iterable[Any] | None = None,
        loss: str | Loss = "cross_entropy",
        seed: int = 0,
    ) -> Sparsifier:
        """A sparsifier on `model`, for a training of so many steps per epoch and epochs, on `data` with `loss`.

        `within` are masks of before, held too, as `sparsify` does. Raises `InputError` when the training ends before
        the schedule does.
        """
        named = (
            "mode", "pattern", "importance", "scope", "distribution", "exclude", "only", "hold_zeros", "options",
            "batches",
        )  # fmt: skip
        looks = reads_data(self.importance or self._form.importance)
        schedule = None if self.schedule is None else in_steps(self.schedule, per_epoch, epochs)
        update = None if self.update is None else in_steps(self.update, per_epoch, epochs)
        made = sparsify(
            model, self.sparsity, schedule=schedule, update=update, within=within, data=data if looks else None,
            loss=loss, seed=seed, **{name: getattr(self, name) for name in named},
        )  # fmt: skip
        if not made.settled(per_epoch * epochs):
            made.detach()
            raise InputError(
                explain(
                    "The training ends before the schedule of the sparsity does",
                    evidence=f"{epochs} epochs of {per_epoch} steps; {schedule}",
                    next_step='end the schedule earlier (end="75%"), or train for longer',
                )
            )
        return made

    def plain(self) -> dict[str, Any]:
        """The settings as JSON data, `from_plain` reads them; what is at its default is left out."""
        return {
            field.name: _plain(value) for field in fields(self) if (value := getattr(self, field.name)) != field.default
        }

    identity = plain

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Sparsity:
        """The settings from `plain()`. Raises `UnknownNameError`, `InputError`, and `TypeError` for unknown keys."""
        given = dict(data)
        if "sparsity" in given:
            given["sparsity"] = _target(given["sparsity"])
        for name in ("exclude", "only"):
            if isinstance(given.get(name), (list, tuple)):
                given[name] = [_layers(item) for item in given[name]]
        for name, known in (("schedule", SCHEDULES), ("update", UPDATES)):
            if given.get(name) is not None:
                given[name] = _named(name, given[name], known)
        return cls(**given)


def _plain(value: Any) -> Any:
    if isinstance(value, (Schedule, Update)):
        names = {kind: name for name, kind in {**SCHEDULES, **UPDATES}.items()}
        name = names.get(type(value)) or f"{type(value).__module__}:{type(value).__qualname__}"
        return {name: {item.name: _plain(getattr(value, item.name)) for item in fields(value) if item.init}}
    if isinstance(value, Threshold):
        return {name: item for name, item in asdict(value).items() if item is not None}
    if isinstance(value, Pattern):
        return str(value)
    if isinstance(value, type):
        return _qualified(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if callable(value):
        return name_of(value) or (repr(value) if is_dataclass(value) else _qualified(value))
    return value


def _qualified(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def _target(data: Any) -> Any:
    if isinstance(data, Mapping):
        threshold = {"kind", "factor"} <= set(data) <= {"kind", "factor", "start"}
        return Threshold(**data) if threshold else {_layers(key): _target(item) for key, item in data.items()}
    return data


def _layers(text: Any) -> Any:
    """`package.module:Class` as the class, anything else as it is: a name or a glob."""
    return resolve(text) if isinstance(text, str) and _CLASS.fullmatch(text) else text


def _named(what: str, data: Any, known: Mapping[str, type]) -> Any:
    """`{"gradual": {"begin": 0, ...}}`, or only the name, as the object."""
    if isinstance(data, (Schedule, Update)):
        return data
    name, settings = next(iter(data.items())) if isinstance(data, Mapping) and len(data) == 1 else (data, {})
    if not isinstance(name, str) or name not in known:
        close = nearest(str(name), known)
        raise UnknownNameError(
            explain(
                f"There is no {what} {name!r}",
                evidence=f"known: {', '.join(known)}",
                next_step=f"did you mean {close[0]!r}?" if close else f"write {{{next(iter(known))}: {{...}}}}",
            )
        )
    return known[name](**{key: _target(value) for key, value in settings.items()})


def _unusable(field: str, value: object, next_step: str) -> InputError:
    return InputError(explain(f"Sparsity({field}={value!r}) cannot be used", next_step=next_step))


__all__ = ["SCHEDULES", "UPDATES", "Sparsity"]
