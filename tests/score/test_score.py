"""Scores by hand: the criteria, how coupled layers are equalised, how groups are made comparable, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec

W = [[3.0, -1.0], [0.5, 0.5]]


def linear(rows: list[list[float]], bias: bool = False) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


def groups_of(model: nn.Module, *shape: int) -> sec.Groups:
    return sec.couple(sec.capture(model, torch.zeros(shape)))


def one_group(model: nn.Module, criterion: object, *shape: int, **options: object) -> list[float]:
    groups = groups_of(model, *shape)
    (row,) = sec.score(groups, model, criterion, **{"normalizer": "none", **options}).values()
    return row.tolist()


def chain() -> nn.Module:
    return nn.Sequential(linear(W), nn.ReLU(), nn.Linear(2, 1))


def test_l1_is_the_mean_of_magnitudes():
    assert one_group(chain(), "l1", 1, 2) == [2.0, 0.5]


def test_l2_is_the_root_of_the_sum_of_squares():
    assert one_group(chain(), "l2", 1, 2) == pytest.approx([3.1623, 0.7071], abs=5e-5)


def test_biases_and_consumers_do_not_count():
    model = chain()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[100.0, -7.0]]))
    model[0].bias = nn.Parameter(torch.tensor([50.0, -50.0]))
    assert one_group(model, "l1", 1, 2) == [2.0, 0.5]


def test_random_follows_the_seed():
    model = chain()
    first, again, other = (one_group(model, "random", 1, 2, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert all(0 < value < 1 for value in first)


class Sum(nn.Module):
    """Two layers whose outputs are added: one group, two producers, with magnitudes [2, 0.5] and [8, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = linear(W), linear([[8.0, -8.0], [2.0, 2.0]]), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) + self.b(x))


@pytest.mark.parametrize(
    ("equalization", "expected"),
    [("mean", [5, 1.25]), ("sum", [10, 2.5]), ("max", [8, 2]), ("min", [2, 0.5]), ("geometric_mean", [4, 1])],
)
def test_equalization(equalization: str, expected: list[float]):
    assert one_group(Sum(), "l1", 1, 2, equalization=equalization) == pytest.approx(expected)


def test_geometric_mean_with_a_layer_of_zeros_is_zero():
    model = Sum()
    nn.init.zeros_(model.b.weight)
    assert one_group(model, "l1", 1, 2, equalization="geometric_mean") == [0, 0]


@pytest.mark.parametrize(
    ("normalizer", "scale"),
    [("none", 1), ("mean", 1.25), ("max", 2), ("sum", 2.5), ("l2", math.sqrt(4.25))],
)
def test_normalizer(normalizer: str, scale: float):
    assert one_group(chain(), "l1", 1, 2, normalizer=normalizer) == pytest.approx([2 / scale, 0.5 / scale])


def test_layer_of_zeros_scores_zero():
    model = chain()
    nn.init.zeros_(model[0].weight)
    for normalizer in ("none", "mean", "max", "sum", "l2"):
        assert one_group(model, "l1", 1, 2, normalizer=normalizer) == [0, 0]


def test_grouped_convolution_gathers_a_unit_from_every_group():
    """Two groups of two filters: unit 0 is filters 0 and 2, unit 1 filters 1 and 3."""
    model = nn.Sequential(nn.Conv1d(4, 4, 1, groups=2, bias=False), nn.ReLU(), nn.Conv1d(4, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [-2.0, -2.0], [3.0, 3.0], [4.0, 4.0]]).unsqueeze(2))
    assert one_group(model, "l1", 1, 4, 3) == [2, 3]
    assert one_group(model, "l2", 1, 4, 3) == pytest.approx([math.sqrt(20), math.sqrt(40)])


def test_concatenated_layers_score_on_their_own():
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = linear(W), linear([[8.0, -8.0], [2.0, 2.0], [1.0, 0.0]]), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.a(x), self.b(x)], 1))

    model = Concat()
    scores = sec.score(groups_of(model, 1, 2), model, "l1", normalizer="none")
    assert {name: row.tolist() for name, row in scores.items()} == {"a": [2, 0.5], "b": [8, 2, 0.5]}


