"""`secateurs sparsify`: zeros that stay in place, with or without training; the weights, and what is zero."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import secateurs as sec
from secateurs.base.errors import InputError, explain
from secateurs.base.files import write_folder
from secateurs.capture.copying import copied
from secateurs.cli.arguments import AsJson, Exclude, Factory, Seed, Weights, build_model, existing
from secateurs.cli.console import NOT_MET, progress, show, show_json
from secateurs.cli.running import function, loader
from secateurs.deliver.tensors import write_state
from secateurs.pack.ledger import Ledger
from secateurs.report.sensitivity import CHANNEL, Sensitivity
from secateurs.report.sparsity import sparsity_report, sparsity_tables
from secateurs.sparsity.settings import Sparsity
from secateurs.train.evaluate import checked_metric

WEIGHTS, REPORT = "model.safetensors", "sparsity.json"
SCHEDULES = ("one-shot", "gradual")
HELD = Sparsity(hold_zeros=True)
REACHED = "75%"
"""The part of a gradual training after which the final sparsity holds."""

WHAT, AFTER, RUN = "What becomes zero", "What follows", "The run"


def sparsify(
    context: typer.Context,
    model: Factory,
    weights: Weights = None,
    sparsity: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of the groups that becomes zero, such as 0.9.", rich_help_panel=WHAT),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Instead: a table of `secateurs sensitivity --out`; each layer gets what it bears.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="What --targets may cost each layer alone; else the table's.", rich_help_panel=WHAT),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which weights go together; see `secateurs list patterns`. Default: weight, or that of --targets.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What counts as small: l1, l2, rms, mean.", rich_help_panel=WHAT),
    ] = None,
    scope: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="layer: every layer alike; global: one ranking of all layers.", rich_help_panel=WHAT
        ),
    ] = "layer",
    distribution: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="uniform, or erk: small layers stay denser (scope layer).", rich_help_panel=WHAT
        ),
    ] = "uniform",
    exclude: Exclude = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="CODE", help="package.module:loader, training batches (inputs, target).", rich_help_panel=AFTER
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of fine-tuning on --data, zeros held; 0 for none.", rich_help_panel=AFTER)
    ] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate of fine-tuning.", rich_help_panel=AFTER)] = 0.01,
    schedule: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"one-shot: zeros before training; gradual: more and more until {REACHED} of it.",
            rich_help_panel=AFTER,
        ),
    ] = "one-shot",
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="CODE", help="package.module:function, (model) -> float, higher is better.", rich_help_panel=AFTER
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Exit 1 when the metric ends lower than before by more than this.", rich_help_panel=AFTER),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help=f"Write {WEIGHTS} (the original's keys) and {REPORT} here.", rich_help_panel=RUN
        ),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Keep training here; the same command goes on after a crash.", rich_help_panel=RUN
        ),
    ] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Make weights zero, in any pattern; exits 1 when more of the metric goes than --max-drop allows, 2 if refused."""
    _check(context, epochs, data, evaluate, max_drop, schedule)
    share, form = _wanted(sparsity, targets, tolerance, pattern)
    asked = Sparsity(
        share, pattern=form, importance=importance, scope=scope, distribution=distribution, exclude=tuple(exclude or ())
    )
    config = None
    if epochs:
        held = replace(asked, schedule=sec.Gradual(0, REACHED)) if schedule == "gradual" else HELD
        config = sec.FineTune(epochs=epochs, lr=lr, sparsity=held, seed=seed, progress=not json)
    with progress(quiet=json) as stage:
        stage("build")
        network = build_model(model, weights, seed)
        original = copied(network, {})
        judge = _Judge(function(evaluate), stage)
        judge("original", network)
        network, names = _made(network, asked, config, loader(data), judge, checkpoints)
        stage("pack")
        ledger = _packed(network, original)
        report = {
            "model": model, "asked": _plain(asked), **sparsity_report(network, names, ledger, judge.metric),
            "met": max_drop is None or judge.drop <= max_drop,
        }  # fmt: skip
        if out is not None:
            stage("save")
            _save(network, report, out)
    show_json(report) if json else show([*sparsity_tables(report), *_ending(out, max_drop, judge.drop)])
    if not report["met"]:
        raise typer.Exit(NOT_MET)


class _Judge:
    """The metric by stage, if there is one."""

    def __init__(self, evaluate: Callable[[nn.Module], float] | None, stage: Callable[[str], None]) -> None:
        self.evaluate, self.stage = evaluate, stage
        self.metric: dict[str, float] = {}

    def __call__(self, name: str, network: nn.Module) -> None:
        if self.evaluate is not None:
            self.stage(f"evaluate: {name}")
            self.metric[name] = checked_metric(self.evaluate, network, name)

    @property
    def drop(self) -> float:
        """By how much the last metric is lower than the first."""
        values = list(self.metric.values())
        return values[0] - values[-1] if values else 0.0


