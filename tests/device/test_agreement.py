"""When two runs count as the same, by value."""

import pytest
import torch
from torch import Tensor

from secateurs.base.errors import DeviceError
from secateurs.device.agreement import check_agreement

NAN, INF = float("nan"), float("inf")


def check(expected: Tensor, got: Tensor, tolerance: float = 1e-3) -> float:
    return check_agreement({"logits": expected}, [got], runtime="Other", tolerance=tolerance)


def test_returns_the_largest_difference() -> None:
    assert check(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0005, 3.0])) == pytest.approx(5e-4, rel=1e-3)


def test_tolerance_grows_with_the_largest_magnitude_above_one() -> None:
    assert check(torch.tensor([100.0, 0.0]), torch.tensor([100.0, 0.09])) == pytest.approx(0.09)
    with pytest.raises(DeviceError, match=r"Where: output `logits`.*largest difference 0.11, allowed 0.1 "):
        check(torch.tensor([100.0, 0.0]), torch.tensor([100.0, 0.11]))
    with pytest.raises(DeviceError, match=r"largest difference 0.002, allowed 0.001 "):
        check(torch.tensor([0.01]), torch.tensor([0.012]))


def test_integers_and_booleans_must_be_equal() -> None:
    assert check(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0
    with pytest.raises(DeviceError, match="1 of 2 integers differ"):
        check(torch.tensor([1, 2]), torch.tensor([1, 3]))
    with pytest.raises(DeviceError, match="1 of 1"):
        check(torch.tensor([True]), torch.tensor([False]))


def test_values_that_are_not_finite_must_be_in_the_same_places() -> None:
    odd = torch.tensor([NAN, INF, -INF, 1.0])
    assert check(odd, odd.clone()) == 0
    for place, value in ((0, INF), (1, -INF), (2, 0.0), (3, NAN)):
        other = odd.clone()
        other[place] = value
        with pytest.raises(DeviceError, match="same places"):
            check(odd, other)


def test_shapes_and_counts_must_match() -> None:
    with pytest.raises(DeviceError, match=r"\(2,\).*\(1, 2\)"):
        check(torch.ones(2), torch.ones(1, 2))
    with pytest.raises(DeviceError, match="another number of outputs"):
        check_agreement({"a": torch.ones(1)}, [], runtime="Other", tolerance=1)


def test_empty_complex_and_half_outputs() -> None:
    assert check(torch.ones(0, 3), torch.ones(0, 3)) == 0
    assert check(torch.tensor([1 + 2j]), torch.tensor([[1.0, 2.0]])) == 0
    assert check(torch.tensor([1 + 2j]), torch.tensor([1 + 2j])) == 0
    assert check(torch.tensor([0.1]).half(), torch.tensor([0.1]).half()) == 0
