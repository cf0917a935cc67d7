"""Pictures of pruning, by value: sensitivity curves, what the first layer still sees, weights beside a gap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sec
from secateurs.report import figures
from secateurs.sparsity import Threshold


def scanned(**more: float) -> sec.Sensitivity:
    metric = {"conv.weight": (0.9, 0.6, None), "fc.weight": (0.9, 0.88, 0.8), "bare": (0.8, 0.7, 0.6)}
    return sec.Sensitivity("weight", (0.0, 0.5, 0.9), 0.9, metric, dict.fromkeys(metric, 10), **more)


def test_curves_hold_what_was_measured_most_sensitive_first() -> None:
    found = figures.curves(scanned(), 0.05)
    assert [curve.layer for curve in found] == ["conv", "bare", "fc"]  # by the mean of what all were looked at
    conv, bare, fc = found
    assert (conv.fractions, conv.metric, conv.largest) == ((0.0, 0.5), (0.9, 0.6), 0.0)
    assert (fc.fractions, fc.metric, fc.largest) == ((0.0, 0.5, 0.9), (0.9, 0.88, 0.8), 0.5)
    assert bare.largest == 0.0
    assert [curve.largest for curve in figures.curves(scanned())] == [None] * 3
    assert figures.curves(scanned(tolerance=0.05)) == found


def test_sensitivity_is_drawn_by_value() -> None:
    pytest.importorskip("plotly")
    drawn = figures.draw_sensitivity(scanned(tolerance=0.05))
    *lines, bars = drawn.data
    assert {line.name: (tuple(line.x), tuple(line.y)) for line in lines} == {
        "conv": ((0.0, 0.5), (0.9, 0.6)),
        "fc": ((0.0, 0.5, 0.9), (0.9, 0.88, 0.8)),
        "bare": ((0.0, 0.5, 0.9), (0.8, 0.7, 0.6)),
    }
    assert dict(zip(bars.y, bars.x, strict=True)) == {"conv": 0.0, "fc": 0.5, "bare": 0.0}
    assert dict(zip(bars.y, bars.text, strict=True)) == {"conv": "0%", "fc": "50%", "bare": "0%"}
    assert sorted(shape.y0 for shape in drawn.layout.shapes) == pytest.approx([0.85, 0.9])
    assert len(figures.draw_sensitivity(scanned()).data) == 3


def test_more_layers_than_colours_are_told_apart() -> None:
    pytest.importorskip("plotly")
    metric = {f"{number}.weight": (0.5,) for number in range(20)}
    lines = figures.draw_sensitivity(sec.Sensitivity("weight", (0.5,), 0.9, metric)).data
    assert len({(line.line.color, line.line.dash) for line in lines}) == 20


def test_kept_weights_per_pixel_by_hand() -> None:
    weight = torch.zeros(3, 6)
    weight[:, 2] = 1.0
    weight[0, 5] = -2.0
    found = figures.survivors(weight, (2, 3))
    assert found.counts.tolist() == [[0, 0, 3], [0, 0, 1]]
    assert (found.outputs, found.kept) == (3, 4)
    assert found.profile.tolist() == [0, 0, 3, 0, 0, 1]


def test_channels_of_a_pixel_count_together() -> None:
    weight = torch.ones(2, 12)
    weight[0, :6] = 0  # the first channel of the first output
    assert figures.survivors(weight, (2, 3)).counts.tolist() == [[3, 3, 3], [3, 3, 3]]
    with pytest.raises(sec.InputError, match="does not read"):
        figures.survivors(weight, (5, 3))


def test_lenet_s_first_layer_keeps_the_centre_when_the_border_is_never_lit() -> None:
    """28 bands of 28 columns, as in the paper: weights of dark pixels stay as small as they began."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.01 * torch.randn(300, 28, 28, generator=generator)
    weight[:, 6:22, 6:22] += torch.randn(300, 16, 16, generator=generator)
    layer = nn.Linear(784, 300)
    layer.weight.data = weight.flatten(1)
    mask = sec.masks(layer, 0.9)["weight"]
    found = figures.survivors(mask, (28, 28))
    assert found.kept == 300 * 784 - round(0.9 * 300 * 784)
    assert found.counts[6:22, 6:22].sum() == found.kept
    lit = found.profile.reshape(28, 28).sum(1) > 0
    assert lit.tolist() == [6 <= row < 22 for row in range(28)]


def test_survivors_are_drawn_by_value() -> None:
    pytest.importorskip("plotly")
    found = figures.survivors(torch.eye(6), (2, 3))
    image, line = figures.draw_survivors(found).data
    assert np.array_equal(np.array(image.z), np.ones((2, 3)))
    assert list(line.y) == [1] * 6


def weights() -> dict[str, torch.Tensor]:
    layer = nn.Linear(200, 100)
    layer.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    mask = sec.masks(layer, Threshold("std", 1.0))["weight"]
    return {"before": layer.weight.detach(), "pruned": layer.weight.detach() * mask}


def test_pruned_weights_leave_a_gap_at_zero() -> None:
    moments = weights()
    found = figures.weight_histograms(moments)
    before, pruned = found.histograms.counts
    edges = found.histograms.edges
    threshold = float(moments["before"].std(correction=0))
    inside = (edges[:-1] > -threshold) & (edges[1:] < threshold)
    assert inside.sum() > 5
    assert before[inside].min() > 0 and pruned[inside].sum() == 0
    outside = (edges[1:] < -threshold) | (edges[:-1] > threshold)
    assert np.array_equal(before[outside], pruned[outside])
    assert pruned[edges[1:] < 0].sum() > 0 and pruned[edges[:-1] > 0].sum() > 0  # two-sided
    assert found.gap >= threshold
    assert edges[0] == -edges[-1]


def test_every_weight_is_in_a_bin_or_a_zero() -> None:
    moments = weights()
    found = figures.weight_histograms(moments)
    sums = found.histograms.counts.sum(1)
    assert (sums + np.array(found.zeros)).tolist() == [20_000, 20_000]
    assert found.zeros[0] == 0 and found.zeros[1] == int((moments["pruned"] == 0).sum()) > 0
    alone = figures.weight_histograms({"all zero": torch.zeros(4)})
    assert alone.histograms.counts.sum() == 0 and alone.zeros == (4,)
    with pytest.raises(sec.InputError, match="one layer"):
        figures.weight_histograms({"a": torch.ones(3), "b": torch.ones(4)})
    with pytest.raises(sec.InputError, match="one layer"):
        figures.weight_histograms({})


def test_weight_histograms_are_drawn_by_value() -> None:
    pytest.importorskip("plotly")
    found = figures.weight_histograms(weights())
    drawn = figures.draw_weight_histograms(found, "fc1")
    for bars, counts in zip(drawn.data, found.histograms.counts, strict=True):
        assert list(bars.y) == counts.tolist()
    assert f"{found.zeros[1]:,} zeros" in drawn.layout.annotations[1].text