def test_own_function_sees_groups_and_weights():
    def consumer_norm(group: sec.ChannelGroup, context) -> Tensor:
        reader = next(member for member in group.members if member.role == "in")
        return context.weight(reader).abs().sum(1)

    model = chain()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, -7.0]]))
    assert one_group(model, consumer_norm, 1, 2) == [1, 7]


@pytest.mark.parametrize(
    ("result", "evidence"),
    [
        (torch.ones(3), r"shape \(3,\) for 2 units"),
        (torch.ones(2, 1), r"shape \(2, 1\) for 2 units"),
        (torch.tensor([1.0, float("nan")]), "1 not finite"),
        (torch.tensor([float("inf"), float("nan")]), "2 not finite"),
        (torch.tensor([1.0, 2.0j]), "complex"),
        ([1.0, 2.0], "list"),
        (None, "NoneType"),
    ],
)
def test_own_function_that_gives_no_scores(result: object, evidence: str):
    with pytest.raises(sec.InputError, match=evidence):
        one_group(chain(), lambda group, context: result, 1, 2)


def test_weights_that_are_not_finite():
    model = chain()
    groups = groups_of(model, 1, 2)
    with torch.no_grad():
        model[0].weight[1, 0] = float("nan")
    for criterion in ("l1", "l2"):
        with pytest.raises(sec.InputError, match="group `0`.*1 not finite.*check the weights"):
            sec.score(groups, model, criterion)
    with pytest.raises(sec.InputError, match="`0.weight`"):
        sec.capture(model, torch.zeros(1, 2))


def test_half_precision_weights_are_scored_in_double():
    model = chain().bfloat16()
    groups = sec.couple(sec.capture(model, torch.zeros(1, 2, dtype=torch.bfloat16)))
    (row,) = sec.score(groups, model, "l1", normalizer="none").values()
    assert row.dtype == torch.float64
    assert row.tolist() == [2, 0.5]


def test_frozen_groups_have_no_scores():
    model = nn.Sequential(linear(W), nn.ReLU(), nn.Linear(2, 3))
    groups = groups_of(model, 1, 2)
    assert "2" in [group.name for group in groups.frozen]
    assert list(sec.score(groups, model)) == ["0"]


@pytest.mark.parametrize(
    ("options", "hint"),
    [({"criterion": "l3"}, "'l1'|'l2'"), ({"equalization": "maen"}, "did you mean 'mean'"),
     ({"normalizer": "maximum"}, "did you mean 'max'"), ({"criterion": "zzz"}, "known: apoz, ")],
)  # fmt: skip
def test_unknown_names(options: dict[str, str], hint: str):
    model = chain()
    with pytest.raises(sec.UnknownNameError, match=hint):
        sec.score(groups_of(model, 1, 2), model, **options)


def test_model_of_another_class():
    groups = groups_of(chain(), 1, 2)
    with pytest.raises(sec.InputError, match="`0.weight`"):
        sec.score(groups, nn.ReLU())
    with pytest.raises(sec.InputError, match="`0.weight`"):
        sec.score(groups, nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))


def test_what_is_no_criterion_or_no_seed_is_refused():
    with pytest.raises(sec.InputError, match="None is no criterion"):
        one_group(chain(), None, 1, 2)
    with pytest.raises(sec.InputError, match=r"1\.5 is not a seed"):
        one_group(chain(), "l1", 1, 2, seed=1.5)


@pytest.mark.parametrize("batches", [0, -1, 2.5, True])
def test_what_is_no_number_of_batches_is_refused(batches: object):
    model = chain()
    data = [torch.ones(2, 2)]
    for criterion in ("mean_activation", "l1"):
        with pytest.raises(sec.InputError, match="no number of batches"):
            sec.score(groups_of(model, 1, 2), model, criterion, data=data, batches=batches)


def test_text_where_an_option_is_a_number_is_refused():
    model = chain()
    for value in ("a", True):
        with pytest.raises(sec.InputError, match="option 'eps' of the criterion 'apoz' is a number"):
            sec.score(groups_of(model, 1, 2), model, "apoz", data=[torch.ones(2, 2)], options={"eps": value})
