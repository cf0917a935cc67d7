"""Checks of a cut model that use nothing of the library's own proof: plain PyTorch on the caller's original.

1. The cut model runs on the example inputs and returns the shapes that the original returns.
2. Its parameters have the original's shapes less `plan.removed` (native form).
3. It agrees with `benchmarks.masking.masked_original`: the original with the removed inputs of its linear layers and
   convolutions set to zero and its norms over the channels that stay. `masked` says when that could not be made, or
   proves nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.masking import NotApplicableError, masked_original
from benchmarks.zoo.entry import Inputs, tensors

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
MOST_PARAMETERS_IN_DOUBLE = 150_000_000


@dataclass
class Verdict:
    """`complaint` is empty when nothing disagrees; `facts` go into the row."""

    complaint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def check(original: nn.Module, cut: nn.Module, plan: Any, groups: Any, inputs: Inputs, *, native: bool) -> Verdict:
    """Run all three checks; the first that disagrees is the complaint."""
    verdict = Verdict()
    compare_shapes(original, cut, inputs, verdict)
    if not verdict.complaint and native:
        verdict.complaint = _wrong_parameter(original, cut, plan)
    if not verdict.complaint:
        _compare_masked(original, cut, plan, groups, inputs, verdict)
    return verdict


def compare_shapes(original: nn.Module, cut: nn.Module, inputs: Inputs, verdict: Verdict) -> None:
    """Add to the verdict whether `cut` runs and returns the original's shapes, and its share of operations."""
    expected, flops = run(original, inputs)
    found, flops_left = run(cut, inputs)
    verdict.facts["flops_left"] = round(flops_left / max(1, flops), 4)
    shapes = [tuple(item.shape) for item in expected], [tuple(item.shape) for item in found]
    if shapes[0] != shapes[1] and not _counts_depend_on_data(original):
        verdict.complaint = f"output shapes {shapes[1]} instead of {shapes[0]}"


def run(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], int]:
    """Outputs in order, and the floating-point operations as PyTorch counts them."""
    counter = FlopCounterMode(display=False)
    call = copy.deepcopy(inputs)
    with _nothing_trains(model), torch.no_grad(), counter:
        output = model(*call.args, **call.kwargs)
    return list(tensors(output)), counter.get_total_flops()


@contextmanager
def _nothing_trains(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient for a while: PyTorch's counter hooks backward passes that there are not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _counts_depend_on_data(model: nn.Module) -> bool:
    """True for detectors: how many boxes they return depends on the scores."""
    return hasattr(model, "roi_heads") or hasattr(model, "anchor_generator")


def _wrong_parameter(original: nn.Module, cut: nn.Module, plan: Any) -> str:
    """The first parameter whose shape is not the original's less what the plan removes; empty when all are right."""
    found = dict(cut.named_parameters())
    for name, parameter in original.named_parameters():
        shape = list(parameter.shape)
        for dim, indices in plan.removed.get(name, {}).items():
            shape[dim] -= len(indices)
        if name not in found:
            return f"parameter {name} is gone"
        if list(found[name].shape) != shape:
            return f"parameter {name} has shape {list(found[name].shape)} instead of {shape}"
    return ""


def _compare_masked(
    original: nn.Module, cut: nn.Module, plan: Any, groups: Any, inputs: Inputs, verdict: Verdict
) -> None:
    try:
        masked = masked_original(original, plan, groups)
    except NotApplicableError as reason:
        verdict.facts["masked"] = f"not applicable: {reason}"
        return
    compare(original, masked.model, cut, inputs, verdict)
    if verdict.complaint and masked.doubt:
        verdict.facts["masked"] = f"inconclusive ({verdict.complaint}): {masked.doubt}"
        verdict.complaint = ""


def compare(original: nn.Module, masked: nn.Module, cut: nn.Module, inputs: Inputs, verdict: Verdict) -> None:
    """Add to the verdict whether `cut` gives what `masked` gives: in single precision, and if not so, in double."""
    dtype = torch.float32
    difference, effect = _distances(original, masked, cut, inputs)
    parameters = sum(item.numel() for item in original.parameters())
    if difference > TOLERANCE[dtype] and parameters < MOST_PARAMETERS_IN_DOUBLE:
        dtype = torch.float64
        doubled = [copy.deepcopy(model).double() for model in (original, masked, cut)]
        difference, effect = _distances(*doubled, _double(inputs))
    verdict.facts |= {"masked": str(dtype).removeprefix("torch."), "masked_difference": difference, "effect": effect}
    if not difference <= TOLERANCE[dtype]:
        verdict.complaint = f"differs from the masked original by {difference:.1e} of the largest output ({dtype})"
    elif effect < 10 * TOLERANCE[torch.float64]:
        verdict.facts["masked"] = f"vacuous: the cut moved the output by {effect:.1e} only"


def _distances(original: nn.Module, masked: nn.Module, cut: nn.Module, inputs: Inputs) -> tuple[float, float]:
    """Largest |masked - cut| and largest |masked - original|, as shares of the largest |masked|, over float outputs."""
    runs = [_floats(model, inputs) for model in (original, masked, cut)]
    scale = max((float(item.abs().max()) for item in runs[1] if item.numel()), default=0.0) or 1.0
    return _worst(runs[1], runs[2]) / scale, _worst(runs[1], runs[0]) / scale


def _floats(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [item for item in run(model, inputs)[0] if item.is_floating_point()]


def _worst(left: list[Tensor], right: list[Tensor]) -> float:
    if [item.shape for item in left] != [item.shape for item in right]:
        return float("inf")
    return max((float((a - b).abs().max()) for a, b in zip(left, right, strict=True) if a.numel()), default=0.0)


def _double(tree: Any) -> Any:
    if isinstance(tree, Inputs):
        return Inputs(_double(tree.args), _double(tree.kwargs))
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: _double(item) for key, item in tree.items()}
    return type(tree)(_double(item) for item in tree) if isinstance(tree, (list, tuple)) else tree
