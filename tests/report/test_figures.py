"""What the pictures show, by value: the plain data behind each, against hand-made examples and slow other ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import secateurs as sec
from secateurs.choose.plan import GroupDecision, Plan
from secateurs.report import figures
from secateurs.report.figures.tiles import columns_of, corner, mosaic


def test_a_filter_of_zeros_is_mid_grey_on_either_scale() -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    for scale in ("common", "own"):
        assert np.unique(figures.filter_grid(weight, scale).tiles[3]).tolist() == [128]
    assert np.unique(figures.filter_grid(torch.zeros(2, 1, 3, 3)).tiles).tolist() == [128]


def test_filters_by_value() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.0]]).reshape(2, 1, 1, 2)
    common, own = figures.filter_grid(weight), figures.filter_grid(weight, "own")
    assert common.tiles[..., 0].reshape(2, 2).tolist() == [[192, 1], [160, 128]]  # 128 + 127 * share, half to even
    assert own.tiles[..., 2].reshape(2, 2).tolist() == [[192, 1], [255, 128]]
    assert common.scales.tolist() == [2, 2]
    assert own.scales.tolist() == [2, 0.5]


def test_colours_are_the_input_channels() -> None:
    weight = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
    assert figures.filter_grid(weight).tiles.reshape(3).tolist() == [255, 128, 1]


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (4, 3), (4, 3, 3), (0, 3, 3, 3)])
def test_filters_that_are_no_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(sec.InputError, match="no pictures"):
        figures.filter_grid(torch.ones(shape))


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_every_tile_is_where_the_grid_says_and_nothing_else_is_drawn(n: int, h: int, w: int, border: int) -> None:
    tiles = np.arange(1, n * h * w + 1).reshape(n, h, w)
    image = mosaic(tiles, border, 0)
    columns = math.ceil(math.sqrt(n))
    assert columns_of(n) == columns
    assert image.shape == (math.ceil(n / columns) * (h + border) + border, columns * (w + border) + border)
    for number in range(n):
        top, left = corner(number, n, (h, w), border)
        assert (top, left) == (
            border + number // columns * (h + border),
            border + number % columns * (w + border),
        )
        assert (image[top : top + h, left : left + w] == tiles[number]).all()
    assert (image > 0).sum() == n * h * w


def test_maps_share_one_scale_from_zero_or_about_zero() -> None:
    values = torch.tensor([[[0.0, 3.0]], [[1.0, 0.0]]])
    grid = figures.activation_maps(values)
    assert (grid.low, grid.high, grid.block, grid.channels) == (0, 3, 1, 2)
    assert grid.maps.tolist() == values.tolist()
    signed = figures.activation_maps(-values)
    assert (signed.low, signed.high) == (-3, 3)


def test_a_few_peaks_do_not_darken_the_rest() -> None:
    values = torch.arange(1000.0).reshape(1, 20, 50)
    values[0, 19, 49] = 1e6
    assert figures.activation_maps(values).high == 995  # of 1000 entries four are larger
    rare = torch.zeros(1, 20, 50)
    rare[0, 0, 0] = 7
    assert figures.activation_maps(rare).high == 7


def test_large_maps_are_averaged_over_blocks() -> None:
    values = torch.rand(2, 401, 600, generator=torch.Generator().manual_seed(0))
    grid = figures.activation_maps(values)
    assert grid.block == 2
    assert grid.maps.shape == (2, 201, 300)
    assert grid.maps[1, 3, 5] == pytest.approx(float(values[1, 6:8, 10:12].mean()))
    assert grid.maps[1, 200, 5] == pytest.approx(float(values[1, 400:, 10:12].mean()))  # what is left of a block


def test_only_the_first_maps_of_many_are_shown() -> None:
    grid = figures.activation_maps(torch.arange(12.0).reshape(12, 1, 1), most=5)
    assert grid.maps.reshape(-1).tolist() == [0, 1, 2, 3, 4]
    assert grid.channels == 12


def test_no_maps_are_refused() -> None:
    with pytest.raises(sec.InputError, match="no maps"):
        figures.activation_maps(torch.ones(3, 4))


def test_dead_filters_by_value() -> None:
    weight = torch.tensor([[10.0, 0.0], [0.0, 0.9], [0.6, 0.8], [0.0, 0.5]])
    assert figures.dead_filters(weight).norms.tolist() == pytest.approx([10, 0.9, 1, 0.5])
    assert figures.dead_filters(weight).numbers == [1, 3]  # 1 is a tenth of 10 and not below it
    found = figures.dead_filters(weight, torch.tensor([1.0, 0.05, 0.0, 0.2]))
    assert found.numbers == [1]  # the last one is weak and fires, the third is silent and strong
    assert figures.dead_filters(weight, share=0.05).numbers == []


def test_in_a_layer_of_zeros_every_filter_is_dead() -> None:
    assert figures.dead_filters(torch.zeros(3, 2), torch.zeros(3)).numbers == [0, 1, 2]


numbers = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12)


@given(numbers, st.floats(0.01, 0.9), st.randoms(use_true_random=False))
def test_the_flagged_are_those_of_the_rule(norms: list[float], share: float, random) -> None:
    means = random.choices(norms, k=len(norms))
    found = figures.dead_filters(torch.tensor(norms, dtype=torch.float64).unsqueeze(1), torch.tensor(means), share)
    for k, flag in enumerate(found.flagged):
        weak = found.norms[k] == 0 or found.norms[k] < share * max(found.norms)
        silent = found.activations[k] == 0 or found.activations[k] < share * max(found.activations)
        assert flag == (weak and silent)


def test_histograms_by_value() -> None:
    scores = {"a": torch.tensor([0.0, 1.0, 4.0]), "b": torch.tensor([2.0, 3.9])}
    found = figures.histograms(scores, 4)
    assert found.edges.tolist() == [0, 1, 2, 3, 4]
    assert found.counts.tolist() == [[1, 1, 0, 1], [0, 0, 1, 1]]
    assert found.names == ("a", "b")


def test_logarithmic_histograms_keep_zeros_in_the_first_bin() -> None:
    found = figures.histograms({"a": torch.tensor([0.0, 1e-9, 0.5, 50.0, 1000.0])}, 4, log=True)
    assert found.edges.tolist() == pytest.approx([0.1, 1, 10, 100, 1000])
    assert found.counts.tolist() == [[3, 0, 1, 1]]


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=9), min_size=1, max_size=4), st.booleans())
def test_every_unit_is_in_one_bin(rows: list[list[float]], log: bool) -> None:
    scores = {str(number): torch.tensor(row, dtype=torch.float64) for number, row in enumerate(rows)}
    found = figures.histograms(scores, log=log)
    assert found.counts.sum(1).tolist() == [len(row) for row in rows]
    assert (np.diff(found.edges) > 0).all()


def test_agreement_by_value() -> None:
    found = figures.agreement(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 30.0, 20.0, 40.0]))
    assert found.order.tolist() == [3, 2, 1, 0]
    assert found.common.tolist() == [1, 1, 0.5, 1, 1]
    assert found.correlation == pytest.approx(0.8)
    assert math.isnan(figures.agreement(torch.ones(3), torch.arange(3.0)).correlation)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_what_both_remove_is_what_two_sorted_lists_share(pairs: list[tuple[int, int]]) -> None:
    rows = [torch.tensor(row, dtype=torch.float64) for row in zip(*pairs, strict=True)]
    found = figures.agreement(*rows)
    lowest = [sorted(range(len(pairs)), key=lambda k, row=row: (float(row[k]), k)) for row in rows]
    for k in range(1, len(pairs) + 1):
        assert found.common[k] == len({*lowest[0][:k]} & {*lowest[1][:k]}) / k
    if not math.isnan(found.correlation):
        assert found.correlation == pytest.approx(spearmanr(*rows).statistic)


def test_scores_of_different_channels_are_refused() -> None:
    with pytest.raises(sec.InputError, match="same channels"):
        figures.agreement(torch.ones(3), torch.ones(4))


def test_trimming_takes_what_is_above_the_mean_by_a_deviation() -> None:
    # mean 0.4, population deviation sqrt(0.14) = 0.374: above 0.774
    assert figures.trimmed(np.array([0.1, 0.2, 0.3, 1.0])).tolist() == [False, False, False, True]
    assert figures.trimmed(np.array([0.0, 0.0, 0.8, 0.8])).tolist() == [False] * 4  # 0.8 is not above 0.4 + 0.4


PLAN = Plan(
    "0" * 64,
    {},
    (
        GroupDecision("stem", 4, (0, 2, 3), "best"),
        GroupDecision("head", 10, tuple(range(10)), "output", frozen=True),
        GroupDecision("body", 6, (1,), "best"),
    ),
    criterion="l1",
    search="global",
)


def test_widths_of_a_plan() -> None:
    found = figures.widths(PLAN)
    assert (found.names, found.before, found.after) == (("stem", "body"), (4, 6), (3, 1))
    assert figures.widths(PLAN, frozen=True).frozen == (False, True, False)