def _made(
    network: nn.Module,
    asked: Sparsity,
    config: sec.FineTune | None,
    data: Any,
    judge: _Judge,
    checkpoints: str | None,
) -> tuple[nn.Module, list[str]]:
    """The sparse network, which may be the one given, and the names of the weights that were to lose something."""
    names: list[str] = []
    if config is None or config.sparsity == HELD:
        judge.stage("sparsify")
        with sec.sparsify(
            network, asked.sparsity, pattern=asked.pattern, importance=asked.importance, scope=asked.scope,
            distribution=asked.distribution, exclude=asked.exclude,
        ) as held:  # fmt: skip
            names = list(held.masks)
        judge("sparse", network)
    if config is None:
        return network, names
    judge.stage("fine-tune")
    result = sec.finetune(network, data, config, folder=checkpoints)
    judge("fine-tuned", result.model)
    return result.model, names or list(result.masks or {})


def _packed(network: nn.Module, original: nn.Module) -> Ledger:
    """Every byte of the packed file, and what gzip makes of the weights; the file is gone."""
    with tempfile.TemporaryDirectory() as folder:
        return sec.pack(network, Path(folder) / "model.sec", gzip=True, original=original)


def _save(network: nn.Module, report: dict[str, Any], out: str) -> None:
    """The folder, whole or not at all. Zeros are +0.0."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.0)  # -0.0 + 0.0 is +0.0
    with write_folder(out) as place:
        write_state(network, place / WEIGHTS)
        (place / REPORT).write_text(dumps(report, indent=1) + "\n")


def _wanted(
    sparsity: float | None, targets: str | None, tolerance: float | None, pattern: str | None
) -> tuple[Any, str]:
    """What each layer is to lose, and the pattern. Raises `InputError` for options that contradict each other."""
    if targets is None:
        if tolerance is not None:
            raise _idle("--tolerance", "--targets", "add --targets FILE, a table of `secateurs sensitivity --out`")
        return sparsity, pattern or "weight"
    if sparsity is not None:
        raise InputError(
            explain("Both --sparsity and --targets are given", next_step="give one share for all, or the table")
        )
    table = Sensitivity.from_json(existing(targets).read_text())
    if table.pattern == CHANNEL or pattern not in (None, table.pattern):
        raise InputError(
            explain(
                "The table is of another pattern",
                where=targets,
                evidence=f"it is of {table.pattern!r}" + ("" if pattern is None else f", and --pattern is {pattern!r}"),
                next_step="scan with the pattern that you want; channels go with `secateurs prune`",
            )
        )
    found = table.targets(tolerance)
    if not found:
        raise InputError(
            explain(
                "No layer bears any loss within this tolerance",
                where=targets,
                evidence=f"tolerance {table.tolerance if tolerance is None else tolerance}",
                next_step="allow more with --tolerance",
            )
        )
    return found, table.pattern


def _check(
    context: typer.Context, epochs: int, data: str | None, evaluate: str | None, max_drop: float | None, schedule: str
) -> None:
    """An option that nothing would use is refused, not ignored."""
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if schedule not in SCHEDULES:
        raise InputError(explain(f"--schedule {schedule!r} cannot be used", next_step=f"one of {', '.join(SCHEDULES)}"))
    if epochs and data is None:
        raise InputError(explain("There is no data to train on", next_step="add --data package.module:loader"))
    for name in ("data", "lr", "schedule", "checkpoints"):
        if name in given and not epochs:
            raise _idle(f"--{name}", "--epochs", "add --epochs, or leave it out")
    if max_drop is not None and evaluate is None:
        raise _idle("--max-drop", "--evaluate", "add --evaluate package.module:function")


def _idle(option: str, without: str, next_step: str) -> InputError:
    return InputError(
        explain("An option has nothing to act on", evidence=f"{option} without {without}", next_step=next_step)
    )


def _plain(asked: Sparsity) -> dict[str, Any]:
    share = asked.sparsity
    return {
        "sparsity": dict(share) if isinstance(share, Mapping) else share, "pattern": str(asked.pattern),
        "importance": asked.importance, "scope": asked.scope, "distribution": asked.distribution,
        "exclude": list(asked.exclude),
    }  # fmt: skip


def _ending(out: str | None, max_drop: float | None, drop: float) -> list[str]:
    """Where the weights are, and whether the metric held."""
    lines = []
    if max_drop is not None:
        lines.append(
            f"The metric ended {drop:.4f} lower: {'within' if drop <= max_drop else 'NOT within'} {max_drop:g}."
        )
    if out is not None:
        lines.append(f"Weights in {Path(out) / WEIGHTS}, this report in {Path(out) / REPORT}.")
    return lines
