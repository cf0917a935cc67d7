"""APoZ and mean activation by hand: what counts as zero, where it is read, and what is said where there is none."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec


def groups_of(model: nn.Module, *shape: int) -> sec.Groups:
    return sec.couple(sec.capture(model, torch.zeros(shape)))


def two_units() -> nn.Module:
    """Hidden units relu(x0) and relu(x1 - 1)."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.copy_(torch.tensor([0.0, -1.0]))
    return model


DATA = [torch.tensor([[2.0, 0.5], [-1.0, 3.0]]), torch.tensor([[4.0, 1.0], [1.0, 0.0]])]
"""Activations [2, 0, 4, 1] and [0, 2, 0, 0]."""


def scored(model: nn.Module, criterion: str, data: list[Tensor] = DATA) -> list[float]:
    (row,) = sec.score(groups_of(model, 1, 2), model, criterion, data=data, normalizer="none").values()
    return row.tolist()


def test_apoz_by_hand():
    assert scored(two_units(), "apoz") == [0.75, 0.25]


def test_a_filter_without_weights_and_with_a_negative_bias_has_only_zeros():
    model = two_units()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, -0.1
    assert scored(model, "apoz") == [0.75, 0]
    assert scored(model, "mean_activation") == [7 / 4, 0]


def test_mean_activation_by_hand_and_twice_the_channel_is_twice_the_score():
    model = two_units()
    assert scored(model, "mean_activation") == [7 / 4, 2 / 4]
    with torch.no_grad():
        model[0].weight[1] *= 2
        model[0].bias[1] *= 2
    assert scored(model, "mean_activation") == [7 / 4, 4 / 4]


@pytest.mark.parametrize("criterion", ["apoz", "mean_activation"])
def test_one_batch_of_64_or_four_of_16(criterion: str):
    torch.manual_seed(0)
    model, inputs = two_units(), torch.randn(64, 2)
    parts = [scored(model, criterion, list(inputs.split(size))) for size in (64, 16)]
    assert parts[0] == pytest.approx(parts[1], rel=1e-12)


def test_lenet_trimmed_to_the_widths_of_the_paper_has_3_85_times_fewer_parameters():
    model = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 500),
        nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip
    groups = groups_of(model, 1, 1, 28, 28)
    trimmed = sec.plan(groups.graph, groups, {"2": range(24), "5": range(252)})
    assert (trimmed.before["params"], trimmed.after["params"]) == (431_080, 112_094)
    assert trimmed.before["params"] / trimmed.after["params"] == pytest.approx(3.85, abs=0.005)
    small = sec.cut(model, trimmed, torch.zeros(1, 1, 28, 28))
    assert sum(item.numel() for item in small.parameters()) == 112_094


def test_apoz_without_a_zero_names_the_groups_and_what_to_do():
    """Behind another activation than ReLU nothing is exactly zero: every unit scores 1, and their order is no ranking.

    With ReLU, or with an `eps` that finds some, there is nothing to say.
    """
    torch.manual_seed(0)

    def asked(activation: nn.Module, **options: float) -> dict[str, Tensor]:
        model = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        groups = sec.couple(sec.capture(model, torch.zeros(1, 4)))
        return sec.score(groups, model, "apoz", data=[torch.randn(32, 4)], options=options)

    with pytest.warns(UserWarning, match=r"group `0`\..*every unit scores 1.*options=\{'eps'") as caught:
        assert (asked(nn.GELU())["0"] == 1).all()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked(nn.ReLU())
        assert asked(nn.GELU(), eps=0.05)["0"].std() > 0


@pytest.mark.parametrize("way", ["adaptive", "mean", "windows", "dropout", "squeezed"])
def test_apoz_behind_an_average_counts_what_it_is_taken_of(way: str):
    """Means of a map are never zero; the map that the ReLU gives is what APoZ is about."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 5, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            ways = {
                "adaptive": lambda: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1),
                "mean": lambda: x.mean((2, 3)),
                "windows": lambda: nn.functional.avg_pool2d(nn.functional.avg_pool2d(x, 2), 2).view(-1, 5),
                "dropout": lambda: nn.functional.dropout(x.mean((2, 3)), training=self.training),
                "squeezed": lambda: x.mean(3, keepdim=True).mean(2).squeeze(2),
            }
            return self.head(ways[way]())

    torch.manual_seed(0)
    model, data = Pooled().eval(), [torch.randn(16, 2, 6, 6)]
    found = sec.score(groups_of(model, 1, 2, 6, 6), model, "apoz", data=data)["conv"]
    expected = (torch.relu(model.conv(data[0])) != 0).double().mean((0, 2, 3))
    assert torch.allclose(found, expected)
    assert expected.max() < 1


def test_apoz_of_an_activation_behind_an_average_is_that_of_the_activation():
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Threshold(0.3, 0), nn.Flatten(), nn.Linear(5, 2)
    )
    data = [torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(0))]
    found = sec.score(groups_of(model, 1, 2, 6, 6), model, "apoz", data=data)["0"]
    assert torch.allclose(found, (model[:4](data[0]) != 0).double().mean((0, 2, 3)))
