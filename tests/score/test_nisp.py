"""Importance carried back: by hand, against transposed convolutions, and the ranking that it starts from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from secateurs.score.inf_fs import inf_fs

pytestmark = pytest.mark.medium


def given(*scores: float) -> Callable[[Tensor], Tensor]:
    return lambda responses: torch.tensor(scores, dtype=torch.float64)


def scored(model: nn.Module, x: Tensor, ranker: object = "inf_fs", **options: object) -> dict[str, Tensor]:
    groups = sec.couple(sec.capture(model, x[:1]))
    return sec.score(groups, model, "nisp", data=[x], normalizer="none", options={"ranker": ranker, **options})


def weighted(layer: nn.Module, weight: list[list[float]]) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight).reshape(layer.weight.shape))
    return layer


def test_through_a_linear_layer_by_hand():
    """s = [1, 2] behind W = [[.5, -1], [0, .25]] is |W|^T s = [.5, 1.5] before it."""
    model = nn.Sequential(
        nn.Linear(3, 2), nn.ReLU(), weighted(nn.Linear(2, 2), [[0.5, -1.0], [0.0, 0.25]]), nn.ReLU(), nn.Linear(2, 1)
    )
    scores = scored(model, torch.randn(4, 3), given(1, 2))
    assert scores["0"].tolist() == [0.5, 1.5]
    assert scores["2"].tolist() == [1, 2]


def test_units_that_are_gone_pass_nothing_on():
    """Without unit 1 of the second layer only |W[0]| is left of the sum, and it scores 0 itself."""
    model = nn.Sequential(
        nn.Linear(3, 2), nn.ReLU(), weighted(nn.Linear(2, 2), [[0.5, -1.0], [0.0, 0.25]]), nn.ReLU(), nn.Linear(2, 1)
    )
    scores = scored(model, torch.randn(4, 3), given(1, 2), pruned={"2": [1]})
    assert scores["0"].tolist() == [0.5, 1]
    assert scores["2"].tolist() == [1, 0]
    with pytest.raises(sec.UnknownNameError):
        scored(model, torch.randn(4, 3), given(1, 2), pruned={"4711": [1]})


def test_a_batch_norm_multiplies_by_scale_over_deviation():
    """|gamma| / sqrt(var + eps) = 2 / 4 and 3 / 1, whatever mean and shift; a convolution without padding: s |W| K."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), weighted(nn.Conv2d(2, 2, 1), [[1.0, -2.0], [3.0, 4.0]]),
        nn.BatchNorm2d(2, eps=0.0), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1),
    )  # fmt: skip
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([-2.0, 3.0]))
        model[3].bias.copy_(torch.tensor([5.0, -7.0]))
        model[3].running_mean.copy_(torch.tensor([1.0, 2.0]))
        model[3].running_var.copy_(torch.tensor([16.0, 1.0]))
    scores = scored(model, torch.randn(4, 1, 3, 3), given(1, 10))
    assert scores["0"].tolist() == pytest.approx([0.5 * 1 + 30 * 3, 0.5 * 2 + 30 * 4])


