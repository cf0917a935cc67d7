"""Writes into every second channel, where the channels that are left are no longer every second."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.cut.form import GraphModule

torch.set_num_threads(1)


class Writer(nn.Module):
    """`write(o, y)` changes o `[B, 8, H, W]` in place; y is `[B, 4, H, W]`."""

    def __init__(self, write: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 5, 1)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        o, y = self.a(x).abs(), torch.tanh(self.b(x))
        self.write(o, y)
        return self.c(o)


class Wide(Writer):
    """The same with twice the channels."""

    def __init__(self, write: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__(write)
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(16, 5, 1)


def plain(o: Tensor, y: Tensor) -> None:
    o[:, ::2] = y


def sum_with(o: Tensor, y: Tensor) -> None:
    o[:, ::2] += y


def number(o: Tensor, y: Tensor) -> None:
    o[:, ::2] = 0.5


def zero(o: Tensor, y: Tensor) -> None:
    o[:, ::2].zero_()


def broadcast(o: Tensor, y: Tensor) -> None:
    o[:, ::2] = y[:, :, :1, :1]


def channels_last(o: Tensor, y: Tensor) -> None:
    o.permute(0, 2, 3, 1)[..., ::2] = y.permute(0, 2, 3, 1)


def part_of_the_image(o: Tensor, y: Tensor) -> None:
    o[:, ::2, 1:, :2] = y[:, :, 1:, :2]


def image_first(o: Tensor, y: Tensor) -> None:
    o[:, :, 1:][:, ::2] = y[:, :, 1:]


def product(o: Tensor, y: Tensor) -> None:
    o[:, ::2].mul_(y)


def other_type(o: Tensor, y: Tensor) -> None:
    o[:, ::2] = y.double()


def result_read(o: Tensor, y: Tensor) -> None:
    o[:, 1::2].copy_(o[:, ::2].copy_(y).relu())


def slice_of_a_slice(o: Tensor, y: Tensor) -> None:
    o[:, ::2][:, 1:] = y[:, 1:]


def through_a_permuted_view(o: Tensor, y: Tensor) -> None:
    o[:, ::2].permute(0, 2, 3, 1).mul_(y.permute(0, 2, 3, 1))


def view_read_after_the_whole_is_written(o: Tensor, y: Tensor) -> None:
    view = o[:, ::2]
    o.mul_(2)
    o[:, 1::2] = view


def back_too_late(o: Tensor, y: Tensor) -> None:
    view = o[:, ::2]
    view.mul_(y)
    o[:, 1::2] = o[:, :1]
    o[:, ::2] = view


def read_before(o: Tensor, y: Tensor) -> None:
    o.add_(o[:, ::2].sum(1, keepdim=True))


def read_after_a_write_elsewhere(o: Tensor, y: Tensor) -> None:
    o[:, 1::2] = y
    o.mul_(o[:, ::2].mean((1, 2, 3), keepdim=True))


def back_and_on(o: Tensor, y: Tensor) -> None:
    o[:, ::2] += y
    o[:, ::2] *= y
    o.mul_(2)


WRITES = (plain, sum_with, number, zero, broadcast, channels_last, part_of_the_image, image_first)
HELD = (
    product, other_type, result_read, slice_of_a_slice, through_a_permuted_view, view_read_after_the_whole_is_written,
    back_too_late,
)  # fmt: skip
"""Writes (and reads of what was written) that a cut can not follow where channels lie unevenly."""


def check(write: Callable[[Tensor, Tensor], None], keep: tuple[list[int], list[int]]) -> sec.CutResult:
    """Cut, and compare with the original whose last layer does not read what went."""
    model, x = Writer(write).eval(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    graph = sec.capture(model, x)
    groups = sec.couple(graph)
    mine = {groups.free[0].name: keep[0], **{group.name: keep[1] for group in groups.free[1:]}}
    plan = sec.plan(graph, groups, keep=mine)
    result = sec.cut_detailed(model, plan, x)
    gone = list(plan.removed["c.weight"][1])
    assert len(gone) == 8 - len(keep[0]) - len(keep[1])
    with torch.no_grad():
        model.c.weight[:, gone] = 0
    for inputs in (x, torch.randn(3, 3, 4, 4)):
        torch.testing.assert_close(result.model(inputs), model(inputs))
    return result


@pytest.mark.parametrize("write", WRITES)
def test_channels_that_lie_unevenly_are_written_by_number(write: Callable[[Tensor, Tensor], None]):
    result = check(write, ([0, 1, 3], [2]))
    assert result.form == "graph"
    assert any("index_put_" in node.op for node in result.model.graph.nodes)
    again = GraphModule.from_json(result.model.to_json(), result.model.state_dict())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(again(x), result.model(x))


def test_gradients_pass_through_the_write():
    small = check(plain, ([0, 1, 3], [2])).model.train()
    small(torch.randn(2, 3, 4, 4)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in small.parameters())


@pytest.mark.parametrize("write", WRITES)
def test_channels_that_still_alternate_need_no_graph(write: Callable[[Tensor, Tensor], None]):
    assert check(write, ([0, 2, 3], [1, 2, 3])).form == "native"


@pytest.mark.parametrize("write", HELD)
def test_what_no_cut_could_write_stays_and_says_why(write: Callable[[Tensor, Tensor], None]):
    model, x = Writer(write).eval(), torch.randn(2, 3, 4, 4)
    groups = sec.couple(sec.capture(model, x))
    held = {
        int(index): group.frozen
        for group in groups.frozen
        for member in group.members
        if (member.leaf, member.dim) == ("a.weight", 0)
        for index in (member.units >= 0).nonzero()[0]
    }
    assert all("a view of step 2" in held[index] and "test_writes.py" in held[index] for index in range(7))


@pytest.mark.parametrize("write", [*HELD, *WRITES, read_before, read_after_a_write_elsewhere, back_and_on])
def test_half_of_what_is_free_can_always_go(write: Callable[[Tensor, Tensor], None]):
    model, x = Wide(write).eval(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    graph = sec.capture(model, x)
    groups = sec.couple(graph)
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        keep = {group.name: torch.randperm(group.size, generator=draw)[: group.size // 2 + 1] for group in groups.free}
        plan = sec.plan(graph, groups, keep={name: sorted(kept.tolist()) for name, kept in keep.items()})
        sec.cut(model, plan, x)
