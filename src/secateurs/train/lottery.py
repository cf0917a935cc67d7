"""`lottery`: is there a small network inside a large one that, from its own initial weights, trains as well?

Frankle, Carbin: The Lottery Ticket Hypothesis, 2019 (1803.03635); late rewinding: Frankle et al. 2019 (1903.01611).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.batches import Batches, derive
from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.seeds import check_seed, seeded
from secateurs.sparsity.masks import density
from secateurs.sparsity.remaining import prune_remaining, shuffled
from secateurs.sparsity.spec import SCOPES, Masks
from secateurs.sparsity.weights import layer_weights
from secateurs.train import checkpoint
from secateurs.train.config import FineTune
from secateurs.train.evaluate import checked_metric, mean_loss
from secateurs.train.stages import Evaluate, Stages

JOURNAL = "lottery.jsonl"
TICKET, REINIT, RANDOM_MASK = "ticket", "reinit", "random_mask"
CONTROLS = (REINIT, RANDOM_MASK)


@dataclass(frozen=True)
class Draw:
    """One training: of a ticket (round 0: the dense network) or of a control, with the share of weights it keeps.

    `stop` is the early-stopping iteration: the step of the lowest validation loss, `loss`, looked at after each epoch;
    `metric` is the metric there, `metric_end` that after the last step.
    """

    seed: int
    round: int
    kind: str
    kept: float
    stop: int
    loss: float
    metric: float
    metric_end: float


@dataclass(frozen=True)
class Lottery:
    """What became of each ticket and control, and the tickets themselves.

    `masks[seed][r]` are the masks of round r, each within those of the round before; `starts[seed]` are the parameters
    and buffers that were rewound to.
    """

    draws: tuple[Draw, ...]
    masks: Mapping[int, tuple[Masks, ...]]
    starts: Mapping[int, Mapping[str, Tensor]]
    model: nn.Module

    def ticket(self, round: int, seed: int | None = None) -> nn.Module:
        """The ticket of a round (0: dense), untrained: weights that stay as rewound to, bit for bit, the rest +0.0.

        `seed` is the first one if None. Raises `InputError` for a round or a seed that was not drawn.
        """
        key = next(iter(self.masks)) if seed is None else seed
        if key not in self.masks or round not in range(len(self.masks[key])):
            last = len(next(iter(self.masks.values()))) - 1
            evidence = f"seeds {', '.join(map(str, self.masks))}; rounds 0 to {last}"
            raise InputError(explain(f"There is no ticket of round {round!r} and seed {key!r}", evidence=evidence))
        return _rewound(self.model, self.starts[key], self.masks[key][round])

    def of(self, kind: str, round: int) -> tuple[Draw, ...]:
        """The draws of one kind (`"ticket"`, `"reinit"`, `"random_mask"`) in one round, a seed each.

        Raises `UnknownNameError` for another kind; empty where it was not drawn.
        """
        if kind not in (TICKET, *CONTROLS):
            close = nearest(kind, (TICKET, *CONTROLS))
            step = f"did you mean {close[0]!r}?" if close else f"ask for {', '.join((TICKET, *CONTROLS))}"
            raise UnknownNameError(explain(f"There is no draw of the kind {kind!r}", next_step=step))
        return tuple(draw for draw in self.draws if (draw.kind, draw.round) == (kind, round))

    def __str__(self) -> str:
        lines = [
            f"{'round':>5}  {'kept':>6}  {'network':<12} {'stop at':>20}  {'metric there':>24}  {'at the end':>10}"
        ]
        for kind, number in dict.fromkeys((draw.kind, draw.round) for draw in self.draws):
            mine = self.of(kind, number)
            name = "dense" if number == 0 else kind
            steps, metrics = [draw.stop for draw in mine], [draw.metric for draw in mine]
            stop = f"{mean(steps):.0f} ({min(steps)}-{max(steps)})"
            metric = f"{mean(metrics):.4f} ({min(metrics):.4f}-{max(metrics):.4f})"
            end = mean(draw.metric_end for draw in mine)
            lines.append(f"{number:>5}  {mine[0].kept:>6.1%}  {name:<12} {stop:>20}  {metric:>24}  {end:>10.4f}")
        return "\n".join(lines)


def lottery(
    model: nn.Module,
    data: Iterable[Any],
    *,
    train: FineTune,
    validation: Iterable[Any],
    evaluate: Evaluate,
    rounds: int,
    rate: float = 0.2,
    output_rate: float | None = None,
    output: str | None = None,
    scope: str = "layer",
    rewind_to: int = 0,
    controls: Sequence[str] = CONTROLS,
    control_rounds: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    init: Callable[[nn.Module], Any] | None = None,
    exclude: Sequence[str | type] = (),
    only: Sequence[str | type] | None = None,
    folder: str | os.PathLike[str] | None = None,
    on_draw: Callable[[Draw], None] | None = None,
) -> Lottery:
    """Train, prune `rate` of each layer's remaining weights, rewind the rest, and again; the model is not changed.

    `model` is untrained. Each round trains with its masks held, as `train` says, from the weights of step `rewind_to`
    of the dense training (0: the initial ones; else late rewinding); optimizer and learning rates start anew. The
    smallest trained weights go: of the layer named `output` (default: the model's last one) only `output_rate`
    (default: half of `rate`). `scope="global"` ranks all layers in one row, for deep networks. Biases and norms are
    rewound, not pruned. `exclude` and `only` choose layers.

    After every epoch the loss on `validation` decides about early stopping in hindsight; what is reported is
    `evaluate(model)` (higher is better; test accuracy, say) of the weights of that epoch. `FineTune(batches=100)` looks
    every 100 steps.

    `controls`: `"reinit"`, the same masks on new random weights; `"random_mask"`, as many weights of every layer at
    random places, from the same start. They are trained after `control_rounds` (None: every round from 1).

    The first of `seeds` starts from the weights as they are, the others from new ones, by `init(model)` in place or, by
    default, every module's `reset_parameters()`. The seed also orders the data.

    With a `folder`, a run that is killed goes on where it was when the same call is made again, on a CPU to the same
    bits. `on_draw` is called after each training.

    Raises `InputError` for arguments that cannot be used, and what `finetune` raises.
    """
    rates = _rates(model, rate, output_rate, output, scope, exclude, only)
    per_epoch = _steps_per_epoch(data, train)
    _check(train, rounds, rewind_to, per_epoch, controls, control_rounds, seeds)
    chosen = range(1, rounds + 1) if control_rounds is None else control_rounds
    stages = Stages(model, data, evaluate, folder)
    stages.identify(
        JOURNAL, train=train.identity(), rates=rates, scope=scope, rewind_to=rewind_to, rounds=rounds,
        seeds=list(seeds), init=None if init is None else getattr(init, "__qualname__", repr(init)),
    )  # fmt: skip
    search = _Search(
        stages, train, validation, rates, scope == "global", rewind_to, per_epoch, init or _reset, on_draw
    )  # fmt: skip
    masks: dict[int, tuple[Masks, ...]] = {}
    starts: dict[int, Mapping[str, Tensor]] = {}
    for number, seed in enumerate(seeds):
        initial = copy.deepcopy(model) if number == 0 else search.fresh(model, derive(seed, "init"))
        masks[seed], starts[seed] = search.run(initial, seed, rounds, controls, chosen)
    return Lottery(tuple(search.draws), masks, starts, copy.deepcopy(model))


@dataclass
class _Search:
    """What every seed's search needs; `draws` fills up."""

    stages: Stages
    config: FineTune
    validation: Iterable[Any]
    rates: Mapping[str, float]
    together: bool
    rewind_to: int
    per_epoch: int
    init: Callable[[nn.Module], Any]
    on_draw: Callable[[Draw], None] | None

    def __post_init__(self) -> None:
        self.draws: list[Draw] = []
        measure = mean_loss(self.validation, self.config.loss)
        self.minus_loss: Evaluate = lambda model: -measure(model)

    def run(
        self, initial: nn.Module, seed: int, rounds: int, controls: Sequence[str], chosen: Sequence[int]
    ) -> tuple[tuple[Masks, ...], Mapping[str, Tensor]]:
        """The masks of all rounds and what was rewound to."""
        parameters = dict(initial.named_parameters())
        found: list[Masks] = [{name: torch.ones_like(parameters[name], dtype=torch.bool) for name in self.rates}]
        start, trained = self.draw(initial, seed, 0, TICKET, found[0])
        for number in range(1, rounds + 1):
            found.append(prune_remaining(trained, found[-1], self.rates, together=self.together))
            _, trained = self.draw(_rewound(initial, start, found[-1]), seed, number, TICKET, found[-1])
            for kind in controls if number in chosen else ():
                chance = derive(seed, kind, number)
                if kind == REINIT:
                    model, masks = self.fresh(initial, chance), found[-1]
                    model = _rewound(model, checkpoint.model_tensors(model), masks)
                else:
                    masks = shuffled(found[-1], chance)
                    model = _rewound(initial, start, masks)
                self.draw(model, seed, number, kind, masks)
        return tuple(found), start

    def draw(
        self, model: nn.Module, seed: int, number: int, kind: str, masks: Masks
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Train and note a row. Returns the weights to rewind to, if this is the dense network, and the last ones."""
        place = f"seed-{seed}/round-{number:02}-{kind}"
        config = replace(self.config, seed=seed, keep="best")
        dense = number == 0
        result = self.stages.train(
            place, model, config, evaluate=self.minus_loss, masks=None if dense else masks,
            snapshot=self.rewind_to if dense else None,
        )  # fmt: skip
        assert result.best_epoch is not None
        assert result.last is not None
        stop = result.best_epoch * self.per_epoch
        loss = -float(result.history[result.best_epoch - 1].metric or 0.0)

        def row() -> dict[str, Any]:
            twin = copy.deepcopy(result.model)
            reached = checked_metric(self.stages.evaluate, twin, place)
            checkpoint.load_model(twin, result.last or {}, "")
            end = checked_metric(self.stages.evaluate, twin, place)
            return asdict(Draw(seed, number, kind, density(masks), stop, loss, reached, end))

        draw = Draw(**self.stages.once(place, row))
        self.draws.append(draw)
        if self.on_draw is not None:
            self.on_draw(draw)
        return result.snapshot or {}, result.last

    def fresh(self, model: nn.Module, seed: int) -> nn.Module:
        """A copy with new random weights."""
        twin = copy.deepcopy(model)
        with seeded(seed), torch.no_grad():
            self.init(twin)
        return twin


def _rewound(model: nn.Module, state: Mapping[str, Tensor], masks: Masks) -> nn.Module:
    """A copy with these parameters and buffers where the masks keep them, and +0.0 elsewhere."""
    twin = copy.deepcopy(model)
    checkpoint.load_model(twin, state, "")
    with torch.no_grad():
        for name, mask in masks.items():
            twin.get_parameter(name).masked_fill_(~mask, 0.0)
    return twin


def _reset(model: nn.Module) -> None:
    """New random weights everywhere. Raises `InputError` for a module that cannot draw its own."""
    for name, module in model.named_modules():
        renew = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if renew is not None:
            renew()
        elif list(module.parameters(recurse=False)):
            raise InputError(
                explain(
                    f"`{name}` cannot draw new random weights",
                    evidence=f"{type(module).__name__} has parameters and no `reset_parameters`",
                    next_step="pass `init=`, a function that fills a model in place",
                )
            )


def _rates(
    model: nn.Module,
    rate: float,
    output_rate: float | None,
    output: str | None,
    scope: str,
    exclude: Sequence[str | type],
    only: Sequence[str | type] | None,
) -> dict[str, float]:
    """The share of its remaining weights that each layer loses in a round."""
    names = list(layer_weights(model, exclude=exclude, only=only))
    given = [rate] if output_rate is None else [rate, output_rate]
    if not all(0 < share < 1 for share in given):
        raise InputError(explain(f"rates {given} cannot be used", next_step="give shares above 0 and below 1"))
    if scope not in SCOPES or (scope == "global" and (output_rate is not None or output is not None)):
        raise InputError(
            explain(
                f"scope={scope!r} cannot be used" + (" with a rate for the output layer" if scope in SCOPES else ""),
                next_step="give 'layer', or 'global' with one rate",
            )
        )
    if scope == "global":
        return dict.fromkeys(names, rate)
    last = list(layer_weights(model))[-1] if output is None else _output(output, names)
    own = rate / 2 if output_rate is None else output_rate
    return {name: own if name == last else rate for name in names}


def _output(output: str, names: Sequence[str]) -> str:
    for name in (output, f"{output}.weight"):
        if name in names:
            return name
    close = nearest(output, names)
    raise UnknownNameError(
        explain(
            f"There is no weight named {output!r}",
            where="output",
            next_step=f"did you mean {close[0]!r}?" if close else f"one of {', '.join(names)}",
        )
    )


def _steps_per_epoch(data: Iterable[Any], train: FineTune) -> int:
    batches = Batches(data, limit=train.batches, seed=train.seed)
    batches.close()
    return batches.length


def _check(
    train: FineTune,
    rounds: int,
    rewind_to: Any,
    per_epoch: int,
    controls: Sequence[str],
    control_rounds: Sequence[int] | None,
    seeds: Sequence[int],
) -> None:
    steps = train.epochs * per_epoch
    problem = ""
    if train.sparsity is not None or train.soft is not None or train.distil is not None:
        problem = "`train` has a sparsity, `soft` or `distil`; leave it out"
    elif isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1 or train.epochs < 1:
        problem = "give at least one round and one epoch"
    elif isinstance(rewind_to, bool) or not isinstance(rewind_to, int) or not 0 <= rewind_to <= steps:
        problem = f"rewind_to={rewind_to!r}; give a step from 0 to {steps}"
    elif isinstance(controls, str) or not set(controls) <= set(CONTROLS):
        problem = f"controls={controls!r}; give a list of some of {', '.join(CONTROLS)}"
    elif control_rounds is not None and not set(control_rounds) <= set(range(1, rounds + 1)):
        problem = f"control_rounds={control_rounds!r}; give a list of rounds from 1 to {rounds}"
    elif not seeds or len(set(seeds)) < len(seeds):
        problem = "give one or more different seeds"
    if problem:
        raise InputError(explain("This lottery cannot be drawn", evidence=problem))
    for seed in seeds:
        check_seed(seed)


__all__ = ["CONTROLS", "Draw", "Lottery", "lottery"]
