"""`secateurs measure`: how long a model takes on a runtime, or how much faster an artifact is than its original."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from secateurs.cli.arguments import AsJson, Inputs, OptionalFactory, Seed, Weights, build_model, load_subject
from secateurs.cli.console import progress, show, show_json
from secateurs.device import compare
from secateurs.device import measure as time_one


def measure(
    artifact: Annotated[
        str | None,
        typer.Argument(metavar="ARTIFACT", help="Folder written by `secateurs prune --out`; else --model itself."),
    ] = None,
    model: OptionalFactory = None,
    weights: Weights = None,
    input: Inputs = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="Runtime; see `secateurs list devices`.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds; each times every model once.")] = 30,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Time one run. With an artifact and --model, both are timed in the same rounds and compared."""
    options: dict[str, Any] = {"device": device, "threads": threads, "rounds": rounds, "seed": seed}
    with progress(quiet=json) as stage:
        stage("load")
        subject = load_subject(artifact, model, weights, input)
        stage("measure")
        if artifact is not None and model is not None:
            models = {"before": build_model(model, weights), "after": subject.model}
            both = compare(models, subject.args, kwargs=subject.kwargs, **options)
            found: Any = both.comparison("after", "before")
        else:
            found = time_one(subject.model, subject.args, kwargs=subject.kwargs, **options)
    show_json(found.to_dict()) if json else show([str(found)])
