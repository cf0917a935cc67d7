"""`secateurs sparsify`: zeros that stay in place, with or without training; the weights, and what is zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

import secateurs as sec
from secateurs.base.errors import InputError, explain
from secateurs.base.files import check_folder
from secateurs.capture.copying import copied
from secateurs.cli.arguments import (
    AsJson,
    Checkpoints,
    Data,
    Evaluate,
    Exclude,
    Factory,
    Inputs,
    Seed,
    Weights,
    build_model,
    given,
    parse_options,
)
from secateurs.cli.console import NOT_MET, progress, show, show_json
from secateurs.cli.running import function, loader
from secateurs.cli.sparsifying import (
    HELD,
    REPORT,
    WEIGHTS,
    Judge,
    captured,
    idle,
    made,
    packed,
    plain,
    save,
    tidy,
    training,
    wanted,
)
from secateurs.cost.effective import effective_of
from secateurs.report.sensitivity import ROUNDING
from secateurs.report.sparsity import sparsity_report, sparsity_tables
from secateurs.sparsity.measured import reads_data
from secateurs.sparsity.schedules import Schedule
from secateurs.sparsity.settings import Sparsity
from secateurs.sparsity.updates import Update

T = TypeVar("T")

REACHED = "75%"
"""The part of a training after which zeros neither come nor move."""

SCHEDULES: dict[str, Schedule | None] = {
    "one-shot": None,
    "gradual": sec.Gradual(0, REACHED),
    "iterative": sec.Iterative("15%", 5),
}
REGROWTHS: dict[str, Update] = {
    "random": sec.RandomRegrowth(REACHED),
    "gradient": sec.GradientRegrowth(REACHED),
}
TURNS = sec.Constant(0, REACHED, "2%")
"""When weights change places."""

FASTER = (
    "Zeros among weights make the file smaller, and no network faster by themselves: `secateurs prune` removes "
    "channels, `sec.remove_dead` what zeros left without effect, and `sec.scalpel_plan` says which zeros help where."
)
WHAT, AFTER, RUN = "What goes", "What follows", "The run"


def sparsify(
    context: typer.Context,
    model: Factory,
    weights: Weights = None,
    inputs: Inputs = None,
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
        typer.Option(
            metavar="NAME",
            help="What counts as small: l1, l2, rms, mean, random; by --data: obd, taylor, taylor_weights.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Option of the importance, such as diagonal=hutchinson. Repeatable.",
            rich_help_panel=WHAT,
        ),
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
    data: Data = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of fine-tuning on --data, zeros held; 0 for none.", rich_help_panel=AFTER)
    ] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate of fine-tuning.", rich_help_panel=AFTER)] = 0.01,
    l1: Annotated[
        float,
        typer.Option(
            "--l1",
            min=0,
            metavar="STRENGTH",
            help="L1 on weight matrices and kernels, such as 1e-5: more weights near zero.",
            rich_help_panel=AFTER,
        ),
    ] = 0.0,
    l2: Annotated[
        float,
        typer.Option(
            "--l2",
            min=0,
            metavar="STRENGTH",
            help="L2 (weight decay), such as 5e-4: the better choice where training follows the zeros.",
            rich_help_panel=AFTER,
        ),
    ] = 0.0,
    schedule: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"one-shot: zeros before training; gradual: more and more until {REACHED} of it; iterative: in five "
            "rounds, each trained, the last for 40%.",
            rich_help_panel=AFTER,
        ),
    ] = "one-shot",
    regrow: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Until {REACHED} of the training the smallest weights change places with others: random (SET), or "
            "those of the largest gradient (RigL).",
            rich_help_panel=AFTER,
        ),
    ] = None,
    evaluate: Evaluate = None,
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
    checkpoints: Checkpoints = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Make weights zero, in any pattern; exits 1 when more of the metric goes than --max-drop allows, 2 if refused."""
    _check(context, epochs, data, evaluate, max_drop, importance)
    share, form = wanted(sparsity, targets, tolerance, pattern)
    asked = Sparsity(
        share, pattern=form, importance=importance, scope=scope, distribution=distribution,
        exclude=tuple(exclude or ()), options=parse_options(option) if option else None,
    )  # fmt: skip
    config = None
    if epochs:
        config = sec.FineTune(
            epochs=epochs, lr=lr, weight_decay=l2, penalty=sec.Penalty(kind="l1", strength=l1) if l1 else None,
            sparsity=_during(asked, schedule, regrow), seed=seed, progress=not json,
        )  # fmt: skip
    if out is not None:
        check_folder(out, owns=(WEIGHTS, REPORT))
    with progress(quiet=json) as stage:
        stage("build")
        network = build_model(model, weights, seed)
        original = copied(network, {})
        judge = Judge(function(evaluate), stage)
        batches = loader(data)
        graph = captured(network, inputs, batches, seed)
        judge("original", network)
        network, names = made(network, asked, config, batches, judge, checkpoints, seed)
        tidy(network)
        stage("pack")
        ledger = packed(network, original)
        macs = None if graph is None else effective_of(graph, network)
        found = sparsity_report(network, names, ledger, judge.metric, macs)
        report = {
            "model": model, "weights_file": weights, "asked": {**plain(asked), "targets": targets},
            "data": data, "evaluate": evaluate, "seed": seed, "training": training(config, schedule, regrow), **found,
            "max_drop": max_drop, "met": max_drop is None or judge.drop <= max_drop + ROUNDING,
        }  # fmt: skip
        if out is not None:
            stage("save")
            save(network, report, out)
    show_json(report) if json else show([*sparsity_tables(report), *_ending(model, out, max_drop, judge.drop)])
    if not report["met"]:
        raise typer.Exit(NOT_MET)