def test_maps_go_back_through_transposed_convolutions():
    """By hand with torch's own: strides, padding, pooling with overlap, a flatten."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.Tanh(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(20, 6), nn.GELU(), nn.Linear(6, 2),
    ).double()  # fmt: skip
    x = torch.randn(4, 3, 7, 7, dtype=torch.float64)
    start = torch.rand(6, dtype=torch.float64)
    scores = scored(model, x, lambda responses: start)
    flat = start @ model[6].weight.abs()
    pooled = flat.reshape(1, 5, 2, 2)
    even = torch.full((5, 1, 2, 2), 0.25, dtype=torch.float64)
    conv = F.conv_transpose2d(pooled, even, groups=5)
    first = F.conv_transpose2d(conv, model[2].weight.abs(), stride=2, padding=1)
    assert first.shape[2:] == (5, 5)
    torch.testing.assert_close(scores["0"], first.sum((0, 2, 3)).detach())
    torch.testing.assert_close(scores["2"], flat.reshape(5, 4).sum(1).detach())
    torch.testing.assert_close(scores["6"], start)


class Shortcut(nn.Module):
    """`a` is read by `b` and goes around it; both halves of the concat are read by the head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), weighted(nn.Linear(2, 2), [[1.0, 2.0], [-3.0, 4.0]])
        self.c, self.last = nn.Linear(3, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        both = torch.cat([a + F.relu(self.b(a)), self.c(x)], 1)
        return self.last(both)


def test_a_sum_copies_the_score_to_both_branches_and_a_concat_parts_it():
    """The sum has s = [1, 10]; before it `a` has that, and |W|^T s = [31, 42] from the branch, as a second row."""
    model, x = Shortcut(), torch.randn(4, 3)
    groups = sec.couple(sec.capture(model, x[:1]))
    rows = {
        how: sec.score(
            groups, model, "nisp", data=[x], normalizer="none", equalization=how, options={"ranker": given(1, 10, 5, 7)}
        )
        for how in ("max", "min")
    }
    assert rows["max"]["a"].tolist() == [32, 52]
    assert rows["min"]["a"].tolist() == [1, 10]
    assert rows["max"]["c"].tolist() == rows["min"]["c"].tolist() == [5, 7]


def test_heads_of_their_own_both_count():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.hidden = nn.Linear(3, 2), weighted(nn.Linear(2, 2), [[1.0, 0.0], [1.0, 1.0]])
            self.one, self.other = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.stem(x)
            return self.one(x), self.other(F.relu(self.hidden(x)))

    scores = scored(Two(), torch.randn(4, 3), given(1, 10))
    assert scores["hidden"].tolist() == [1, 10]
    assert scores["stem"].tolist() == [1 + 11, 10 + 10]


def test_tensors_that_the_model_makes_itself():
    """A recurrent layer starts from zeros of its own, in the model's own precision."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cells, self.head = nn.Linear(4, 6), nn.LSTM(6, 7, batch_first=True), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(F.relu(self.first(x)))[0][:, -1])

    scores = scored(Last(), torch.randn(6, 5, 4))
    assert all(bool((row > 0).all()) for row in scores.values()) and len(scores) == 2


@pytest.mark.parametrize("bad", [lambda r: r, given(1), given(1, -1), given(1, float("nan")), "variance"])
def test_rankers_that_give_no_scores(bad: object):
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(sec.InputError, match="ranker"):
        scored(model, torch.randn(4, 3), bad)


def test_the_ranking_of_features_that_are_alike():
    """A = [[.5 s, .5 s], [.5 s, .5 s]], radius s: r A has rows of sum .9, and 1 / (1 - .9) - 1 = 9."""
    values = torch.tensor([[1.0], [2.0], [4.0]])
    assert inf_fs(values.expand(3, 2)).tolist() == pytest.approx([9, 9])
    assert inf_fs(values).tolist() == pytest.approx([9])


@pytest.mark.parametrize("seed", range(3))
def test_the_ranking_against_the_sum_over_paths(seed: int):
    generator = torch.Generator().manual_seed(seed)
    responses = torch.randn(12, 4, generator=generator, dtype=torch.float64).relu()
    responses[:, 3] = 2
    ranks = torch.tensor([[(col < x).sum() + ((col == x).sum() + 1) / 2 for x in col] for col in responses.T])
    joined = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            both = torch.stack([ranks[i], ranks[j]])
            rho = 1.0 if i == j else 0.0 if 3 in (i, j) else float(torch.corrcoef(both)[0, 1])
            spread = max(float(responses[:, i].std(unbiased=False)), float(responses[:, j].std(unbiased=False)))
            joined[i, j] = 0.5 * spread + 0.5 * (1 - abs(rho))
    step = 0.9 * joined / torch.linalg.matrix_norm(joined, 2)
    walk, total = torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for _ in range(400):
        walk = walk @ step
        total += walk.sum(1)
    torch.testing.assert_close(inf_fs(responses), total, rtol=1e-5, atol=1e-5)


class Padded(nn.Module):
    """The same network twice: zeros around what the first layer gives by `pad`, or written into a tensor of zeros."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.written = written
        self.first, self.second, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = torch.relu(self.first(x))
        if self.written:
            wide = x.new_zeros(x.shape[0], 6, 5, 4)
            wide[:, :, 1:] = narrow
        else:
            wide = F.pad(narrow, (0, 0, 1, 0))
        return self.head(torch.relu(self.second(wide)))


def test_what_is_written_into_a_tensor_scores_as_if_it_had_been_made_so():
    networks = [Padded(written) for written in (False, True)]
    networks[1].load_state_dict(networks[0].state_dict())
    data = [torch.randn(4, 3, 4, 4)]
    found = [
        sec.score(sec.couple(sec.capture(network, torch.zeros(1, 3, 4, 4))), network, "nisp", data=data)
        for network in networks
    ]
    for name in ("first", "second"):
        assert found[1][name].min() > 0
        assert torch.allclose(found[0][name], found[1][name])
