"""One model of the zoo through Torch-Pruning, in a process of its own: the yardstick of the coverage benchmark.

Half of the channels, magnitude importance, the layers that make the class scores left alone, no other help. The report
is that of `benchmarks.trial`, with these statuses:

right      runs, gives the original's shapes, and equals the original whose consumers were masked by hand
unchecked  runs and gives the original's shapes; a norm over channels or a layer of its own kind forbids the comparison
wrong      gives other shapes or other numbers
nothing    no channel was removed
crashed    an exception, on pruning or when the pruned model runs
"""

from __future__ import annotations

import copy
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import masking, oracle
from benchmarks.trial import KEPT_CHANNELS, Report, peak_memory
from benchmarks.zoo.entry import Entry, Inputs
from benchmarks.zoo.index import find

NORMS_OVER_CHANNELS = ("LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")


def run(entry: Entry, report: Report) -> None:
    """Prune a copy of the model and judge it."""
    report.stage("build")
    model, inputs = entry.build()
    report.facts(input=str(inputs), params=sum(parameter.numel() for parameter in model.parameters()))
    started = time.process_time()
    try:
        status, reason = _attempt(model, inputs, report)
    except Exception as error:  # noqa: BLE001 - whatever happens to a model is its result
        status, reason = "crashed", f"{type(error).__name__}: {error}"
        report.facts(trace=traceback.format_exc()[-4000:])
    report.facts(cpu_s=round(time.process_time() - started, 3), peak_mib=peak_memory(), status=status, reason=reason)


def _attempt(model: nn.Module, inputs: Inputs, report: Report) -> tuple[str, str]:
    import torch_pruning as tp

    pruned = copy.deepcopy(model)
    masks = _Masks(pruned)
    report.stage("graph")
    pruner = tp.pruner.BasePruner(
        pruned,
        inputs.kwargs or inputs.args,
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=1 - KEPT_CHANNELS,
        ignored_layers=_last_layers(pruned, inputs),
        forward_fn=_forward(inputs),
    )
    report.stage("step")
    for group in pruner.step(interactive=True):
        masks.note(group)
        group.prune()
    report.stage("check")
    verdict = oracle.Verdict()
    oracle.compare_shapes(model, pruned, inputs, verdict)
    before, after = (sum(item.numel() for item in net.parameters()) for net in (model, pruned))
    report.facts(params_left=round(after / before, 4), macs_left=verdict.facts["flops_left"], form="native")
    if after == before:
        return "nothing", "no channel was removed"
    if not verdict.complaint and not masks.why_not:
        oracle.compare(model, masks.masked(model), pruned, inputs, verdict)
    report.facts(**verdict.facts)
    if verdict.complaint:
        return "wrong", verdict.complaint
    return ("unchecked", masks.why_not) if masks.why_not else ("right", "")


def _forward(inputs: Inputs) -> Callable[[nn.Module, Any], Any]:
    return lambda model, data: model(**data) if inputs.kwargs else model(*data)


def _last_layers(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The layers that a user would name by hand: those whose output is a tensor that the model returns."""
    made: dict[int, nn.Module] = {}
    handles = [
        module.register_forward_hook(lambda module, args, output: made.__setitem__(_place(output), module))
        for module in model.modules()
        if type(module) in masking.CONSUMED_DIM
    ]
    results, _ = oracle.run(model, inputs)
    for handle in handles:
        handle.remove()
    return [made[_place(result)] for result in results if _place(result) in made]


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Masks:
    """Which inputs of which layers went, in the original's indices, while groups are pruned one after the other."""

    def __init__(self, model: nn.Module) -> None:
        self.why_not = ""
        self._names = {module: name for name, module in model.named_modules()}
        self._left: dict[str, list[int]] = {}
        self._gone: dict[str, list[int]] = {}

    def note(self, group: Any) -> None:
        """Take in a group that is about to be pruned."""
        gone: dict[nn.Module, set[int]] = {}
        for dependency, indices in group:
            module = dependency.target.module
            if any(norm in type(module).__name__ for norm in NORMS_OVER_CHANNELS):
                self.why_not = f"normalises over channels: {type(module).__name__}"
            elif isinstance(module, nn.Parameter):
                self.why_not = self.why_not or "prunes a parameter outside any layer"
            elif type(module) in masking.CONSUMED_DIM and "in_channels" in dependency.handler.__name__:
                gone.setdefault(module, set()).update(int(index) for index in indices)
        for module, positions in gone.items():
            self._remove(module, positions)

    def _remove(self, module: nn.Module, positions: set[int]) -> None:
        name = self._names[module]
        dim = masking.CONSUMED_DIM[type(module)]
        left = self._left.setdefault(name, list(range(module.weight.shape[dim])))
        self._gone.setdefault(name, []).extend(left[position] for position in positions if position < len(left))
        self._left[name] = [index for position, index in enumerate(left) if position not in positions]

    def masked(self, original: nn.Module) -> nn.Module:
        """A copy of the original with those inputs set to zero."""
        copied = copy.deepcopy(original)
        for name, indices in self._gone.items():
            layer = copied.get_submodule(name)
            with torch.no_grad():
                layer.weight.index_fill_(masking.CONSUMED_DIM[type(layer)], torch.tensor(indices), 0.0)
        return copied


def main() -> None:
    suite, name, path = sys.argv[1:]
    torch.set_num_threads(1)
    run(find(suite, name), Report(Path(path)))


if __name__ == "__main__":
    main()
