"""Linear integers by hand, by their bounds, and against a search that looks at every scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from train.networks import convolutional

from secateurs.base.errors import InputError, UnknownNameError
from secateurs.pack.chosen import with_coded
from secateurs.pack.coded import Coded, Scaled
from secateurs.pack.integers import quantise, quantise_weights

MATRICES = st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-4, 4, width=16))
)


def content(coded: Coded) -> Scaled:
    assert isinstance(coded.content, Scaled)
    return coded.content


def error(tensor: np.ndarray, coded: Coded, matter: np.ndarray | float = 1.0) -> float:
    return float((matter * (tensor.astype(np.float64) - coded.decode()) ** 2).sum())


def test_by_hand() -> None:
    tensor = torch.tensor([[7.0, -3.4, 0.0], [0.0, 0.0, 0.0], [-1.75, 0.125, 0.3]])
    found = quantise(tensor, 4, scale="max")
    assert content(found).scale.tolist() == [1.0, 1.0, 0.25]
    assert content(found).codes.tolist() == [7, -3, -7, 0, 1]  # 0.125 is half a step: to the even code
    assert found.decode().tolist() == [[7, -3, 0], [0, 0, 0], [-1.75, 0, 0.25]]
    whole = quantise(tensor, 4, axis=None, scale="max")
    assert content(whole).scale.tolist() == [1.0] and whole.decode().tolist() == [[7, -3, 0], [0, 0, 0], [-2, 0, 0]]


def test_along_another_axis() -> None:
    tensor = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    for axis in range(3):
        other = quantise(tensor.movedim(axis, 0), 5)
        assert (quantise(tensor, 5, axis=axis).decode() == np.moveaxis(other.decode(), 0, axis)).all()


@given(MATRICES, st.integers(2, 8), st.sampled_from([0, 1, None]))
def test_bounds(matrix: np.ndarray, bits: int, axis: int | None) -> None:
    tensor = torch.from_numpy(matrix)
    found, best = quantise(tensor, bits, axis=axis, scale="max"), quantise(tensor, bits, axis=axis, scale="mse")
    most = 2 ** (bits - 1) - 1
    for coded in (found, best):
        assert np.abs(content(coded).codes).max(initial=0) <= most
        assert (coded.decode()[matrix == 0] == 0).all() and coded.count == np.count_nonzero(matrix)
    other = 1 - axis if axis is not None else None
    largest = np.abs(matrix).max(axis=other, keepdims=True)
    assert (np.abs(matrix - found.decode()) <= largest / most * (0.5 + 1e-5)).all()
    assert error(matrix, best) <= error(matrix, found) * (1 + 1e-6)


@given(
    arrays(np.float64, 6, elements=st.floats(-1, 1)),
    arrays(np.float64, 6, elements=st.floats(0.1, 9)),
    st.integers(2, 4),
)
def test_the_search_comes_near_the_best_of_all_scales(row: np.ndarray, matter: np.ndarray, bits: int) -> None:
    row = row.astype(np.float32)
    found = quantise(torch.from_numpy(row), bits, axis=None, importance=torch.from_numpy(matter))
    most = 2 ** (bits - 1) - 1
    scales = np.linspace(1e-3, 1, 2000)[:, None] * np.abs(row).max() / most * 1.2
    steps = np.where(scales > 0, scales, 1.0)
    energy = (matter * row.astype(np.float64) ** 2).sum()
    every = (matter * (np.clip(np.rint(row / steps), -most, most) * steps - row) ** 2).sum(1).min()
    assert error(row, found, matter) <= every + 2e-3 * energy


def test_importance_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    tensor, matter = torch.randn(8, 100, generator=generator), torch.rand(8, 100, generator=generator) ** 8
    plain, weighted = quantise(tensor, 3), quantise(tensor, 3, importance=matter)
    assert error(tensor.numpy(), weighted, matter.numpy()) < 0.97 * error(tensor.numpy(), plain, matter.numpy())
    assert error(tensor.numpy(), weighted) > error(tensor.numpy(), plain)


def test_the_smallest_numbers_there_are() -> None:
    tensor = torch.tensor([[1e-45, -1e-45], [3e38, -3e38]])
    found = quantise(tensor, 8)
    assert np.isfinite(found.decode()).all()
    np.testing.assert_allclose(found.decode()[1], tensor[1].numpy(), rtol=1e-6)


def test_a_model() -> None:
    model = convolutional().eval()
    coded = quantise_weights(model, {"0": 4, "*": 8}).coded
    assert {name: content(item).bits for name, item in coded.items()} == {"0.weight": 4, "4.weight": 8, "8.weight": 8}
    assert {name: len(content(item).scale) for name, item in coded.items()} == {
        "0.weight": 6, "4.weight": 5, "8.weight": 3,
    }  # fmt: skip
    assert all(len(content(item).scale) == 1 for item in quantise_weights(model, per="tensor").coded.values())
    small = with_coded(model, coded)
    assert type(small) is type(model)
    for name, item in coded.items():
        assert (small.get_parameter(name).detach().numpy() == item.decode()).all()
    assert torch.equal(small[0].bias, model[0].bias) and small[0].bias is not model[0].bias


def test_half_precision_comes_back_in_its_dtype() -> None:
    model = convolutional().to(torch.bfloat16)
    small = with_coded(model, quantise_weights(model).coded)
    assert small[0].weight.dtype == torch.bfloat16
    assert (small[0].weight - model[0].weight).abs().max() < 0.01


def test_refusals() -> None:
    tensor = torch.ones(2, 2)
    for bits in (1, 9, True, 4.0):
        with pytest.raises(InputError):
            quantise(tensor, bits)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no axis 2"):
        quantise(tensor, axis=2)
    with pytest.raises(UnknownNameError, match="'max'"):
        quantise(tensor, scale="maxx")
    with pytest.raises(InputError, match="does not fit"):
        with_coded(convolutional(), {"0.weight": quantise(tensor)})
    with pytest.raises(UnknownNameError, match=r"0\.weight"):
        with_coded(convolutional(), {"0.weights": quantise(tensor)})


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 2)], ids=str)
@pytest.mark.parametrize("axis", [0, None])
def test_no_weights(shape: tuple[int, ...], axis: int | None) -> None:
    coded = quantise(torch.zeros(shape), 4, axis=axis)
    assert coded.decode().shape == shape
