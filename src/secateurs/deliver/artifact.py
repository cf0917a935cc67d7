"""The artifact: a folder that holds a result whole, without pickle.

model.safetensors   the tensors that are left
plan.json           which channels of the original went
recipe.yaml         the request
report.json         what it did, and what it takes to build the model again
graph.json          only for results in graph form: the program itself
manifest.json       size and SHA-256 of each of the above
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml
from torch import Tensor, nn

from secateurs._version import __version__
from secateurs.base.errors import ArtifactError, CaptureError, InputError, PlanError, ProofError, explain
from secateurs.base.files import check_folder, write_folder
from secateurs.base.seeds import seeded
from secateurs.capture import capture
from secateurs.capture.graph import Graph
from secateurs.choose.plan import Plan
from secateurs.couple import couple
from secateurs.cut import cut_detailed
from secateurs.cut.form import GraphModule
from secateurs.deliver import manifest as listing
from secateurs.deliver.inputs import rebuild
from secateurs.deliver.signature import call_difference, signature, tensor_difference
from secateurs.deliver.tensors import give_biases, load_into, read_state, write_state

FILES = (*listing.REQUIRED, listing.GRAPH, listing.NAME)
"""Every name that an artifact may hold."""


class Deliverable(Protocol):
    """What `save` needs of a result. `inputs` is what `deliver.inputs.describe` made of (args, kwargs), or None."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def form(self) -> str: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def graph(self) -> Graph: ...
    @property
    def inputs(self) -> Any: ...
    @property
    def recipe(self) -> Mapping[str, Any]: ...
    def report(self) -> dict[str, Any]: ...


def save(result: Deliverable, folder: str | os.PathLike[str]) -> Path:
    """Writes `result` as the artifact `folder`, which appears whole or not at all; an artifact there is replaced.

    Raises `WriteError` when the disk is full or `folder` holds anything that is not part of an artifact; what was there
    stays as it was, and `InputError` for anything that is not a result of `prune`.
    """
    if isinstance(result, nn.Module) or not hasattr(result, "report"):
        raise InputError(
            explain(
                "Only a result of `prune` can be saved",
                evidence=f"got a {type(result).__name__}",
                next_step="pass what sec.prune returned: the whole result, not result.model",
            )
        )
    again = {"inputs": result.inputs, "how": result.graph.how, "signature": signature(result.graph)}
    with write_folder(folder, owns=FILES) as partial:
        write_state(result.model, partial / listing.TENSORS)
        _write(partial / listing.PLAN, result.plan.to_json())
        _write(partial / listing.RECIPE, yaml.safe_dump(dict(result.recipe), sort_keys=False, allow_unicode=False))
        _write(partial / listing.REPORT, json.dumps({**result.report(), "again": again}, indent=1))
        if isinstance(result.model, GraphModule):
            _write(partial / listing.GRAPH, result.model.to_json())
        listing.write_manifest(partial, result.form, __version__)
    return Path(folder)


def check_place(folder: str | os.PathLike[str]) -> None:
    """Raises `WriteError` if `save` could not write there, so that a long run is not lost to a mistyped folder."""
    check_folder(folder, owns=FILES)


