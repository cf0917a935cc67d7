"""Sparsifying carried out: what is wanted, the network with its zeros, its sizes, and the files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateurs as sec
from secateurs.base.batches import device_of, first_inputs
from secateurs.base.errors import InputError, explain
from secateurs.base.files import write_folder
from secateurs.capture.graph import Graph
from secateurs.capture.trace import capture
from secateurs.cli.arguments import example_inputs, existing
from secateurs.cost.effective import captured_row
from secateurs.deliver.tensors import write_state
from secateurs.pack.baseline import TINY
from secateurs.pack.ledger import Ledger
from secateurs.report.sensitivity import CHANNEL, Sensitivity
from secateurs.sparsity.measured import reads_data
from secateurs.sparsity.settings import Sparsity
from secateurs.train.evaluate import checked_metric

WEIGHTS, REPORT = "model.safetensors", "sparsity.json"
HELD = Sparsity(hold_zeros=True)
"""Training that keeps the zeros it finds."""


class Judge:
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


def made(
    network: nn.Module,
    asked: Sparsity,
    config: sec.FineTune | None,
    data: Any,
    judge: Judge,
    checkpoints: str | None,
    seed: int,
) -> tuple[nn.Module, list[str]]:
    """The sparse network, which may be the one given, and the names of the weights that were to lose something."""
    names: list[str] = []
    if config is None or config.sparsity == HELD:
        judge.stage("sparsify")
        read = asked.importance is not None and reads_data(asked.importance)
        with sec.sparsify(
            network, asked.sparsity, pattern=asked.pattern, importance=asked.importance, scope=asked.scope,
            distribution=asked.distribution, exclude=asked.exclude, options=asked.options, seed=seed,
            data=data if read else None,
        ) as held:  # fmt: skip
            names = list(held.masks)
        judge("sparse", network)
    if config is None:
        return network, names
    judge.stage("fine-tune")
    result = sec.finetune(network, data, config, folder=checkpoints)
    judge("fine-tuned", result.model)
    return result.model, names or list(result.masks or {})


def packed(network: nn.Module, original: nn.Module) -> Ledger:
    """Every byte of the packed file, and what gzip makes of the weights; the file is gone."""
    with tempfile.TemporaryDirectory() as folder:
        return sec.pack(network, Path(folder) / "model.sec", gzip=True, original=original)


def captured(network: nn.Module, inputs: Sequence[str] | None, data: Any, seed: int) -> Graph | None:
    """The graph, to count MACs: on inputs of the shapes given, else on the first row of the data; None without both."""
    if inputs:
        args, kwargs = example_inputs(inputs, seed)
        return capture(network, args, kwargs=kwargs)
    if data is None:
        return None
    return captured_row(network, first_inputs(data, device_of(network), "to count MACs", seed=seed))


def training(config: sec.FineTune | None, zeros: str, regrow: str | None) -> dict[str, Any] | None:
    """How the zeros came and how it was trained, every number of it; None for no training."""
    return None if config is None else {"zeros": zeros, "regrow": regrow, **config.identity()}


def tidy(network: nn.Module) -> None:
    """Parameters as they are exported: zeros are +0.0, and so is what is below the smallest normal float32.

    Either would cost as much as any other number, in gzip and in the packed file.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter[parameter.abs() < TINY] = 0
                parameter.add_(0.0)  # -0.0 + 0.0 is +0.0, in half precision too, which has nothing below


def save(network: nn.Module, report: dict[str, Any], out: str) -> None:
    """The folder, whole or not at all."""
    with write_folder(out) as place:
        write_state(network, place / WEIGHTS)
        (place / REPORT).write_text(dumps(report, indent=1) + "\n")


def wanted(
    sparsity: float | None, targets: str | None, tolerance: float | None, pattern: str | None
) -> tuple[Any, str]:
    """What each layer is to lose, and the pattern. Raises `InputError` for options that contradict each other."""
    if targets is None:
        if tolerance is not None:
            raise idle("--tolerance", "--targets", "add --targets FILE, a table of `secateurs sensitivity --out`")
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


def idle(option: str, without: str, next_step: str) -> InputError:
    return InputError(
        explain("An option has nothing to act on", evidence=f"{option} without {without}", next_step=next_step)
    )


def plain(asked: Sparsity) -> dict[str, Any]:
    share = asked.sparsity
    return {
        "sparsity": dict(share) if isinstance(share, Mapping) else share, "pattern": str(asked.pattern),
        "importance": asked.importance, "scope": asked.scope, "distribution": asked.distribution,
        "options": dict(asked.options or {}), "exclude": list(asked.exclude),
    }  # fmt: skip
