"""Which weights read a group and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.couple.columns import reading_columns
from secateurs.couple.group import Groups
from secateurs.testing.criteria import CASES


def coupled(model: nn.Module, inputs: Tensor) -> Groups:
    return sec.couple(sec.capture(model, inputs))


READERS = {
    "chain": {"conv": ["hidden.weight 1"], "hidden": ["head.weight 1"]},
    "residual": {"stem": ["left.weight 1", "right.weight 1", "head.weight 1"]},
    "concat": {"left": ["both.weight 1"], "right": ["both.weight 1"], "both": ["head.weight 1"]},
    "grouped": {"0": ["2.weight 1"], "2": ["4.weight 1"]},
}


@pytest.mark.parametrize("case", sorted(READERS))
def test_the_columns_that_read_each_group(case: str):
    make, shape, _ = CASES[case]
    found = reading_columns(coupled(make(), torch.zeros(shape)))
    assert found.missing == {}
    assert {name: [f"{m.leaf} {m.dim}" for m in members] for name, members in found.found.items()} == READERS[case]


def test_what_reads_a_group_otherwise_is_named():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(3, 2)
            self.tied = nn.Linear(6, 3)
            self.norm, self.last = nn.LayerNorm(5), nn.Linear(5, 2)
            self.five = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            product = self.one(x) @ self.two(x).T
            return product, self.out(self.tied(self.two(x))), self.last(self.norm(self.five(x)))

    missing = reading_columns(coupled(Odd(), torch.zeros(3, 4))).missing
    assert any("not through a weight" in why for why in missing.values())
    assert "layer_norm" in missing["five"]


def test_a_weight_that_also_does_something_else_carries_no_gates():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.table(x).relu(), self.table.weight)

    (why,) = reading_columns(coupled(Tied(), torch.zeros(2, 3, dtype=torch.int64))).missing.values()
    assert why.startswith("`table.weight`, which reads it, is also read by `embedding`")
