"""What stays says why: the operator, the user's line, and the cause behind an effect."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sec
from secateurs.couple.group import Groups
from secateurs.testing.chain import check_chain, half_kept
from secateurs.testing.networks import randomize
from secateurs.testing.strategies import networks

torch.set_num_threads(1)

LINE = r" at .*test_reasons\.py:\d+"


def image() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def reasons(groups: Groups, leaf: str, dim: int) -> list[str]:
    """Why the free and frozen groups on one axis stay; free ones give an empty text."""
    return [g.frozen or "" for g in groups if any(m.leaf == leaf and m.dim == dim for m in g.members)]


def owners(groups: Groups, leaf: str, dim: int, size: int) -> list[int]:
    """In how many groups each index of one axis is."""
    count = torch.zeros(size, dtype=torch.long)
    for group in groups:
        for member in group.members:
            if member.leaf == leaf and member.dim == dim:
                count += torch.from_numpy(member.units >= 0).long()
    return count.tolist()


@pytest.mark.medium
@settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(networks(), st.sampled_from(["heads", "head_dim"]))
def test_every_channel_of_every_weight_is_in_one_group_and_what_stays_says_why(program, unit):
    model, example_inputs = program.build()
    graph = sec.capture(model, example_inputs)
    groups = sec.couple(graph, unit=unit)
    for leaf in graph.leaves:
        if leaf.kind != "parameter":
            continue
        for dim, size in enumerate(leaf.shape[:2]):
            if size > 1:
                assert owners(groups, leaf.name, dim, size) == [1] * size, (leaf.name, dim)
    for group in groups:
        assert group.frozen is None or group.frozen.strip()
        assert group.frozen is not None or group.size > 1


class Shuffled(nn.Module):
    """Two producers, concatenated, shuffled, read by a grouped convolution."""

    def __init__(self, sizes: tuple[int, int], groups: int, module: bool = False) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, sizes[0], 1)
        self.b = nn.Conv2d(3, sizes[1], 1)
        self.c = nn.Conv2d(sum(sizes), sum(sizes), 3, padding=1, groups=groups)
        self.d = nn.Conv2d(sum(sizes), 5, 1)
        self.head = nn.Linear(5, 2)
        self.shuffle = nn.ChannelShuffle(groups) if module else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.tanh(self.a(x)), torch.sigmoid(self.b(x))], 1)
        if self.shuffle is not None:
            y = self.shuffle(y)
        else:
            n, c, h, w = y.shape
            y = y.view(n, self.c.groups, c // self.c.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.d(torch.relu(self.c(y))).mean((2, 3)))


@pytest.mark.parametrize("module", [False, True])
def test_two_producers_behind_a_shuffle_lose_channels_where_the_groups_line_up(module):
    """a0 b0 a1 b1 | a2 b2 a3 b3: position k of both groups, and of both halves, goes together."""
    model = Shuffled((4, 4), 2, module).eval()
    randomize(model, torch.Generator().manual_seed(0))
    report = check_chain(model, (image(),), half_kept)
    assert report.free("a.weight", 0) == 2
    units = report.units("a.weight", 0)
    assert units == [units[0], units[1], units[0], units[1]]
    assert units == report.units("b.weight", 0)
    assert report.small.a.out_channels == report.small.b.out_channels == 2
    assert report.small.c.in_channels == 4


@pytest.mark.parametrize(("sizes", "groups"), [((6, 6), 3), ((4, 8), 3)])
@pytest.mark.parametrize("module", [False, True])
def test_two_producers_that_a_shuffle_makes_one_unit_are_frozen_and_say_so(sizes, groups, module):
    captured = sec.capture(Shuffled(sizes, groups, module).eval(), (image(),))
    found = sec.couple(captured)
    for leaf, size in (("a.weight", sizes[0]), ("b.weight", sizes[1])):
        assert owners(found, leaf, 0, size) == [1] * size
        for why in reasons(found, leaf, 0):
            assert re.match(r"`(view|conv2d|channel_shuffle)`.*" + LINE + ".* makes its [0-9]+ channels one unit", why)


def test_rows_that_the_run_never_reads_are_frozen_and_name_the_operator():
    class Slim(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 8)
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(F.linear(x, self.a.weight[:5], self.a.bias[:5])))

    groups = sec.couple(sec.capture(Slim().eval(), (torch.randn(2, 6),)))
    assert owners(groups, "a.weight", 0, 8) == [1] * 8
    free, unread = reasons(groups, "a.weight", 0)
    assert free == ""
    assert re.match(r"`slice`.*" + LINE + ".*no result of this run has it", unread)
    assert next(g for g in groups if g.frozen == unread).members[0].units.tolist() == [-1] * 5 + [0, 1, 2]


class Two(nn.Module):
    """A producer, a function of its result and of the model's input, and a reader."""

    def __init__(self, between, width: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(width, 5), nn.Linear(5, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(self.between(torch.tanh(self.a(x)), x))))


@pytest.mark.parametrize(
    ("between", "leaf", "dim", "cause"),
    [
        (lambda y, x: y, "a.weight", 1, r"the model's input `x`"),
        (lambda y, x: y + torch.relu(x).flip(1), "a.weight", 0, r"`add`.* combines it with the model's input `x`"),
        (lambda y, x: torch.renorm(y, 2, 0, 1.0), "b.weight", 1, r"the result of `renorm`.*an operator without a rule"),
        (lambda y, x: torch.renorm(y, 2, 0, 1.0), "a.weight", 0, r"no rule for the operator `renorm`"),
        (lambda y, x: torch.tanh(y.softmax(1)), "b.weight", 1, r"the result of `softmax`.*which can not lose channels"),
        (lambda y, x: torch.tanh(y.softmax(1)), "a.weight", 0, r"`softmax`.* runs over this axis"),
        (lambda y, x: (y.unsqueeze(2) * y.flip(1).unsqueeze(1)).flatten(1)[:, :6], "a.weight", 0, r"`[a-z_]+`"),
    ],
)
def test_a_reason_names_what_holds_the_channels(between, leaf, dim, cause):
    groups = sec.couple(sec.capture(Two(between).eval(), (torch.randn(2, 6),)))
    for why in reasons(groups, leaf, dim):
        assert re.search(cause, why) and re.search(LINE, why), why
        assert "channels that can not go" not in why


def test_the_input_of_a_network_is_named_as_the_cause():
    groups = sec.couple(
        sec.capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), (image(),))
    )
    (why,) = reasons(groups, "0.weight", 1)
    assert re.fullmatch(r"`conv2d` in `0`.* multiplies it with the model's input `[^`]+`, which stays as it is", why)
