"""One model of the zoo through capture, couple, score, choose and cut, in a process of its own.

`python -m benchmarks.trial SUITE NAME REPORT` appends JSON lines to REPORT: `{"stage": ...}` when a stage begins, so
that whoever kills this process knows where it was, and facts about the model as they become known. The last line has
`"status"`:

proven    cut, the library's proofs passed and so did the checks of `benchmarks.oracle`
refused   the library raised one of its own errors; the reason is kept
wrong     something was returned that the checks below disagree with, or the caller's model was changed
crashed   any other exception
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import oracle
from benchmarks.zoo.entry import Entry, Inputs
from benchmarks.zoo.index import find

KEPT_CHANNELS = 0.5


class Report:
    """Facts and stages, one JSON line each, flushed so that they survive a kill."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._stage = ""
        self._since = time.perf_counter()

    def stage(self, name: str) -> None:
        """End the running stage (its seconds become a fact) and begin this one."""
        now = time.perf_counter()
        if self._stage:
            self.facts(**{f"{self._stage}_s": round(now - self._since, 3)})
        self._stage, self._since = name, now
        self._write({"stage": name})

    def facts(self, **facts: Any) -> None:
        self._write(facts)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


def run(entry: Entry, report: Report) -> None:
    """All stages for one model; every outcome ends in a `status`."""
    report.stage("build")
    model, inputs = entry.build()
    report.facts(input=str(inputs), params=sum(parameter.numel() for parameter in model.parameters()))
    before, started = fingerprint(model), time.process_time()
    made, failure = _cut(model, inputs, report)
    report.facts(cpu_s=round(time.process_time() - started, 3))
    report.stage("untouched")
    untouched = fingerprint(model) == before
    report.stage("check")
    status, reason = failure or _check(model, made, inputs, report)
    report.stage("end")
    if not untouched:
        status, reason = "wrong", f"the caller's model was changed ({status}: {reason})"
    report.facts(untouched=untouched, peak_mib=peak_memory(), status=status, reason=reason)


def _cut(model: nn.Module, inputs: Inputs, report: Report) -> tuple[Any, tuple[str, str] | None]:
    """What the library makes of the model: (cut result, groups), or a status and its reason."""
    import secateurs as sec

    try:
        report.stage("capture")
        graph = sec.capture(model, inputs.args, kwargs=inputs.kwargs)
        report.stage("couple")
        groups = sec.couple(graph)
        report.facts(captured=graph.how, nodes=len(graph.nodes), **_group_facts(groups))
        report.stage("score")
        scores = sec.score(groups, model, "l1")
        report.stage("choose")
        plan = sec.choose(graph, groups, scores, sec.Budget(channels=KEPT_CHANNELS), search="uniform")
        if plan.empty:
            return None, ("refused", "nothing can be removed")
        report.facts(**_cost_facts(plan))
        report.stage("cut")
        result = sec.cut_detailed(model, plan, inputs.args, kwargs=inputs.kwargs, groups=groups)
        report.facts(form=result.form, why_graph=result.why_graph, **_proof_facts(result.proof))
        return (result, groups), None
    except Exception as error:  # noqa: BLE001 - whatever happens to a model is its result
        report.facts(trace=traceback.format_exc()[-4000:])
        status = "refused" if isinstance(error, sec.SecateursError) else "crashed"
        return None, (status, f"{type(error).__name__}: {error}")


def _check(model: nn.Module, made: Any, inputs: Inputs, report: Report) -> tuple[str, str]:
    """The benchmark's own judgement of what the library returned."""
    result, groups = made
    try:
        verdict = oracle.check(model, result.model, result.plan, groups, inputs, native=result.form == "native")
    except Exception as error:  # noqa: BLE001 - a cut model that does not run is a wrong one
        report.facts(trace=traceback.format_exc()[-4000:])
        return "wrong", f"the check failed: {type(error).__name__}: {error}"
    report.facts(**verdict.facts)
    return ("wrong", verdict.complaint) if verdict.complaint else ("proven", "")


def _group_facts(groups: Any) -> dict[str, Any]:
    """How many units are free and frozen, and the most common reasons, each with its count of units."""
    reasons: Counter[str] = Counter()
    for group in groups.frozen:
        reasons[group.frozen] += group.size
    return {
        "groups_free": len(groups.free),
        "groups_frozen": len(groups.frozen),
        "units_free": sum(group.size for group in groups.free),
        "units_frozen": sum(group.size for group in groups.frozen),
        "groups_inexact": sum(not group.exact for group in groups.free),
        "frozen_because": [f"{count} units: {reason}" for reason, count in reasons.most_common(5)],
    }


def _cost_facts(plan: Any) -> dict[str, float]:
    left = {metric: plan.after[metric] / max(1, plan.before[metric]) for metric in ("macs", "params")}
    return {f"{metric}_left": round(share, 4) for metric, share in left.items()}


def _proof_facts(proof: Any) -> dict[str, Any]:
    """What the library's own proof says about itself, whichever of these it states."""
    named = {"difference": "proof_difference", "worst": "proof_difference", "seconds": "proof_s"}
    return {fact: getattr(proof, name) for name, fact in named.items() if isinstance(getattr(proof, name, None), float)}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer, which are tied, who trains, and every plain attribute."""
    digest = hashlib.sha256()
    seen: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        first = seen.setdefault(id(tensor), name)
        digest.update(f"{name} {first} {tuple(tensor.shape)} {tensor.requires_grad}".encode())
        if first == name:
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str, tuple))}
        digest.update(f"{name} {type(module).__qualname__} {sorted(plain.items(), key=str)}".encode())
    return digest.hexdigest()


def peak_memory() -> int:
    """The most memory that this process held so far, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    return 0


def main() -> None:
    suite, name, path = sys.argv[1:]
    torch.set_num_threads(1)
    report = Report(Path(path))
    try:
        run(find(suite, name), report)
    except Exception as error:  # noqa: BLE001 - a model that cannot be built is a result as well
        reason = f"zoo: {type(error).__name__}: {error}"
        report.facts(status="crashed", reason=reason, trace=traceback.format_exc()[-4000:])


if __name__ == "__main__":
    main()
