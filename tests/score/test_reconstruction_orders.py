"""ThiNet and LASSO: the order in which units go, against definitions, optimality conditions and least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.score.contributions import order_scores
from secateurs.score.criteria.lasso import leaving_order, path
from secateurs.score.criteria.thinet import removal_order, residual, scales

pytestmark = pytest.mark.medium


def shares_of(seed: int, units: int = 7) -> Tensor:
    """Contributions [40, units] that are correlated, as those of real channels are."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(40, units, generator=generator, dtype=torch.float64)
    return mixed @ torch.randn(units, units, generator=generator, dtype=torch.float64)


def dense(first: Tensor, second: Tensor) -> nn.Module:
    """Two linear layers without biases, the second with these weights `[outputs, units]`."""
    model = nn.Sequential(
        nn.Linear(first.shape[1], len(first), bias=False), nn.Linear(second.shape[1], len(second), bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(first)
        model[1].weight.copy_(second)
    return model


def scored(model: nn.Module, x: Tensor, criterion: str, **options: object) -> Tensor:
    groups = sec.couple(sec.capture(model, x[:1]))
    return sec.score(groups, model, criterion, data=[x], options=options)["0"]


def test_scores_of_an_order():
    assert order_scores(torch.tensor([2, 0, 3, 1]), torch.ones(4)).tolist() == [0.5, 1, 0.25, 0.75]
    assert order_scores(torch.tensor([2, 0, 3, 1]), torch.tensor([0, 1, 0, 2])).tolist() == [0, 1, 0, 0.75]


@pytest.mark.parametrize("seed", range(20))
def test_greedy_by_definition(seed: int):
    shares = shares_of(seed)
    gone: list[int] = []
    while len(gone) < shares.shape[1]:
        missed = {c: float(shares[:, [*gone, c]].sum(1).square().sum()) for c in range(7) if c not in gone}
        gone.append(min(missed, key=missed.__getitem__))
    assert removal_order(shares.T @ shares).tolist() == gone


@pytest.mark.parametrize("seed", range(20))
def test_residual_of_the_kept_is_the_objective_of_the_gone_and_scaling_never_raises_it(seed: int):
    shares = shares_of(seed)
    gram = shares.T @ shares
    order = removal_order(gram)
    for count in range(1, 7):
        gone, kept = order[:count], order[count:]
        objective = float(shares[:, gone].sum(1).square().sum())
        assert residual(gram, kept) == pytest.approx(objective, rel=1e-9, abs=1e-9)
        factors = scales(gram, kept)
        scaled = float((shares.sum(1) - shares[:, kept] @ factors).square().sum())
        assert residual(gram, kept, factors) == pytest.approx(scaled, rel=1e-9, abs=1e-9)
        best = torch.linalg.lstsq(shares[:, kept], shares.sum(1, keepdim=True)).solution[:, 0]
        assert scaled <= objective * (1 + 1e-9)
        torch.testing.assert_close(factors, best, rtol=1e-6, atol=1e-8)


def test_scales_of_units_that_are_alike_are_finite():
    shares = shares_of(0)[:, [0, 0, 1]]
    gram = shares.T @ shares
    kept = torch.tensor([0, 1, 2])
    assert residual(gram, kept, scales(gram, kept)) == pytest.approx(0, abs=1e-9 * float(gram.sum()))


def test_thinet_by_hand():
    """y = 1 * h0 + 2 * h1 - 2 * h2 with h = x: h1 and h2 cancel, so after one of them the other goes at once."""
    model = dense(torch.eye(3, dtype=torch.float64), torch.tensor([[3.0, 2.0, -2.0]], dtype=torch.float64))
    x = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
    assert scored(model, x, "thinet").tolist() == pytest.approx([1, 1 / 3, 2 / 3])


@pytest.mark.parametrize("criterion", ["thinet", "lasso"])
@pytest.mark.parametrize("seed", range(5))
def test_a_channel_that_adds_nothing_goes_first(criterion: str, seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    dead = seed % 6
    with torch.no_grad():
        if seed % 2:
            model[2].weight[:, dead] = 0
        else:
            model[0].weight[dead], model[0].bias[dead] = 0, -1
    assert int(scored(model, torch.randn(8, 3, 6, 6), criterion).argmin()) == dead


@pytest.mark.parametrize("criterion", ["thinet", "lasso"])
def test_one_row_per_layer_that_reads_the_group(criterion: str):
    """The first reader finds unit 0 the least, the second unit 1: the mean of both orders."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.a(x) + self.b(x)

    model = Two()
    with torch.no_grad():
        model.stem.weight.copy_(torch.eye(2))
        model.a.weight.copy_(torch.tensor([[0.01, 1.0]]))
        model.b.weight.copy_(torch.tensor([[1.0, 0.01]]))
    groups = sec.couple(sec.capture(model, torch.zeros(1, 2)))
    data = [torch.tensor([[1.0, 1.0], [1.0, -1.0]])]
    if criterion == "lasso":  # which looks at weights of norm one: their size is in the data
        data = [torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
    rows = {how: sec.score(groups, model, criterion, data=data, equalization=how) for how in ("mean", "min", "max")}
    assert [rows[how]["stem"].tolist() for how in ("mean", "min", "max")] == [[0.75, 0.75], [0.5, 0.5], [1, 1]]


@pytest.mark.parametrize("seed", range(20))
def test_every_point_of_the_path_is_optimal(seed: int):
    """The conditions of Karush, Kuhn and Tucker: the slope is the penalty where beta is not zero, no more elsewhere."""
    shares = shares_of(seed, 7).numpy()
    if seed % 2:
        shares[:, 2], shares[:, 5] = 0, -3 * shares[:, 0]
    products, wanted = shares.T @ shares, shares.T @ shares.sum(1)
    penalties, betas, last = path(products, wanted)
    assert betas.shape == (len(penalties), 7)
    assert np.all(np.diff(penalties) < 0) and not betas[0].any()
    for penalty, beta in zip(penalties, betas, strict=True):
        slope = wanted - products @ beta
        allowed = 1e-4 * penalty + 1e-6 * np.abs(wanted).max()
        assert np.all(np.abs(slope) <= penalty + allowed)
        assert np.allclose(slope[beta != 0], penalty * np.sign(beta[beta != 0]), rtol=0, atol=allowed)
    np.testing.assert_allclose(last, wanted - products @ betas[-1], rtol=0, atol=1e-8 * np.abs(wanted).max())


def test_orthogonal_contributions_leave_by_their_share_of_the_output():
    """`beta_c = max(wanted_c - lambda, 0) / products_cc` then, and `wanted_c = energy_c / norm_c`: 4, 2/3, 9/4, 5."""
    energy, norms = torch.tensor([4.0, 2.0, 9.0, 10.0]).double(), torch.tensor([1.0, 3.0, 4.0, 2.0]).double()
    assert leaving_order(energy.diag(), norms.square()).tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("seed", range(5))
def test_of_two_channels_that_add_the_same_one_leaves_and_the_rest_makes_up_for_it(seed: int):
    """Channel 4 is channel 1 once more; the layer behind, fitted again without the one that left, misses nothing."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    second = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    first[4], second[:, 4] = first[1], second[:, 1]
    model = dense(first, second)
    x = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    row = scored(model, x, "lasso")
    gone = int(row.argmin())
    assert gone in (1, 4)
    with torch.no_grad():
        hidden, wanted = model[0](x), model(x)
    kept = hidden[:, [c for c in range(6) if c != gone]]
    fitted = torch.linalg.lstsq(kept, wanted).solution
    assert float((kept @ fitted - wanted).abs().max()) < 1e-10


def test_orders_have_one_unit_per_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 2))
    for criterion in ("thinet", "lasso"):
        row = scored(model, torch.randn(32, 5), criterion, positions=2)
        assert sorted(row.tolist()) == pytest.approx([(i + 1) / 9 for i in range(9)])
