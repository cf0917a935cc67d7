"""`elementwise="keep"`: channels of several activations that meet element by element stay, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sec
from secateurs.capture.graph import Node
from secateurs.capture.program import follows_inputs
from secateurs.capture.run import operator
from secateurs.couple.group import Groups
from secateurs.testing.strategies import networks

torch.set_num_threads(1)
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


class Meet(nn.Module):
    """`how(net, a, b)` of `a`, the output of `first` (8 channels), and `b`, that of `second` (8), is read by `last`."""

    def __init__(self, how: Callable[[Meet, Tensor, Tensor], Tensor], reads: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(reads, 5, 1)
        self.deep, self.norm, self.one = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.how(self, self.first(x), self.second(x)))


def kept(how: Callable[[Meet, Tensor, Tensor], Tensor], reads: int = 8) -> tuple[str | None, str | None]:
    """Why the channels of `first` and of `second` stay, None where some can go."""
    groups = sec.couple(sec.capture(Meet(how, reads).eval(), X), elementwise="keep")
    return why(groups, "first.weight"), why(groups, "second.weight")


def why(groups: Groups, leaf: str) -> str | None:
    """The reason on axis 0 of a leaf, None where some of it can go."""
    found = {group.frozen for group in groups if any(m.leaf == leaf and m.dim == 0 for m in group.members)}
    return None if None in found else found.pop()


MEETINGS = {
    "add": lambda net, a, b: a + b,
    "add_": lambda net, a, b: a.relu_().add_(b),
    "sub": lambda net, a, b: a - b,
    "mul": lambda net, a, b: a * b,
    "div": lambda net, a, b: a / (b.abs() + 1),
    "maximum": lambda net, a, b: torch.maximum(a, b),
    "minimum": lambda net, a, b: torch.minimum(a, b.relu()),
    "where": lambda net, a, b: torch.where(a > 0, a, b),
    "lerp": lambda net, a, b: torch.lerp(a, b, 0.3),
    "stack": lambda net, a, b: torch.stack([a, b]).mean(0),
    "mul_gate": lambda net, a, b: a * b.mean((2, 3), keepdim=True).sigmoid(),
    "add_far": lambda net, a, b: net.norm(F.max_pool2d(a, 3, 1, 1)) + b,
    "add_depthwise": lambda net, a, b: a + net.deep(a) + b,
}


@pytest.mark.parametrize("name", MEETINGS)
def test_what_meets_another_activation_stays(name: str):
    op = {"where": "where", "stack": "stack"}.get(name, name.partition("_")[0])
    for reason in kept(MEETINGS[name]):
        assert reason is not None
        assert op in reason.split("`")[1] or name == "where"
        assert "another activation" in reason
        assert "test_elementwise.py:" in reason


ALONE = {
    "nothing": lambda net, a, b: torch.cat([a, b], 1)[:, :8] * 1.0,
    "a number": lambda net, a, b: a * 2 + 1 + 0 * b[:, :1],
    "a parameter": lambda net, a, b: a * net.scale,
    "a map of one channel": lambda net, a, b: a * net.one(b).sigmoid(),
    "itself": lambda net, a, b: a * a,
    "a function of itself": lambda net, a, b: a * torch.sigmoid(a) - a.relu(),
    "a function of itself with parameters": lambda net, a, b: (net.scale * a).tanh() + a,
    "its own mean": lambda net, a, b: a - a.mean((2, 3), keepdim=True),
    "a batch norm": lambda net, a, b: net.norm(a),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_meets_no_other_activation_can_go(name: str):
    graph = sec.capture(Meet(ALONE[name]).eval(), X)
    default, simple = sec.couple(graph), sec.couple(graph, elementwise="keep")
    assert why(simple, "first.weight") is None
    assert str(simple) == str(default)


def test_a_pair_that_meets_behind_a_concatenation_leaves_the_rest_free():
    """The second half of the concatenation is added to, the first is not."""
    first, second = kept(lambda net, a, b: torch.cat([a, b + net.deep(b)], 1), reads=16)
    assert first is None
    assert second is not None
    assert "`add`" in second


def test_halves_of_one_layer_are_two_activations_written_out_or_not():
    for how in (lambda net, a, b: F.glu(a, 1), lambda net, a, b: a[:, :4] * a[:, 4:].sigmoid()):
        first, _ = kept(how, reads=4)
        assert first is not None
        assert "glu" in first or "`mul`" in first


def test_the_models_input_is_an_activation():
    net = Meet(lambda net, a, b: a, reads=8)
    net.forward = lambda x: net.last(net.first(x[:, :3]) + x[:, 3:])
    for how in ("couple", "keep"):
        reason = why(sec.couple(sec.capture(net, torch.randn(1, 11, 4, 4)), elementwise=how), "first.weight")
        assert reason is not None
        assert "`add`" in reason


def test_prune_leaves_a_residual_stage_whole_and_narrows_what_is_inside_a_block():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.inner, self.outer = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 8), (8, 8)))
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.head((x + self.outer(self.inner(x).relu())).mean((2, 3)))

    budget = sec.Budget(channels=0.5)
    plain, simple = (sec.prune(Block().eval(), X, budget=budget, elementwise=how) for how in ("couple", "keep"))
    assert plain.model.stem.out_channels < 8
    assert (simple.model.stem.out_channels, simple.model.outer.out_channels) == (8, 8)
    assert simple.model.inner.out_channels == 4
    assert simple.recipe["elementwise"] == "keep"
    assert any("another activation" in item.why for item in simple.frozen)


def test_an_unknown_way_is_refused():
    with pytest.raises(sec.InputError, match="'couple' or 'keep'"):
        sec.couple(sec.capture(Meet(ALONE["itself"]).eval(), X), elementwise="freeze")


@pytest.mark.medium
@settings(derandomize=True, deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(networks(), st.sampled_from(["heads", "head_dim"]))
def test_what_can_go_comes_from_one_place_wherever_two_activations_meet(program, unit):
    """Walks back from both operands, over values that carry the unit, to the layers whose weights make it."""
    model, example_inputs = program.build()
    graph = sec.capture(model, example_inputs)
    coupled, groups = sec.couple(graph, unit=unit), sec.couple(graph, unit=unit, elementwise="keep")
    assert coupled.graph.hash == groups.graph.hash
    assert places(groups) <= places(coupled)
    moving = follows_inputs(graph)
    carried: dict[int, set[int]] = {}
    for (value, _), units in groups.axes.items():
        carried.setdefault(value, set()).update(units[units >= 0].tolist())

    def pointwise(node: Node) -> bool:
        return torch.Tag.pointwise in operator(node.op).tags

    def begins(value: int, unit: int) -> frozenset[int]:
        producer = graph.values[value].producer
        assert producer is not None
        node = graph.nodes[producer]
        reads = [item for item in node.inputs if unit in carried.get(item, ())]
        behind = [item for item in reads if item in moving]
        layer = any(item not in moving and len(graph.values[item].shape) > 1 for item in reads) and not pointwise(node)
        return frozenset([producer]) if layer or not behind else frozenset().union(*(begins(x, unit) for x in behind))

    for node in graph.nodes:
        if pointwise(node) and "copy" not in node.op:
            inputs = [value for value in dict.fromkeys(node.inputs) if value in moving]
            for first, second in combinations(inputs, 2):
                for met in carried.get(first, set()) & carried.get(second, set()):
                    assert begins(first, met) == begins(second, met), (node, met)


def places(groups: Groups) -> set[tuple[str, int, int]]:
    """Every index of every leaf that may go."""
    return {
        (member.leaf, member.dim, int(index))
        for group in groups.free
        for member in group.members
        for index in (member.units >= 0).nonzero()[0]
    }
