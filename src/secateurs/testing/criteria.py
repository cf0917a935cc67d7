"""What every criterion must do. A new one inherits this suite and is done when it passes:

class TestMine(CriterionConformance):
    criterion = "mine"

Criteria that need data get 8 random samples with random targets and a squared-error loss.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.base.errors import InputError
from secateurs.capture import capture
from secateurs.couple import ChannelGroup, Groups, couple
from secateurs.score import CRITERIA, score
from secateurs.score.criterion import Criterion
from secateurs.score.equalize import EQUALIZATIONS, NORMALIZERS
from secateurs.testing.chain import check_untouched, snapshot
from secateurs.testing.layers import FusedAttention
from secateurs.testing.networks import randomize


class Chain(nn.Module):
    """Convolution, batch norm and a flatten: a unit of the convolution owns 16 columns of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.hidden, self.drop, self.head = nn.Linear(6 * 16, 5), nn.Dropout(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        result: Tensor = self.head(self.drop(torch.relu(self.hidden(x))))
        return result


class Residual(nn.Module):
    """Three layers produce the channels of one group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.left(x))
        result: Tensor = self.head(x + torch.relu(self.right(x)))
        return result


class Concat(nn.Module):
    """Two groups side by side on one axis, and a third behind."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.both, self.head = nn.Conv2d(9, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.relu(torch.cat([self.left(x), self.right(x)], 1))
        result: Tensor = self.head(torch.relu(self.both(both)))
        return result


def grouped() -> nn.Module:
    """A unit of a convolution of three groups is one channel of each."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 9, 3, groups=3), nn.ReLU(), nn.Conv2d(9, 2, 1)
    )  # fmt: skip


def attention() -> nn.Module:
    """A unit is a head of four channels, with its rows of queries, keys and values."""
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), FusedAttention(8, 3, 4, False), nn.ReLU(), nn.Linear(8, 2))


IMAGE, TOKENS = (1, 3, 4, 4), (1, 4, 5)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    "chain": (Chain, IMAGE, [5, 6]),
    "residual": (Residual, IMAGE, [6]),
    "concat": (Concat, IMAGE, [4, 5, 6]),
    "grouped": (grouped, IMAGE, [3, 4]),
    "attention": (attention, TOKENS, [3, 8, 8]),
}
"""A network, its input's shape, and the sizes of its free groups."""


class CriterionConformance:
    """Inherit and set `criterion`, a registered name or a function.

    Set `looks_at_model` to False for one that does not look at the model at all: its scores then need not follow a unit
    that moves. Set `by_batch` for one that is defined per mini-batch, so that the split of the data matters, and
    `options` to what it should be called with. Scores that should agree may differ by `tolerance`, relative to the
    largest of the group.
    """

    criterion: ClassVar[str | Criterion | Callable[..., Tensor]]
    looks_at_model: ClassVar[bool] = True
    by_batch: ClassVar[bool] = False
    options: ClassVar[dict[str, Any]] = {}
    tolerance: ClassVar[float] = 1e-5

    def scores(
        self, groups: Groups, model: nn.Module, *, sizes: tuple[int, ...] = (4, 4), **more: Any
    ) -> dict[str, Tensor]:
        """Scores on 8 samples in batches of these sizes; without data if the criterion needs none."""
        needs = self.needs()
        given: dict[str, Any] = (
            {"data": samples(groups, sizes, targets=needs == "loss"), "loss": half_squared_error} if needs else {}
        )
        return score(groups, model, type(self).criterion, **given, options=self.options, **more)

    def needs(self) -> str:
        criterion = type(self).criterion
        found = CRITERIA[criterion] if isinstance(criterion, str) else criterion
        return found.needs if isinstance(found, Criterion) else ""

    def test_is_registered(self) -> None:
        criterion = type(self).criterion
        if isinstance(criterion, str):
            assert criterion in CRITERIA
            assert CRITERIA[criterion].__doc__, "it needs a docstring: formula, direction, when it is a bad choice"

    def test_gives_every_free_group_one_finite_number_per_unit(self) -> None:
        for case in CASES:
            model, groups = _build(case)
            found = self.scores(groups, model)
            assert found.keys() == {group.name for group in groups.free}
            for group in groups.free:
                row = found[group.name]
                assert tuple(row.shape) == (group.size,), f"{case}, `{group.name}`: {tuple(row.shape)}"
                assert row.dtype == torch.float64
                assert bool(torch.isfinite(row).all()), f"{case}, `{group.name}`: {row}"
                assert not row.requires_grad

    def test_same_seed_gives_the_same_bits(self) -> None:
        for case in CASES:
            model, groups = _build(case)
            first = self.scores(groups, model, seed=3)
            torch.rand(5)  # the caller's own random numbers go on
            second = self.scores(groups, model, seed=3)
            for name, row in first.items():
                assert torch.equal(row, second[name]), f"{case}, `{name}`"

    def test_leaves_model_and_process_untouched(self) -> None:
        for case in CASES:
            model, groups = _build(case)
            model.train()
            next(model.children()).eval()
            parameters = list(model.parameters())
            parameters[0].requires_grad_(False)
            parameters[1].grad = torch.ones_like(parameters[1])
            before, process = snapshot(model), _process(model)
            self.scores(groups, model)
            check_untouched(model, before)
            for aspect, now in _process(model).items():
                assert _same(now, process[aspect]), f"{case}: {aspect} changed"

    def test_mode_of_the_model_does_not_matter(self) -> None:
        for case in CASES:
            model, groups = _build(case)
            evaluated, trained = self.scores(groups, model.eval()), self.scores(groups, model.train())
            for name, row in evaluated.items():
                assert torch.equal(row, trained[name]), f"{case}, `{name}`"

    def test_works_with_every_equalization_and_normalizer(self) -> None:
        model, groups = _build("residual")
        choices: list[dict[str, Any]] = [{"equalization": name} for name in EQUALIZATIONS]
        choices += [{"normalizer": name} for name in NORMALIZERS]
        for choice in choices:
            for row in self.scores(groups, model, **choice).values():
                assert bool(torch.isfinite(row).all()), str(choice)

    def test_split_into_batches_does_not_matter(self) -> None:
        if self.by_batch or not self.needs():
            return
        for case in CASES:
            model, groups = _build(case)
            whole = self.scores(groups, model, sizes=(8,))
            for sizes in ((2, 2, 2, 2), (5, 3)):
                for name, row in self.scores(groups, model, sizes=sizes).items():
                    assert _close(row, whole[name], self.tolerance), f"{case}, `{name}`: {sizes} against (8,)"

    def test_needs_data_if_it_says_so(self) -> None:
        model, groups = _build("chain")
        if self.needs():
            refused = ""
            try:
                score(groups, model, type(self).criterion, options=self.options)
            except InputError as error:
                refused = str(error)
            assert "needs data" in refused

    def test_refuses_data_that_is_not_finite(self) -> None:
        """Counts and orders hide a nan, so that it would decide which units go and nobody would know."""
        if not self.needs():
            return
        model, groups = _build("chain")
        for bad in (float("nan"), float("inf")):
            data = samples(groups, (4, 4), targets=self.needs() == "loss")
            inputs = data[1][0] if self.needs() == "loss" else data[1]
            inputs[0, 0, 0, 0] = bad
            refused = ""
            try:
                score(groups, model, type(self).criterion, data=data, loss=half_squared_error, options=self.options)
            except InputError as error:
                refused = str(error)
            assert refused, f"{bad} in the data went unnoticed"

    def test_follows_a_unit_that_moves(self) -> None:
        """The network with two units exchanged, with all that they own, is the same network: so are their scores."""
        if not self.looks_at_model:
            return
        for case in CASES:
            model, groups = _build(case)
            before = self.scores(groups, model)
            for group in groups.free:
                other, _ = _build(case)
                _exchange(other, group, 0, group.size - 1)
                expected = before[group.name].clone()
                expected[[0, -1]] = expected[[-1, 0]]
                found = self.scores(groups, other)[group.name]
                assert _close(found, expected, self.tolerance), f"{case}, `{group.name}` does not follow"

    def test_tells_units_apart(self) -> None:
        for case in CASES:
            model, groups = _build(case)
            for name, row in self.scores(groups, model).items():
                assert len(set(row.tolist())) > 1, f"{case}, `{name}`: all units score {float(row[0])}"


def _build(case: str) -> tuple[nn.Module, Groups]:
    """The network with random weights, the same each time, and its groups."""
    make, shape, sizes = CASES[case]
    with torch.random.fork_rng(devices=[]):
        model = make().eval()
    randomize(model, torch.Generator().manual_seed(5))
    groups = couple(capture(model, torch.zeros(shape)))
    assert sorted(group.size for group in groups.free) == sizes, [group.name for group in groups.free]
    return model, groups


def samples(groups: Groups, sizes: tuple[int, ...], *, targets: bool = True) -> list[Any]:
    """Random batches of these sizes for the network of the groups, the same samples whatever the split."""
    graph = groups.graph
    generator = torch.Generator().manual_seed(11)
    (given,), (output,) = graph.inputs, graph.outputs
    count = sum(sizes)
    inputs = torch.randn(count, *graph.values[given.value].shape[1:], generator=generator)
    wanted = torch.randn(count, *graph.values[output].shape[1:], generator=generator)
    pairs = zip(torch.split(inputs, list(sizes)), torch.split(wanted, list(sizes)), strict=True)
    return [(x, y) if targets else x for x, y in pairs]


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance, summed over a sample's entries, averaged over samples."""
    return (output - target).square().flatten(1).sum(1).mean() / 2


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-12))


def _exchange(model: nn.Module, group: ChannelGroup, one: int, other: int) -> None:
    """Swap everything that two units own, on every axis."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for member in group.members:
            tensor = tensors[member.leaf]
            order = np.arange(tensor.shape[member.dim])
            first, second = member.positions(one), member.positions(other)
            order[first], order[second] = second, first
            tensor.copy_(tensor.index_select(member.dim, torch.from_numpy(order)))


def _process(model: nn.Module) -> dict[str, Any]:
    """What scoring could disturb beside the tensors and flags of the model."""
    return {
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "torch's random state": torch.get_rng_state(),
        "Python's random state": random.getstate(),
        "NumPy's random state": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "gradient mode": torch.is_grad_enabled(),
        "number of threads": torch.get_num_threads(),
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