def load(
    folder: str | os.PathLike[str],
    build: Callable[[], nn.Module] | None = None,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model that was saved, bit for bit, in eval mode.

    `build` makes the model as it was before the cut (its weights do not matter): a class or a function without
    arguments. Results in graph form need none. `example_inputs` replaces the stored shapes and types; give it when the
    model's path depends on the values it is fed.

    Raises `ArtifactError` when the folder is truncated, altered, foreign or of an unknown format (checked before
    anything is parsed), or, naming the first difference, when `build` gives a model that the plan was not made for.
    """
    source = Path(folder)
    manifest = listing.verify(source)
    state = read_state(source / listing.TENSORS)
    if manifest.form == "graph":
        return _graph_module(source, state)
    if build is None:
        raise ArtifactError(
            explain(
                "This artifact needs the class it was made from",
                where=str(source),
                evidence="its form is native: tensors and a plan, no code",
                next_step="pass `build=MyNet` (--model package.module:MyNet), a class or function without arguments "
                "that gives the model before the cut",
            )
        )
    model = _replay(source, built(build), example_inputs, kwargs)
    give_biases(model, state)
    load_into(model, state, str(source))
    return model.eval()


def read_report(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """`report.json` of an artifact, after all its files were checked."""
    listing.verify(Path(folder))
    return _report(Path(folder))


def stored_inputs(folder: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """Made-up example inputs of the stored shapes and types, as (args, kwargs).

    Raises `ArtifactError` when the artifact does not have them.
    """
    listing.verify(Path(folder))
    return _inputs(Path(folder))


def read_plan(folder: str | os.PathLike[str]) -> Plan:
    """`plan.json` of an artifact, after all its files were checked."""
    source = Path(folder)
    listing.verify(source)
    return _plan(source)


def _write(path: Path, text: str) -> None:
    path.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """The model that a class or function makes, in eval mode. Raises `InputError` when it makes none."""
    if isinstance(build, nn.Module) or not callable(build):
        raise InputError(
            explain(
                "`build` is not a class or function",
                evidence=f"it is a `{type(build).__name__}`",
                next_step="pass the class itself, such as build=MyNet, or build=lambda: MyNet(width=64)",
            )
        )
    with seeded(0):
        model = build()
    if not isinstance(model, nn.Module):
        raise InputError(
            explain(
                "`build` did not give a model",
                evidence=f"it returned a `{type(model).__name__}`",
                next_step="pass a class or function without arguments that returns a torch.nn.Module",
            )
        )
    return model.eval()


def _replay(source: Path, model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None) -> nn.Module:
    """The plan of the artifact applied to a freshly built original."""
    plan, stored = _plan(source), _again(source).get("signature")
    if not isinstance(stored, dict):
        raise listing.refused(source / listing.REPORT, "it does not say what the original was")
    given = example_inputs
    if given is None:
        example_inputs, kwargs = _inputs(source)
    if difference := tensor_difference(stored, model):
        raise _misfit(source, difference)
    try:
        graph = capture(model, example_inputs, kwargs=dict(kwargs or {}))
        if graph.hash != plan.graph_hash:
            difference = call_difference(stored, graph)
            made_up = given is None and _again(source).get("how") == "recorded"
            raise _misfit(source, difference or f"graph hash {graph.hash[:12]}, saved {plan.graph_hash[:12]}", made_up)
        _check_indices(plan, graph)
        again = cut_detailed(model, plan, example_inputs, dict(kwargs or {}), groups=couple(graph, unit=plan.unit))
    except (PlanError, ProofError, CaptureError, InputError) as error:
        raise _misfit(source, str(error)) from error
    if again.form != "native":
        raise _misfit(source, f"its own classes could be cut when it was saved and cannot now: {again.why_graph}")
    return again.model


def _graph_module(source: Path, state: Mapping[str, Tensor]) -> nn.Module:
    try:
        text = (source / listing.GRAPH).read_text(encoding="utf-8")
        return GraphModule.from_json(text, state).eval()
    except (ArtifactError, UnicodeDecodeError) as error:
        raise listing.refused(source / listing.GRAPH, str(error)[:500], "The saved program cannot be used") from error


def _check_indices(plan: Plan, graph: Graph) -> None:
    """Raises `PlanError` unless the plan names tensors, dimensions and indices that the graph has."""
    shapes = {leaf.name: leaf.shape for leaf in graph.leaves}
    for name, dims in plan.removed.items():
        shape = shapes.get(name, ())
        for dim, indices in dims.items():
            if not 0 <= dim < len(shape) or not all(0 <= index < shape[dim] for index in indices):
                evidence = f"the tensor has shape {list(shape)}"
                raise PlanError(
                    explain(
                        "The plan removes what does not exist", where=f"`{name}`, dimension {dim}", evidence=evidence
                    )
                )


def _plan(source: Path) -> Plan:
    try:
        return Plan.from_json((source / listing.PLAN).read_text(encoding="utf-8"))
    except (PlanError, UnicodeDecodeError, RecursionError) as error:
        raise listing.refused(source / listing.PLAN, str(error)) from error


def _report(source: Path) -> dict[str, Any]:
    report = listing.read_json(source / listing.REPORT)
    if not isinstance(report, dict):
        raise listing.refused(source, f"report.json is a {type(report).__name__}")
    return report


def _again(source: Path) -> Mapping[str, Any]:
    """The part of the report that says how to build the model again."""
    again = _report(source).get("again")
    if not isinstance(again, dict):
        raise listing.refused(source, "report.json does not say how to build the model again")
    return again


def _inputs(source: Path) -> tuple[Any, dict[str, Any]]:
    inputs = _again(source).get("inputs")
    if inputs is None:
        raise ArtifactError(
            explain(
                "This artifact does not say what the model is fed",
                where=str(source),
                next_step="pass the example inputs that were used for the cut: `load(folder, build, example_inputs)`",
            )
        )
    try:
        args, kwargs = rebuild(inputs)
        return args, dict(kwargs)
    except (InputError, ValueError, TypeError) as error:
        raise listing.refused(source / listing.REPORT, str(error)) from error


def _misfit(source: Path, evidence: str, made_up: bool = False) -> ArtifactError:
    """`made_up`: the path through the model depends on its inputs, and only shapes and types of those are stored."""
    same_code = "pass as `build` the same code, with the same arguments, that made the model before the cut"
    same_inputs = "pass the example inputs of the cut as `example_inputs`: this model's path depends on their values"
    return ArtifactError(
        explain(
            "The class given does not fit the saved plan",
            where=str(source),
            evidence=evidence,
            next_step=same_inputs if made_up else same_code,
        )
    )
