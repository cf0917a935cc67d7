"""Optimal brain surgeon against trying everything, least squares by NumPy, and the greedy order one by one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from secateurs.sparsity import parse_pattern
from secateurs.sparsity import surgeon as module
from secateurs.sparsity.layout import Layout
from secateurs.sparsity.surgeon import Quadratic, damped, fitted, operate

PATTERNS = ("weight", "rows(2)", "simd(3)", "block(2,3)", "vector", "kernel", "filter")


def problem(outputs: int, inputs: int, groups: int = 1, seed: int = 0) -> tuple[Quadratic, Tensor, Tensor]:
    """What X [groups, rows, inputs] and wanted Y [groups, rows, outputs of a group] ask of the weights; X and Y."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(groups, 5 * inputs, inputs, generator=generator, dtype=torch.float64) @ mix
    y = torch.randn(groups, 5 * inputs, outputs // groups, generator=generator, dtype=torch.float64)
    y = y + x @ torch.randn(groups, inputs, outputs // groups, generator=generator, dtype=torch.float64)
    return Quadratic(x.mT @ x, (x.mT @ y).mT.reshape(outputs, inputs)), x, y


def brute(error: Quadratic, alive: Tensor) -> Tensor:
    """The least error of each output on its support, `[outputs]`, without the constant; by NumPy, one by one."""
    each = len(error.right) // len(error.hessian)
    found = []
    for row, kept in enumerate(alive):
        own = kept.nonzero().flatten().numpy()
        moments, right = error.hessian[row // each].numpy(), error.right[row].numpy()
        best = np.linalg.solve(moments[np.ix_(own, own)], right[own]) if len(own) else np.zeros(0)
        found.append(-float(best @ right[own]))
    return torch.tensor(found, dtype=torch.float64)


def test_by_hand() -> None:
    x, y = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[2.0], [3.0]]).double()
    error = Quadratic((x.T @ x).unsqueeze(0), (x.T @ y).T)
    assert fitted(error, torch.ones(1, 1, dtype=torch.bool)).item() == pytest.approx(1.6)


def test_nothing_removed_gives_the_weights_that_were() -> None:
    error, _, _ = problem(4, 6)
    weights = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    there = Quadratic(error.hessian, torch.zeros(4, 6).double()).around(weights)
    mask, found = operate(there, parse_pattern("weight").groups((4, 6)), 0.0)
    assert bool(mask.all())
    torch.testing.assert_close(found, weights)


def test_better_than_magnitude_with_least_squares_on_average() -> None:
    lost = {"magnitude": 0.0, "surgeon": 0.0}
    for seed in range(8):
        error, _, _ = problem(6, 10, seed=seed)
        dense = fitted(error, torch.ones(6, 10, dtype=torch.bool))
        alive = torch.zeros(60, dtype=torch.bool).index_fill(0, dense.abs().flatten().argsort()[24:], True)
        lost["magnitude"] += float(brute(error, alive.reshape(6, 10)).sum())
        lost["surgeon"] += float(error.error(operate(error, parse_pattern("weight").groups((6, 10)), 0.4)[1]).sum())
    assert lost["surgeon"] < lost["magnitude"]


@pytest.mark.parametrize("groups", [1, 3])
def test_the_fit_is_that_of_lstsq_on_the_support(groups: int) -> None:
    error, x, y = problem(6, 9, groups)
    alive = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    alive[2] = False
    found = fitted(error, alive)
    for row in range(6):
        own = alive[row].numpy()
        group, column = divmod(row, 6 // groups)
        solution = np.linalg.lstsq(x[group].numpy()[:, own], y[group].numpy()[:, column], rcond=None)[0]
        np.testing.assert_allclose(found[row].numpy()[own], solution, rtol=1e-8, atol=1e-10)
    assert not bool(found[~alive].any())


def test_error_is_that_of_the_outputs() -> None:
    error, x, y = problem(4, 5, 2)
    weights = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    direct = (y - x @ weights.reshape(2, 2, 5).mT).square().sum(1).flatten()
    torch.testing.assert_close(error.error(weights) + y.square().sum(1).flatten(), direct)
    there = error.around(weights)
    step = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(there.error(weights + step) - there.error(weights), error.error(step))


def test_one_weight_goes_as_if_all_had_been_tried() -> None:
    error, _, _ = problem(1, 7)
    grouping = parse_pattern("weight").groups((1, 7))
    mask, weights = operate(error, grouping, 1 / 7)
    tries = [~torch.eye(7, dtype=torch.bool)[index : index + 1] for index in range(7)]
    best = min(tries, key=lambda alive: float(brute(error, alive)))
    assert torch.equal(mask, best)
    torch.testing.assert_close(error.error(weights), brute(error, best))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_saliency_of_a_group_is_what_its_removal_costs(pattern: str) -> None:
    shape, layout = ((4, 2, 3, 3), Layout(groups=2))
    error, _, _ = problem(4, 18, 2)
    grouping = parse_pattern(pattern).groups(shape, layout)
    ids = grouping.ids.reshape(4, 18)
    alive = torch.rand(4, 18, generator=torch.Generator().manual_seed(2)) < 0.8
    _, scores = module._fit(error, alive, module.Grouping(ids, grouping.count))
    whole = brute(error, alive).sum()
    costs = torch.stack([brute(error, alive & (ids != group)).sum() - whole for group in range(grouping.count)])
    torch.testing.assert_close(scores, costs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pattern", ["weight", "rows(2)", "simd(2)"])
def test_with_a_round_for_every_group_it_is_the_greedy_order(pattern: str) -> None:
    error, _, _ = problem(4, 6)
    grouping = parse_pattern(pattern).groups((4, 6))
    mask, _ = operate(error, grouping, 0.5, rounds=1000)
    alive = torch.ones(4, 6, dtype=torch.bool)
    for _ in range(round(0.5 * grouping.count)):
        left = grouping.kept(alive).nonzero().flatten().tolist()
        gone = min(left, key=lambda group: float(brute(error, alive & (grouping.ids != group)).sum()))
        alive &= grouping.ids != gone
    assert torch.equal(mask, alive)


def test_two_of_four_stay_and_rounds_pay() -> None:
    grouping = parse_pattern("2:4").groups((6, 16))
    lost = []
    for rounds in (1, 100):
        total = 0.0
        for seed in range(5):
            error, _, _ = problem(6, 16, seed=seed)
            mask, weights = operate(error, grouping, None, rounds=rounds)
            assert bool((mask.reshape(6, 4, 4).sum(2) == 2).all())
            total += float(error.error(weights).sum())
        lost.append(total)
    assert lost[1] < lost[0]


def test_near_the_best_support_of_all_and_far_better_than_magnitude() -> None:
    error, _, _ = problem(1, 8, seed=5)
    grouping = parse_pattern("weight").groups((1, 8))
    _, weights = operate(error, grouping, 0.5, rounds=8)
    supports = [torch.zeros(1, 8, dtype=torch.bool).index_fill(1, torch.tensor(kept), True)
                for kept in combinations(range(8), 4)]  # fmt: skip
    errors = torch.stack([brute(error, alive)[0] for alive in supports]).sort().values
    dense = fitted(error, torch.ones(1, 8, dtype=torch.bool))
    largest = torch.zeros(1, 8, dtype=torch.bool).index_fill(1, dense.abs().argsort()[0, 4:], True)
    mine = error.error(weights)[0]
    assert errors[0] - 1e-9 <= mine <= errors[5]
    assert mine <= brute(error, largest)[0]


def test_what_was_dead_stays_dead_and_counts() -> None:
    error, _, _ = problem(4, 6)
    grouping = parse_pattern("weight").groups((4, 6))
    first, _ = operate(error, grouping, 0.25)
    second, weights = operate(error, grouping, 0.5, within=first)
    assert not bool((second & ~first).any())
    assert int(second.sum()) == 12
    assert not bool(weights[~second].any())


def test_conjugate_gradients_are_the_inverses(monkeypatch: pytest.MonkeyPatch) -> None:
    error, _, _ = problem(8, 12, 2)
    alive = torch.rand(8, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    alive[3] = False
    exact = fitted(error, alive)
    monkeypatch.setattr(module, "WORK", 0)
    torch.testing.assert_close(fitted(error, alive), exact, rtol=1e-6, atol=1e-8)
    mask, _ = operate(error, parse_pattern("rows(2)").groups((8, 6, 2), Layout(groups=2)), 0.5)
    assert int(mask.sum()) == 48


def test_inputs_that_were_never_active_can_be_inverted() -> None:
    gram = torch.zeros(2, 3, 3, dtype=torch.float64)
    gram[0, 0, 0] = 4
    held = damped(gram, 1e-3, gram.diagonal(dim1=1, dim2=2).mean(1))
    assert bool((torch.linalg.eigvalsh(held) > 0).all())
    weights = fitted(Quadratic(held, torch.zeros(2, 3).double()), torch.ones(2, 3, dtype=torch.bool))
    assert not bool(weights.any())
