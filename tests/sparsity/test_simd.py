"""SIMD-aware weight pruning: importance, tails, and the storage format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sec
from secateurs.base.errors import InputError
from secateurs.pack.index import ENCODINGS, Mask
from secateurs.sparsity import GroupedWeight, parse_pattern
from secateurs.sparsity.importance import rms
from secateurs.sparsity.layout import Layout
from secateurs.sparsity.simd_matrix import SimdMatrix, csr_bits, simd_bits
from secateurs.sparsity.weights import layer_weights


def importance(*values: float, width: int) -> list[float]:
    grouping = parse_pattern(f"simd({width})").groups((1, len(values)))
    return rms(GroupedWeight("w", torch.tensor(values, dtype=torch.float64), grouping)).tolist()


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def kept(weight: Tensor, threshold: float, width: int) -> Tensor:
    target = sec.Threshold("value", threshold)
    return sec.masks(linear(weight), target, pattern=f"simd({width})")["weight"]


def random_weight(seed: int, *shape: int, zeros: float = 0.6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < zeros, 0.0, weight)


def test_importance_is_the_root_of_the_mean_square():
    assert importance(0.3, 0.4, width=2) == pytest.approx([0.353553], abs=1e-6)


def test_a_tail_counts_its_real_weights_only():
    assert importance(0.3, 0.4, 0.3, 0.4, 0.3, width=4) == pytest.approx([0.353553, 0.3], abs=1e-6)


def test_a_group_stays_if_it_reaches_the_threshold_and_tails_may_go():
    weight = torch.tensor([[0.25, 0.25, 0.25], [0.5, 0.0, 0.24]])
    assert kept(weight, 0.25, 2).tolist() == [[True, True, True], [True, True, False]]


@given(st.integers(0, 1000), st.floats(0, 2))
def test_width_one_is_magnitude_pruning(seed: int, threshold: float):
    weight = random_weight(seed, 5, 7, zeros=0.0)
    by_weight = sec.masks(linear(weight), sec.Threshold("value", threshold))["weight"]
    assert torch.equal(kept(weight, threshold, 1), by_weight)
    assert torch.equal(by_weight, weight.double().abs() >= threshold)


def test_rising_thresholds_prune_within_what_is_left():
    weight, masks = random_weight(3, 6, 21, zeros=0.0), None
    counts = []
    for threshold in (0.5, 0.8, 1.1):
        masks = sec.masks(linear(weight), sec.Threshold("value", threshold), pattern="simd(4)", within=masks)
        counts.append(int(masks["weight"].sum()))
        assert torch.equal(masks["weight"], kept(weight, threshold, 4))
        weight = weight * masks["weight"]
    assert counts[0] > counts[1] > counts[2] > 0


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 6), st.integers(1, 20))
def test_the_format_gives_the_weight_back_bit_for_bit(seed: int, width: int, rows: int, columns: int):
    weight = random_weight(seed, rows, columns)
    stored = SimdMatrix.of(weight, width)
    assert torch.equal(stored.dense(), weight)
    assert stored.values.shape == (len(stored.starts), width)
    assert not (stored.starts % width).any()
    assert stored.pointers[0] == 0
    assert stored.pointers[-1] == len(stored.starts)


def test_the_arrays_by_hand_and_a_tail_is_padded_with_zeros():
    """Three columns in groups of two: rows of one, of no and of both groups."""
    stored = SimdMatrix.of(torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0], [1.0, 2.0, 5.0]]), 2)
    assert stored.values.tolist() == [[3, 0], [1, 2], [5, 0]]
    assert (stored.starts.tolist(), stored.pointers.tolist()) == ([2, 0, 2], [0, 1, 1, 3])


def test_what_the_mask_takes_out_of_a_group_that_stays_is_zero():
    weight, mask = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[True, False, False, False]])
    stored = SimdMatrix.of(weight, 2, mask=mask)
    assert stored.dense().tolist() == [[1, 0, 0, 0]]
    assert stored.matvec(torch.ones(4)).tolist() == [1]
    assert weight.tolist() == [[1, 2, 3, 4]]


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 6), st.integers(1, 20))
def test_the_product_with_a_vector_is_the_dense_one(seed: int, width: int, rows: int, columns: int):
    weight = random_weight(seed, rows, columns).double()
    x = torch.randn(columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(SimdMatrix.of(weight, width).matvec(x), weight @ x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.Conv1d(5, 3, 2)],
)
def test_convolutions_are_rows_of_what_one_output_reads(layer: nn.Module):
    found = layer_weights(layer)["weight"]
    masks = sec.masks(layer, 0.5, pattern="simd(4)")
    sec.sparsify(layer, masks).detach()
    stored = SimdMatrix.of(found.tensor, 4, mask=masks["weight"], layout=found.layout)
    assert torch.equal(stored.dense(), found.tensor)
    groups = parse_pattern("simd(4)").groups(tuple(found.tensor.shape), found.layout)
    assert len(stored.starts) == int(groups.kept(masks["weight"]).sum())
    assert len(stored.pointers) - 1 == 4 if isinstance(layer, nn.Conv2d) else len(stored.pointers) > 1


def test_a_group_of_kept_zeros_is_stored():
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, True]])
    assert SimdMatrix.of(weight, 2, mask=mask).starts.tolist() == [0, 2]
    assert SimdMatrix.of(weight, 2).starts.tolist() == [0]


def test_bits_of_the_format_and_of_sparse_rows():
    """8 of 10 rows of 16 weights: one group each, of 8; 16-bit weights and indices, 32-bit pointers."""
    assert simd_bits(8, 10, 8, weight=16, index=16, pointer=32) == 8 * (8 * 16 + 16) + 11 * 32
    assert csr_bits(64, 10, weight=16, index=16, pointer=32) == 64 * 32 + 11 * 32
    assert simd_bits(64, 10, 1) == csr_bits(64, 10)


def test_storage_of_lenets_first_layer():
    """784 inputs, 300 neurons, every eighth of the 29,400 groups kept: 3675 * (8 * 32 + 32) + 301 * 32 bits."""
    weight = torch.zeros(300, 98, 8)
    weight.flatten(0, 1)[::8] = 1
    stored = SimdMatrix.of(weight.reshape(300, 784), 8)
    assert stored.bits() == 3675 * 288 + 301 * 32 == 1_068_032
    assert csr_bits(3675 * 8, 300) == 1_891_232
    assert stored.bits() / (300 * 784 * 32) == pytest.approx(0.1419, abs=1e-4)


@given(st.integers(0, 1000), st.sampled_from([2, 4, 8]))
def test_the_packed_file_says_the_same(seed: int, width: int):
    """The index encoding `groups` of the packed file, on the same mask."""
    mask = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask = mask.repeat_interleave(width, 1)[:, : 4 * width - 1]
    stored = SimdMatrix.of(mask.float(), width, mask=mask)
    index = ENCODINGS["groups"].encode(Mask.of(mask.numpy()), (width,))
    pointers, places = (np.asarray(field.numbers) for field in index.fields)
    assert pointers.tolist() == stored.pointers.tolist()
    assert (places * width).tolist() == stored.starts.tolist()


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(InputError, match="k=0 cannot be used"):
        SimdMatrix.of(torch.ones(2, 4), 0)
    with pytest.raises(InputError, match="The mask does not fit the weight"):
        SimdMatrix.of(torch.ones(2, 4), 2, mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="is not a weight"):
        SimdMatrix.of(torch.ones(3, 4), 2, layout=Layout(groups=2))
    with pytest.raises(InputError, match="is not a weight"):
        SimdMatrix.of(torch.ones(3), 2)
