"""Storage and references to memory of regular zeros: the numbers of the paper, and counts by a slower way."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.cost.references import References, memory_references
from secateurs.cost.storage import mean_storage_ratio, storage_ratio
from secateurs.sparsity import parse_pattern
from secateurs.sparsity.storage import stored_ratio


def test_the_formula_gives_the_paper_s_vgg() -> None:
    assert storage_ratio(0.307, 3) == pytest.approx(0.3582, abs=5e-5)
    assert storage_ratio(0.444, 9) == pytest.approx(0.4687, abs=5e-5)
    assert storage_ratio(0.27) == pytest.approx(0.405, abs=5e-5)


def test_factors_by_size_of_group() -> None:
    assert storage_ratio(0.5) / 0.5 == 1.5
    assert storage_ratio(0.5, 3) / 0.5 == pytest.approx(7 / 6)
    assert storage_ratio(0.5, 9) / 0.5 == pytest.approx(19 / 18)
    assert storage_ratio(0.5, 1, index_bits=2) == 0.625  # 2:4


def test_layers_together_count_by_their_weights() -> None:
    assert mean_storage_ratio([(100, 0.2), (300, 0.6)]) == pytest.approx(0.5)
    with pytest.raises(sec.InputError, match="no weights"):
        mean_storage_ratio([])
    with pytest.raises(sec.InputError, match="no such storage"):
        storage_ratio(1.1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 3))


@pytest.mark.parametrize(("pattern", "group"), [("weight", 1), ("vector", 3), ("kernel", 9)])
def test_masks_take_what_the_formula_says_and_1x1_layers_are_fine(pattern: str, group: int) -> None:
    model = network()
    masks = sec.masks(model, 0.75, pattern=pattern)
    layers = [
        (mask.numel(), storage_ratio(float(mask.float().mean()), group if mask.shape[-1] == 3 else 1))
        for mask in masks.values()
    ]
    assert stored_ratio(model, masks, pattern) == pytest.approx(mean_storage_ratio(layers))


def test_a_shorter_last_group_costs_its_own_weights_and_a_whole_index() -> None:
    layer = nn.Linear(10, 1, bias=False)  # groups of 8 and 2
    with torch.no_grad():
        layer.weight[:, :8] = 0.1
        layer.weight[:, 8:] = 1.0
    masks = sec.masks(layer, 0.5, pattern="simd(8)")
    assert int(masks["weight"].sum()) == 2
    assert stored_ratio(layer, masks, "simd(8)") == (2 * 8 + 4) / (10 * 8)


def test_a_full_row_on_a_full_row_by_hand() -> None:
    found = memory_references(torch.ones(1, 1, 3), torch.ones(1, 1, 4))
    assert found == References(fine=12, merged=6)
    assert found.ratio == 0.5
    assert found + found == References(24, 12)


def test_a_full_plane_on_a_full_plane_by_hand() -> None:
    ones = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 4, 5)
    assert memory_references(*ones, axes=2) == References(9 * 20, 6 * 7)
    assert memory_references(*ones, axes=1) == References(9 * 20, 3 * 4 * 7)


def test_a_linear_layer_merges_nothing() -> None:
    weight, activation = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    assert memory_references(weight, activation) == References(2 * 3 + 1 * 1, 2 * 3 + 1 * 1)


def by_hand(weight: Tensor, activation: Tensor, axes: int) -> References:
    """Every pair of a group of weights and a group of activations, one by one."""
    fine = merged = 0
    outputs, inputs, *kernel = weight.shape
    split = len(kernel) - axes
    for sample, o, i in itertools.product(range(len(activation)), range(outputs), range(inputs)):
        for k in itertools.product(*map(range, kernel[:split])):
            for x in itertools.product(*map(range, activation.shape[2 : 2 + split])):
                taps = [tuple(t) for t in weight[(o, i, *k)].nonzero().tolist()]
                seen = [tuple(t) for t in activation[(sample, i, *x)].nonzero().tolist()]
                fine += len(taps) * len(seen)
                merged += len({tuple(a + b for a, b in zip(s, t, strict=True)) for s in taps for t in seen})
    return References(fine, merged)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("density", [0.5, 0.9])
def test_counts_against_pairs_one_by_one(axes: int, density: float) -> None:
    generator = torch.Generator().manual_seed(7)
    weight = (torch.rand(3, 2, 3, 2, generator=generator) < density).float()
    activation = torch.randn(2, 2, 4, 5, generator=generator).relu()
    found = memory_references(weight, activation, axes=axes)
    assert found == by_hand(weight, activation, axes)
    assert found.merged < found.fine


def test_groups_read_their_own_channels() -> None:
    generator = torch.Generator().manual_seed(8)
    weight = (torch.rand(4, 2, 3, generator=generator) < 0.6).float()
    activation = torch.randn(2, 4, 6, generator=generator).relu()
    halves = [memory_references(weight[:2], activation[:, :2]), memory_references(weight[2:], activation[:, 2:])]
    assert memory_references(weight, activation, groups=2) == halves[0] + halves[1]


def test_whole_rows_merge_more_than_single_weights_of_the_same_number() -> None:
    """Why the paper counts: of equal density, zeros by row leave longer runs to merge."""
    model = nn.Conv2d(8, 8, 3)
    activation = torch.randn(1, 8, 10, 10, generator=torch.Generator().manual_seed(9)).relu()
    fine, rows = (
        memory_references(sec.masks(model, 0.6, pattern=name)["weight"], activation) for name in ("weight", "vector")
    )
    assert abs(rows.fine / fine.fine - 1) < 0.15
    assert rows.ratio < fine.ratio


@pytest.mark.parametrize(
    ("weight", "activation", "options"),
    [((2, 3, 3), (1, 2, 4), {}), ((2, 3), (1, 3, 4), {}), ((2, 3, 3), (1, 3, 4), {"axes": 3}), ((2,), (2,), {})],
)
def test_what_does_not_fit_is_refused(
    weight: tuple[int, ...], activation: tuple[int, ...], options: dict[str, int]
) -> None:
    with pytest.raises(sec.InputError, match="do not fit"):
        memory_references(torch.ones(weight), torch.ones(activation), **options)


@pytest.mark.parametrize("seed", range(3))
def test_the_coarser_the_more_magnitude_goes(seed: int) -> None:
    """At equal density the removed sum of |w| rises from single weights to filters: the reason for the accuracies."""
    torch.manual_seed(seed)
    layer = nn.Conv2d(16, 20, 3)
    weight = layer.weight.detach().abs()
    gone = []
    for pattern in ("weight", "vector", "kernel", "filter"):
        mask = sec.masks(layer, 0.8, pattern=pattern)["weight"]
        assert int(mask.sum()) == 576  # of 2,880
        gone.append(float(weight[~mask].sum()))
    assert gone == sorted(gone) and len(set(gone)) == 4


@pytest.mark.parametrize("pattern", ["weight", "vector", "kernel", "filter"])
def test_no_other_set_of_as_many_groups_is_worth_less(pattern: str) -> None:
    layer = nn.Conv2d(4, 6, 3)
    mask = sec.masks(layer, 0.5, pattern=pattern)["weight"]
    weight = layer.weight.detach().abs()
    generator = torch.Generator().manual_seed(0)
    grouping = parse_pattern(pattern).groups(tuple(weight.shape))
    removed = grouping.count - int(grouping.kept(mask).sum())
    for _ in range(50):
        kept = torch.ones(grouping.count, dtype=torch.bool)
        kept[torch.randperm(grouping.count, generator=generator)[:removed]] = False
        assert float(weight[~mask].sum()) <= float(weight[~grouping.spread(kept)].sum()) + 1e-6
