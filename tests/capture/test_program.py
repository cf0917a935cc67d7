"""A captured graph run on real data: the same numbers as the model, from anywhere; nothing of the caller is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.base.errors import InputError, SecateursError
from secateurs.capture import capture
from secateurs.capture.program import BatchAxis, Program, Programs
from secateurs.testing.networks import random_network

pytestmark = pytest.mark.medium

torch.set_num_threads(1)

SEEDS = range(30)


def network(seed):
    """A random network and its inputs in double precision."""
    model, inputs = random_network(seed)
    return model.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)


def at_batch(inputs, count):
    """The inputs at `count` times their batch size: copies with other numbers, so that no two samples are alike."""
    generator = torch.Generator().manual_seed(count)
    return tuple(torch.cat([x, *(other(x, generator) for _ in range(count - 1))]) for x in inputs)


def other(x, generator):
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return torch.randint(0, int(x.max()) + 1, x.shape, generator=generator)


def tensors(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def check_equal(found, expected):
    found, expected = tensors(found), tensors(expected)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12, equal_nan=True), f"differs by {(a - b).abs().max()}"


def stops(count):
    return sorted({0, 1, count // 3, count // 2, max(0, count - 1), count})


@pytest.mark.parametrize("seed", SEEDS)
def test_equals_the_model_at_several_batch_sizes(seed):
    model, example = network(seed)
    programs = Programs(model, capture(model, example))
    for count in (1, 2, 3):
        inputs = at_batch(example, count)
        with torch.no_grad():
            try:
                expected = model(*inputs)
            except RuntimeError:
                assert count > 1
                continue  # this network is made for one batch size
            program, given = programs.program(inputs)
            check_equal(program.output(program.run(program.begin(given))), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_stopped_and_continued_anywhere_it_is_one_run(seed):
    model, inputs = network(seed)
    program, given = Programs(model, capture(model, inputs)).program(inputs)
    with torch.no_grad():
        expected = model(*inputs)
        for stop in range(len(program.graph.nodes) + 1):
            state = program.run(program.begin(given), stop)
            assert state.position == stop
            check_equal(program.output(program.run(state)), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_branches_do_not_see_each_other(seed):
    """One branch runs on with everything disturbed before the other, and the trunk, come to the same end as ever."""
    model, inputs = network(seed)
    program, given = Programs(model, capture(model, inputs)).program(inputs)
    with torch.no_grad():
        expected = model(*inputs)
        for stop in stops(len(program.graph.nodes)):
            trunk = program.run(program.begin(given), stop)
            first, second = program.branch(trunk), program.branch(trunk)
            program.run(first)
            check_equal(program.output(program.run(second)), expected)
            check_equal(program.output(program.run(trunk)), expected)
            check_equal(program.output(first), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_leaves_and_inputs_are_never_written(seed):
    model, inputs = network(seed)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = [x.clone() for x in inputs]
    program, given = Programs(model, capture(model, inputs)).program(inputs)
    with torch.no_grad():
        program.run(program.begin(given))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(x, y) for x, y in zip(inputs, kept, strict=True))


class InPlace(nn.Module):
    """Writes into views of its input, of a buffer and of an activation that is read again."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("count", torch.ones(6))

    def forward(self, x):
        x[:, 0] += 1
        y = self.first(x)
        left, right = y[:, :3], y.view(-1, 2, 3)[:, 1]
        left.relu_()
        self.count.mul_(2)
        right.add_(left)
        y.mul_(self.count)
        return self.last(y) + right.sum()


def test_writing_in_place_stays_inside_the_run_and_aliases_move_together():
    model = InPlace().double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    graph = capture(model, x.clone())
    model.count.fill_(1)
    with torch.no_grad():
        expected = model(x.clone())
        model.count.fill_(1)
        program, given = Programs(model, graph).program(x)
        kept = x.clone()
        for stop in range(len(graph.nodes) + 1):
            trunk = program.run(program.begin(given), stop)
            for state in (program.branch(trunk), program.branch(trunk), trunk):
                check_equal(program.output(program.run(state)), expected)
    assert torch.equal(x, kept)
    assert torch.equal(model.count, torch.ones(6, dtype=torch.float64))


