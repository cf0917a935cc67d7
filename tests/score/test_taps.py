"""Activations sorted by sample and channel, wherever the dimensions lie."""

from __future__ import annotations

import itertools

import pytest
import torch

from secateurs.capture.program import BatchAxis
from secateurs.score.criterion import Tap

VALUE = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)


def tap(dim: int, *units: int) -> Tap:
    return Tap(0, dim, torch.tensor(units), (0,))


@pytest.mark.parametrize(("samples", "channels"), list(itertools.permutations(range(4), 2)))
def test_by_sample_in_any_order_of_dimensions(samples: int, channels: int):
    rows = tap(channels).by_sample(VALUE, BatchAxis(samples, 1))
    assert rows.shape == (VALUE.shape[samples], 120 // VALUE.shape[samples] // VALUE.shape[channels],
                          VALUE.shape[channels])  # fmt: skip
    for n, k in itertools.product(range(VALUE.shape[samples]), range(VALUE.shape[channels])):
        expected = VALUE.select(samples, n).select(channels - (channels > samples), k)
        assert sorted(rows[n, :, k].tolist()) == sorted(expected.flatten().tolist())


@pytest.mark.parametrize("minor", [False, True])
def test_several_entries_per_sample(minor: bool):
    """Six rows are two samples of three entries, one after the other or interleaved."""
    value = torch.arange(12).view(6, 2)
    rows = tap(1).by_sample(value, BatchAxis(0, 3, minor))
    first = [0, 2, 4] if minor else [0, 1, 2]
    assert rows.shape == (2, 3, 2)
    assert torch.equal(rows[0], value[first])


@pytest.mark.parametrize("minor", [False, True])
def test_samples_and_channels_share_a_dimension(minor: bool):
    for value in (torch.arange(6), torch.arange(24).view(6, 4)):
        rows = tap(0).by_sample(value, BatchAxis(0, 3, minor))
        split = value.view(3, 2, -1).transpose(0, 1) if minor else value.view(2, 3, -1)
        assert torch.equal(rows, split.transpose(1, 2))


def test_per_unit_sums_over_the_indices_of_a_unit():
    entries = torch.tensor([[1.0, 2, 4, 8, 16], [0, 1, 0, 1, 0]])
    assert tap(0, 1, -1, 0, 1, 0).per_unit(entries, 3).tolist() == [[20, 9, 0], [0, 1, 0]]
