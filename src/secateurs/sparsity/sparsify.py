"""`sparsify`: zeros in a model that is trained by any loop."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.base.loss import Loss
from secateurs.base.seeds import check_seed
from secateurs.sparsity.hold import MODES, Hold
from secateurs.sparsity.importance import Importance
from secateurs.sparsity.masks import check_masks, density, nothing_left
from secateurs.sparsity.measured import Evidence, check_read, missing_data, needs_data
from secateurs.sparsity.pattern import Pattern, parse_pattern
from secateurs.sparsity.schedules import OneShot, Schedule
from secateurs.sparsity.spec import ByLayer, Masks, Spec, Target, with_tensors
from secateurs.sparsity.threshold import Threshold, check_still
from secateurs.sparsity.updates import ByImportance, Moment, Update
from secateurs.sparsity.weights import LayerWeight, bias_names, layer_weights


class Sparsifier:
    """The masks of a model while it is trained. Made by `sparsify`; detaching, or leaving the `with`, ends it.

    `masks` are bool by parameter name, True = kept. `step()` after every optimizer step lets the schedule work; without
    a schedule it need not be called. Leaving the `with` before the schedule has come to its end warns. `state_dict()`
    holds tensors only; with the model's and the optimizer's it is all that a run needs to go on to the same bits.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Masks,
        *,
        mode: str = "hard",
        hard: Collection[str] = (),
        spec: Spec | None = None,
        targets: Mapping[str, Target] | None = None,
        schedule: Schedule | None = None,
        update: Update | None = None,
        evidence: Evidence | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.mode, self.spec, self.evidence = model, mode, spec, evidence
        self.schedule, self.rule = schedule or OneShot(), copy.deepcopy(update) or ByImportance()
        self.steps = 0
        self._targets = dict(targets or {})
        self._generator = torch.Generator().manual_seed(check_seed(seed))
        self._hold: Hold | None = Hold(model, masks, mode, hard)
        self._hard = self._hold.hard
        self._left: Masks = {}
        try:
            if spec is not None and self.schedule.due(0):
                self.update()
            self._prepare()
        except BaseException:  # an interruption too: nobody has this object yet, so nobody else can free the model
            self.detach()
            raise

    @property
    def masks(self) -> Masks:
        """Bool by parameter name, True = kept."""
        return self._left if self._hold is None else self._hold.masks

    @property
    def sparsity(self) -> float:
        """The share of masked weights that is zero, over all masks together."""
        return 1 - density(self.masks)

    @property
    def dense(self) -> dict[str, Tensor]:
        """The weights behind the masks: all of W in mode `"dense-update"`."""
        return self._attached().dense

    @property
    def watched(self) -> dict[str, Tensor]:
        """Gradients of all of W that the next update will look at, of this process; writing to them counts."""
        return self._attached().watched

    def __repr__(self) -> str:
        return f"<{self._whole()}>"

    def __str__(self) -> str:
        """The whole in a sentence, and a line per mask."""
        width = max(map(len, self.masks), default=0)
        counts = {name: (int(mask.sum()), mask.numel()) for name, mask in self.masks.items()}
        lines = [
            f"{name:<{width}}  {1 - kept / size:>6.1%}  {kept:,} of {size:,} kept"
            for name, (kept, size) in counts.items()
        ]
        return "\n".join([self._whole(), *lines])

    def _whole(self) -> str:
        size = sum(mask.numel() for mask in self.masks.values())
        state = f"held in mode {self.mode!r}" if self._hold is not None else "detached"
        when = "" if isinstance(self.schedule, OneShot) else f"; step {self.steps} of {self.schedule}"
        return f"{self.sparsity:.1%} of {size:,} weights are zero, {state}{when}"

    def settled(self, step: int | None = None) -> bool:
        """Does every layer have its final sparsity, as the schedule says of this step (None: of now)?"""
        at = self.steps if step is None else step
        finals = {target for target in self._targets.values() if not isinstance(target, Threshold) and target > 0}
        return self.spec is None or all(self.schedule.at(at, final) == final for final in finals or {0.5})

    def step(self) -> bool:
        """One more optimizer step was made. True if the masks changed, or were computed anew."""
        self._attached()
        self.steps += 1
        due = self.spec is not None and self.schedule.due(self.steps)
        if due:
            self.update()
        self._prepare()
        return due

    def update(self) -> None:
        """Compute the masks anew now, as sparse as the schedule has it at this step. Raises `InputError`."""
        hold = self._attached()
        if self.spec is None:
            raise InputError(explain("These masks were given, so they cannot be computed anew"))
        hold.check_places()
        weights = layer_weights(self.model, only=list(self._targets) or None)
        now = {name: self._now(target) for name, target in self._targets.items()}
        beside, dense = bias_names(self.model, now), hold.dense
        biases = {name: dense.get(bias, self.model.get_parameter(bias).detach()) for name, bias in beside.items()}
        beside = beside if self.rule.masks_biases else {}
        masks = {name: mask for name, mask in hold.masks.items() if name in now or name in beside.values()}
        moment = Moment(
            self.steps, with_tensors(weights, dense), masks, self.spec, now, hold.gradients, self.mode,
            self._generator, biases, beside, self.evidence,
        )  # fmt: skip
        hold.put(self.rule(moment))

    def _now(self, target: Target) -> Target:
        """What the schedule makes of a target at this step."""
        if isinstance(target, Threshold):
            return target.at(self.schedule.progress(self.steps))
        return self.schedule.at(self.steps, target)

    def apply(self) -> None:
        """Put the zeros in place now, after writing to the parameters by other means than an optimizer."""
        self._attached().zero()

    def attach(self) -> Sparsifier:
        """Hold the zeros again after `detach`."""
        if self._hold is None:
            self._hold, self._left = Hold(self.model, self._left, self.mode, self._hard), {}
            self._prepare()
        return self

    def detach(self) -> nn.Module:
        """The model, free of all hooks, with exact zeros where the masks are. In place: it is the caller's own."""
        if self._hold is not None:
            self._left, hold, self._hold = self._hold.masks, self._hold, None
            hold.release()
        return self.model

    def state_dict(self) -> dict[str, Tensor]:
        """Masks, dense weights, the step and the state of chance, as tensors by name."""
        hold = self._attached()
        state = {f"mask.{name}": mask for name, mask in hold.masks.items()}
        state |= {f"dense.{name}": tensor.clone() for name, tensor in hold.dense.items() if name not in self._hard}
        state |= {f"update.{name}": tensor for name, tensor in self.rule.memory().items()}
        return state | {"steps": torch.tensor(self.steps), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`. Load the model's own weights before. Raises `InputError` if it does not fit."""
        hold = self._attached()
        masks = {key.removeprefix("mask."): item for key, item in state.items() if key.startswith("mask.")}
        dense = {key.removeprefix("dense."): item for key, item in state.items() if key.startswith("dense.")}
        wanted = set(hold.masks)
        if set(masks) != wanted or set(dense) != wanted - self._hard:
            raise InputError(
                explain(
                    "The state belongs to another sparsifier",
                    evidence=f"masks: {len(masks)} in the state, {len(wanted)} here; dense weights: {len(dense)}",
                    next_step="build it with the arguments of before",
                )
            )
        hold.restore(dense)
        hold.put(masks)
        self.steps = int(state["steps"])
        self.rule.recall(
            {key.removeprefix("update."): item for key, item in state.items() if key.startswith("update.")}
        )
        self._generator.set_state(state["generator"].cpu())
        self._prepare()

    def __enter__(self) -> Sparsifier:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.detach()
        except InputError:
            if kind is None:
                raise
        for message in self._doubts() if kind is None else []:
            warnings.warn(message, stacklevel=2)

    def _doubts(self) -> list[str]:
        """What somebody would want to know who takes the model as it is now."""
        found = []
        if not self.settled():
            found.append(
                explain(
                    "The sparsity has not reached what its schedule ends with",
                    evidence=f"{self.sparsity:.1%} zeros after {self.steps} calls of step(); {self.schedule}",
                    next_step="call step() after every optimizer step, and end the schedule before the training does",
                )
            )
        return [*found, *nothing_left(self.masks)]

    def _prepare(self) -> None:
        """See to it that the next update finds what it needs."""
        wanted = self.rule.needs_gradients and self.spec is not None and self.schedule.due(self.steps + 1)
        if self._hold is not None and wanted != self._hold.watching:
            self._hold.watch(wanted)

    def _attached(self) -> Hold:
        if self._hold is None:
            raise InputError(explain("The sparsifier is detached", next_step="call attach() first"))
        return self._hold


def sparsify(
    model: nn.Module,
    sparsity: Target | ByLayer[Target] | Masks | None = None,
    *,
    mode: str = "hard",
    schedule: Schedule | None = None,
    update: Update | None = None,
    pattern: str | Pattern = "weight",
    importance: str | Importance | None = None,
    scope: str = "layer",
    distribution: str = "uniform",
    exclude: Iterable[str | type] = (),
    only: Iterable[str | type] | None = None,
    within: Mapping[str, Tensor] | None = None,
    hold_zeros: bool = False,
    data: Iterable[Any] | None = None,
    loss: str | Loss = "cross_entropy",
    batches: int | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """Put zeros into `model` itself, and hold them while it is trained by whatever loop.

        with sec.sparsify(model, 0.9):
            train(model)

    `sparsity` is what `masks` takes, with the other arguments of the same names; or masks themselves. The zeros are in
    place when this returns and stay after `detach()`. State-dict keys and parameter objects stay as they are. An
    importance that looks at `data` does so whenever masks are computed, in eval mode, at the weights of then.

    `mode="hard"`: value, gradient, momentum and weight decay are exactly zero where the mask is, under any optimizer of
    `torch.optim`; second moments of Adam are too in `optimizer.state_dict()` and after `detach()` (on a CPU those of
    large weights are 2^-100 in between). `mode="dense-update"`: the model computes with `W * mask` and the gradient
    changes all of W, so that weights come back when the masks are computed anew. See `Hold` for both.

    What is zero in `within`, masks of before, stays zero, and so does with `hold_zeros` every zero that the layers'
    weights have now: together with `sparsity` to prune further, without it to train a pruned model as it is. `within`
    may have masks of parameters that `only` or `exclude` leave out: they are held as in mode `"hard"`, whatever the
    mode and the update do to the others, as where one part of a network is treated after another. Two sparsifiers on
    different parameters of one model do the same; both need their `step()`.

    `schedule` is when masks are computed and how sparse they are then: `OneShot()` (the default: now), `Iterative`,
    `Gradual`, `Constant`; a `Threshold` with a `start` moves along with `Gradual`. Call `step()` of the result after
    every optimizer step. `update` is how: by importance, or another `Update`.

    Raises `InputError` for arguments that contradict each other or a model that is held already, `UnknownNameError`.
    """
    if mode not in MODES:
        raise InputError(explain(f"mode={mode!r} cannot be used", next_step=f"give one of {', '.join(MODES)}"))
    if isinstance(sparsity, Mapping) and any(isinstance(item, Tensor) for item in sparsity.values()):
        given: Masks = {name: item for name, item in sparsity.items() if isinstance(item, Tensor)}
        if schedule is not None or update is not None or len(given) < len(sparsity):
            raise InputError(
                explain("Masks are given, so nothing is left to compute", next_step="leave out schedule and update")
            )
        return Sparsifier(model, given, mode=mode, seed=seed)
    _check_kind("schedule", schedule, Schedule, "Gradual(begin=0, end=1000)")
    _check_kind("update", update, Update, "Surgery(c=1.0)")
    weights = layer_weights(model, exclude=exclude, only=only)
    before = _before(model, weights, within, hold_zeros)
    returning = mode == "dense-update" or update is not None
    if update is not None and update.decides and sparsity is None:
        sparsity = 0.0
    if before and sparsity is None and not parse_pattern(pattern).decides:
        if schedule is not None:
            raise InputError(explain("There is no sparsity for the schedule", next_step="give `sparsity`, too"))
        _check_held(before, before if returning else (), mode, update)
        return Sparsifier(model, before, mode=mode, seed=seed)
    spec = Spec(sparsity, pattern, importance, scope, distribution, options or {})  # type: ignore[arg-type]
    check_read(spec.measure, data)
    evidence = Evidence(model, data, loss, batches, check_seed(seed))
    if data is None and needs_data(spec.measure):
        raise missing_data(spec.measure)
    if update is not None:
        update.check(spec, mode, schedule)
    targets = spec.targets(weights)
    if schedule is None or not schedule.moves:
        check_still(targets.values())
    beside = bias_names(model, targets) if update is not None and update.masks_biases else {}
    _check_held(before, (*targets, *beside.values()) if returning else (), mode, update)
    start = {
        name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in (*targets, *beside.values())
    } | before
    return Sparsifier(
        model, start, mode=mode, hard=before, spec=spec, targets=targets, schedule=schedule, update=update,
        evidence=evidence, seed=seed,
    )  # fmt: skip


def _check_kind(name: str, given: object, kind: type, example: str) -> None:
    if given is not None and not isinstance(given, kind):
        raise InputError(explain(f"{name}={given!r} cannot be used", next_step=f"give an object: {name}=sec.{example}"))


def _check_held(before: Masks, returning: Collection[str], mode: str, update: Update | None) -> None:
    """Raises `InputError` for masks of before where masked weights come back."""
    both = [name for name in before if name in returning]
    if both:
        raise InputError(
            explain(
                f"Zeros of before cannot be held in `{both[0]}`",
                evidence=f"mode={mode!r}, update={update!r}: masked weights come back",
                next_step='use mode="hard" without an update, or leave the layer out by `only` or `exclude`',
            )
        )


def _before(
    model: nn.Module, weights: Mapping[str, LayerWeight], within: Mapping[str, Tensor] | None, zeros: bool
) -> Masks:
    """The masks to begin with; none where nothing of before is to be held."""
    parameters = model.named_parameters(remove_duplicate=False)
    check_masks(within or {}, {name: tuple(item.shape) for name, item in parameters})
    found = {name: mask.clone() for name, mask in (within or {}).items()}
    if zeros:
        for name, item in weights.items():
            kept = item.tensor != 0
            found[name] = found[name].to(kept.device) & kept if name in found else kept
    return found


__all__ = ["Sparsifier", "sparsify"]
