"""Do two runs of a model give the same numbers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateurs.base.errors import DeviceError, explain
from secateurs.device.call import describe


def check_agreement(expected: Mapping[str, Tensor], got: Sequence[Tensor], *, runtime: str, tolerance: float) -> float:
    """The largest difference between the module's outputs and those of `runtime`, in the outputs' own units.

    A floating-point output may differ by `tolerance`, or by that fraction of its largest magnitude if that is above 1;
    nan and infinity must be in the same places. Integers and booleans must be equal.

    Raises `DeviceError` naming the first output that differs and by how much.
    """
    if len(expected) != len(got):
        raise DeviceError(
            explain(
                f"{runtime} returns another number of outputs than the module",
                evidence=f"the module returns {', '.join(expected)}; {runtime} returns {len(got)} tensors",
                next_step="return each tensor once",
            )
        )
    return max(_difference(*pair, other, runtime, tolerance) for pair, other in zip(expected.items(), got, strict=True))


def _difference(name: str, expected: Tensor, got: Tensor, runtime: str, tolerance: float) -> float:
    expected, got = expected.detach().cpu(), got.detach().cpu()
    if expected.is_complex() and not got.is_complex():
        expected = torch.view_as_real(expected)
    if expected.shape != got.shape:
        raise _disagree(name, runtime, f"the module gives {describe(expected)}, {runtime} gives {describe(got)}")
    if not expected.numel():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        wrong = int((expected != got).sum())
        if wrong:
            raise _disagree(name, runtime, f"{wrong} of {expected.numel()} integers differ")
        return 0.0
    return _float_difference(name, _as_double(expected), _as_double(got), runtime, tolerance)


def _float_difference(name: str, expected: Tensor, got: Tensor, runtime: str, tolerance: float) -> float:
    finite = torch.isfinite(expected)
    same = torch.equal(torch.nan_to_num(expected[~finite]), torch.nan_to_num(got[~finite]))
    if not torch.equal(finite, torch.isfinite(got)) or not same:
        raise _disagree(name, runtime, "nan or infinity is not in the same places")
    if not finite.any():
        return 0.0
    worst = float((expected[finite] - got[finite]).abs().max())
    largest = float(expected[finite].abs().max())
    if worst > tolerance * max(1.0, largest):
        raise _disagree(
            name,
            runtime,
            f"largest difference {worst:.3g}, allowed {tolerance * max(1.0, largest):.3g} "
            f"(tolerance {tolerance:g}, largest magnitude {largest:.3g})",
        )
    return worst


def _as_double(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()


def _disagree(name: str, runtime: str, evidence: str) -> DeviceError:
    return DeviceError(
        explain(
            f"{runtime} gives other numbers than the module",
            where=f"output `{name}`",
            evidence=evidence,
            next_step="raise the tolerance if this difference does not matter to you; otherwise look for randomness "
            "or control flow on data in `forward`, and do not use this runtime's result",
        )
    )