def _during(asked: Sparsity, schedule: str, regrow: str | None) -> Sparsity:
    """What the training does with the zeros."""
    zeros = _known("--schedule", schedule, SCHEDULES)
    if regrow is None:
        return HELD if zeros is None else replace(asked, schedule=zeros)
    update = _known("--regrow", regrow, REGROWTHS)
    if zeros is not None:
        raise InputError(
            explain(
                "Weights change places while their count stays",
                evidence=f"--regrow {regrow} with --schedule {schedule}",
                next_step="give one of the two",
            )
        )
    return replace(asked, schedule=TURNS, update=update)


def _known(option: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise InputError(explain(f"{option} {name!r} cannot be used", next_step=f"give one of {', '.join(known)}"))
    return known[name]


def _check(
    context: typer.Context,
    epochs: int,
    data: str | None,
    evaluate: str | None,
    max_drop: float | None,
    importance: str | None,
) -> None:
    """An option that nothing would use is refused, not ignored."""
    names = given(context)
    if epochs and data is None:
        raise InputError(explain("There is no data to train on", next_step="add --data package.module:loader"))
    for name in ("data", "lr", "l1", "l2", "schedule", "regrow", "checkpoints"):
        if name in names and not epochs and not (name == "data" and importance is not None and reads_data(importance)):
            raise idle(f"--{name}", "--epochs", "add --epochs, or leave it out")
    if max_drop is not None and evaluate is None:
        raise idle("--max-drop", "--evaluate", "add --evaluate package.module:function")


def _ending(model: str, out: str | None, max_drop: float | None, drop: float) -> list[str]:
    """Whether the metric held, where the weights are, and what makes a small file of them."""
    lines = [FASTER]
    if max_drop is not None:
        lines.append(
            f"The metric ended {abs(drop):.4f} {'lower' if drop > 0 else 'higher'}: "
            f"{'within' if drop <= max_drop + ROUNDING else 'NOT within'} {max_drop:g}."
        )
    if out is None:
        lines.append("Nothing was written: --out FOLDER keeps the weights and this report.")
    else:
        lines.append(f"Weights in {Path(out) / WEIGHTS}, this report in {Path(out) / REPORT}.")
        lines.append(f"Next: `secateurs pack --model {model} --weights {Path(out) / WEIGHTS} --share 5 --out net.sec`")
    return lines