class Rotated(nn.Module):
    """One memory seen as complex and as real numbers, written through both."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = x * 2
        turned = torch.view_as_complex(y.view(-1, 2, 2))
        turned.mul_(1 + 2j)
        y.add_(1)
        return self.head(y) + turned.imag.sum()


def test_aliases_of_other_types_move_together():
    model = Rotated().double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    program, given = Programs(model, capture(model, x)).program(x)
    with torch.no_grad():
        expected = model(x)
        for stop in range(len(program.graph.nodes) + 1):
            trunk = program.run(program.begin(given), stop)
            for state in (program.branch(trunk), program.branch(trunk), trunk):
                check_equal(program.output(program.run(state)), expected)


def test_changed_reads_reach_one_node_only():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU()).double().eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    program, given = Programs(model, capture(model, x)).program(x)
    (relu,) = [node.index for node in program.graph.nodes if "relu" in node.op]
    with torch.no_grad():
        seen = program.run(program.begin(given), reads={relu: lambda value, tensor: -tensor})
        assert torch.equal(program.output(seen), torch.relu(-model[0](x)))


def test_told_of_every_value_before_anything_writes_into_it():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)).double().eval()
    x = torch.randn(8, 3, dtype=torch.float64)
    program, given = Programs(model, capture(model, x)).program(x)
    made = {}
    with torch.no_grad():
        program.run(program.begin(given), made=lambda value, tensor: made.update({value: tensor.clone()}))
        assert torch.equal(made[program.graph.nodes[0].outputs[0]], model[0](x))


def test_gradients_flow_to_replaced_leaves_and_not_to_the_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double().eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    mine = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.named_parameters()}
    programs = Programs(model, capture(model, x)).with_tensors(mine)
    program, given = programs.program(x)
    found = torch.autograd.grad(program.output(program.run(program.begin(given))).sum(), list(mine.values()))
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inputs_of_another_shape_are_refused():
    model = nn.Linear(3, 2).eval()
    graph = capture(model, torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"\(4, 3\)"):
        Program(graph, dict(model.named_parameters())).begin([torch.zeros(4, 3)])


def test_a_batch_on_which_the_model_does_something_else_is_refused():
    class Fork(nn.Module):
        def forward(self, x):
            return torch.relu(x) if len(x) > 2 else torch.tanh(x)

    programs = Programs(Fork(), capture(Fork(), torch.zeros(2, 3)))
    with pytest.raises(InputError, match="something else"):
        programs.program(torch.zeros(3, 3))


@pytest.mark.parametrize("seed", SEEDS)
def test_samples_lie_where_the_axes_say(seed):
    """Running one sample alone gives what the axis picks out of the whole batch, for every value that has an axis."""
    model, example = network(seed)
    inputs = at_batch(example, 2)
    try:
        with torch.no_grad():
            model(*(x[:1] for x in inputs)), model(*inputs)
        programs = Programs(model, capture(model, inputs))
        axes = programs.batch_axes(inputs)
        alone, one = programs.program(tuple(x[:1] for x in inputs))
    except (RuntimeError, SecateursError):
        return  # not made for other batch sizes
    program, given = programs.program(inputs)
    whole, single = {}, {}
    with torch.no_grad():
        program.run(program.begin(given), made=lambda value, tensor: whole.update({value: tensor.clone()}))
        alone.run(alone.begin(one), made=lambda value, tensor: single.update({value: tensor.clone()}))
    assert bool(axes) == (len({len(x) for x in inputs}) == 1)
    for value, axis in axes.items():
        if value in whole and whole[value].dim() == single[value].dim():
            found = axis.by_sample(whole[value])[0]
            expected = axis.by_sample(single[value])[0]
            assert torch.allclose(found.double(), expected.double(), atol=1e-9, equal_nan=True), value


def test_samples_of_attention_are_interleaved():
    """`nn.MultiheadAttention` works on [length, batch, width] and projects rows [length * batch, width]."""
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    for batch in (1, 2, 3):
        x = torch.randn(batch, 5, 4)
        programs = Programs(Net(), capture(Net().eval(), x))
        program, _ = programs.program(x)
        axes = programs.batch_axes(x)
        shapes = {value.index: value.shape for value in program.graph.values}
        flat = [axes[value] for value in axes if shapes[value] == (5 * batch, 4)]
        assert flat, "attention did not flatten its rows"
        assert set(flat) == {BatchAxis(0, 5, minor=True)}, batch
        assert BatchAxis(0, 1) in axes.values()


def test_by_sample_by_value():
    rows = torch.arange(6).view(6, 1)
    assert BatchAxis(0, 3).by_sample(rows).squeeze(-1).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert BatchAxis(0, 3, minor=True).by_sample(rows).squeeze(-1).tolist() == [[0, 2, 4], [1, 3, 5]]


def test_values_that_mix_samples_have_no_axis():
    class Mixed(nn.Module):
        def forward(self, x):
            y = x - x.mean(0, keepdim=True)
            return y * 2, torch.relu(x)

    x = torch.randn(4, 3)
    programs = Programs(Mixed(), capture(Mixed(), x))
    program, _ = programs.program(x)
    axes = programs.batch_axes(x)
    mixed, own = program.graph.outputs
    assert mixed not in axes
    assert axes[own] == BatchAxis(0, 1)
