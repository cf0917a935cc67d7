"""One model against the clock, in a process of its own: the worker of the speed benchmark.

    python -m benchmarks.speed_trial race resnet50 9     both sides in turn, nine rounds
    python -m benchmarks.speed_trial alone swin_t 3      ours only
    python -m benchmarks.speed_trial peer swin_t         Torch-Pruning only, once
    python -m benchmarks.speed_trial depth 1000          ours on a chain of 1,000 layers; also `width`, `square`

Prints one line of JSON. Seconds come twice: on the wall clock and of this process's own CPU time, which other programs
on the machine do not stretch. Models are built and copied outside the timing, garbage is collected before it, and
PyTorch's cache of abstract results is emptied before each of our runs, so that no run lives on an earlier one.
"""

from __future__ import annotations

import copy
import gc
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.speed_models import GROWTH, MODELS, SIZES, Case
from secateurs.capture.trace import capture
from secateurs.choose.budget import Budget
from secateurs.choose.choose import choose
from secateurs.couple.couple import couple
from secateurs.cut.cut import apply, prove
from secateurs.score import score

KEPT_CHANNELS = 0.5
STAGES = ("capture", "couple", "score", "choose", "cut")
PEER_STAGES = ("graph", "step")


class Clock:
    """Seconds by stage, each as `[wall, cpu]`."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add what the block takes to a stage."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = self.seconds.setdefault(stage, [0.0, 0.0])
            spent[0] = round(spent[0] + time.perf_counter() - wall, 6)
            spent[1] = round(spent[1] + time.process_time() - cpu, 6)

    def move(self, stage: str, out_of: str) -> None:
        """Take what one stage took out of another that it ran inside."""
        self.seconds[out_of] = [round(a - b, 6) for a, b in zip(self.seconds[out_of], self.seconds[stage], strict=True)]


def ours(case: Case, model: nn.Module) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every stage and what came out. `check` and `prove` make up the proof."""
    FakeTensorMode.cache_clear()
    reset_peak()
    clock = Clock()
    with clock.time("capture"):
        graph = capture(model, case.args, kwargs=case.kwargs)
    with clock.time("couple"):
        groups = couple(graph)
    with clock.time("score"):
        scores = score(groups, model, "l1")
    with clock.time("choose"):
        plan = choose(graph, groups, scores, Budget(channels=KEPT_CHANNELS))
    with _checks_timed(clock), clock.time("cut"):
        made = apply(model, plan, case.args, case.kwargs, groups=groups)
    clock.move("check", out_of="cut")
    peak = memory("VmHWM")
    with clock.time("prove"):
        result = prove(model, plan, case.args, case.kwargs, made)
    facts = {
        "nodes": len(graph.nodes),
        "form": result.form,
        "params_left": round(plan.after["params"] / plan.before["params"], 4),
        "macs_left": round(plan.after["macs"] / plan.before["macs"], 4),
        "difference": result.proof.worst,
        "peak_mib": peak,
        "peak_with_proof_mib": memory("VmHWM"),
    }
    return clock.seconds, facts


@contextmanager
def _checks_timed(clock: Clock) -> Iterator[None]:
    """While active, the stage `check` holds what a cut spends on capturing its result again and comparing graphs."""
    room = importlib.import_module("secateurs.cut.cut")
    kept = {name: getattr(room, name) for name in ("capture", "compare")}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with clock.time("check"):
                return function(*args, **kwargs)

        return call

    for name, function in kept.items():
        setattr(room, name, timed(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(room, name, function)


def peer(case: Case, model: nn.Module) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds that Torch-Pruning takes for its graph and for its step on a copy of the model, and what came out."""
    import torch_pruning

    pruned = copy.deepcopy(model)
    ignored = [pruned.get_submodule(name) for name in case.last_layers]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
    gc.collect()
    clock = Clock()
    with clock.time("graph"):
        pruner = torch_pruning.pruner.BasePruner(
            pruned,
            case.kwargs or case.args,
            importance=importance,
            pruning_ratio=1 - KEPT_CHANNELS,
            ignored_layers=ignored,
            forward_fn=lambda net, data: net(**data) if case.kwargs else net(*data),
        )
    with clock.time("step"):
        pruner.step()
    before, after = (sum(item.numel() for item in net.parameters()) for net in (model, pruned))
    return clock.seconds, {"params_left": round(after / before, 4), "runs": _runs(pruned, case)}


def _runs(model: nn.Module, case: Case) -> str:
    """Empty if the model runs on the inputs, else why not."""
    try:
        with torch.no_grad():
            model(*case.args, **case.kwargs)
    except Exception as error:  # noqa: BLE001 - whatever the peer leaves behind is its result
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def race(name: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn, the first one changing every round, after a run of each that does not count."""
    case, facts = MODELS[name], {}
    model = case.build()
    sides = {"ours": ours, "peer": peer}
    warm = MODELS[case.warm_up] if case.warm_up else case
    warm_model = warm.build() if case.warm_up else model
    for run in sides.values():
        run(warm, warm_model)
    seconds: list[dict[str, Any]] = []
    for turn in range(rounds):
        row: dict[str, Any] = {}
        for side in sorted(sides, reverse=bool(turn % 2)):
            row[side], facts[side] = sides[side](case, model)
        seconds.append(row)
    return {"model": name, "rounds": seconds, **facts}


def alone(case: Case, rounds: int, warm_up: Case | None = None) -> dict[str, Any]:
    """Ours only, after one run that does not count; memory is that of the last one."""
    model = case.build()
    ours(warm_up or case, warm_up.build() if warm_up else model)
    gc.collect()
    base = memory("VmRSS")
    runs = [ours(case, model) for _ in range(rounds)]
    return {"rounds": [{"ours": seconds} for seconds, _ in runs], "ours": runs[-1][1], "base_mib": base}


def memory(field: str) -> int | None:
    """Resident memory of this process in MiB, now (`VmRSS`) or at its highest (`VmHWM`); None where unknown."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(field)), None)


def reset_peak() -> None:
    """Forget the highest memory so far, where the system can."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main() -> None:
    task, name, rounds = [*sys.argv[1:], "3"][:3]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    if task == "race":
        result = race(name, int(rounds))
    elif task == "alone":
        result = {"model": name, **alone(MODELS[name], int(rounds))}
    elif task == "peer":
        seconds, facts = peer(MODELS[name], MODELS[name].build())
        result = {"model": name, "seconds": seconds, **facts}
    else:
        case = GROWTH[task](int(name))
        weights = sum(item.numel() for item in case.build().parameters())
        smallest = GROWTH[task](SIZES[task][0])
        result = {"curve": task, "size": int(name), "weights": weights, **alone(case, int(rounds), smallest)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
