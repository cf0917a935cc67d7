"""The oracle and masking: the same numbers as running the whole network anew for every unit."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import secateurs as sec
from secateurs.base.errors import InputError, UnknownNameError
from secateurs.capture.program import Programs
from secateurs.capture.rows import rows_of
from secateurs.score.criterion import Context
from secateurs.score.masking import masked_means
from secateurs.score.samples import Samples
from secateurs.score.score import tensors_of
from secateurs.testing.networks import random_network

pytestmark = pytest.mark.medium

torch.set_num_threads(1)


def squares(output, target):
    """A loss for any output: the mean over samples of the squares of all floating-point tensors in it."""
    found = [x.double().square().sum() for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]
    return sum(found) / 7


def context_of(model, graph, batches, loss=squares):
    groups = sec.couple(graph)
    samples = Samples(model, graph, batches, loss=loss)
    return Context(groups, model, tensors_of(groups, model), torch.Generator(), samples)


def naive(context, variants, loss=squares):
    """The whole graph, once for every variant and batch, masked at every site: `[variants]`."""
    found = []
    for masked in variants:
        at = {}
        for name, units in masked.items():
            for site in context.sites[name]:
                at.setdefault(site.node, []).append((site, ~np.isin(site.units, units)))

        def reader(mine):
            def read(value, tensor):
                for site, keep in mine:
                    if site.value == value:
                        shape = [-1 if d == site.dim else 1 for d in range(tensor.dim())]
                        tensor = tensor * torch.from_numpy(keep).to(tensor.dtype).view(shape)
                return tensor

            return read

        total, count = 0.0, 0
        with torch.no_grad():
            for batch in context.batches():
                reads = {node: reader(mine) for node, mine in at.items()}
                output = batch.program.output(batch.program.run(batch.begin(), reads=reads))
                total += float(loss(output, batch.target)) * batch.size
                count += batch.size
        found.append(total / count)
    return torch.tensor(found, dtype=torch.float64)


def double(network):
    model, inputs = network
    return model.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)


@pytest.mark.parametrize("seed", range(40))
def test_masking_is_the_whole_graph_run_anew(seed):
    """Random sets of units of random groups, some of them empty, at a memory limit that splits them differently."""
    model, inputs = double(random_network(seed))
    context = context_of(
        model, sec.capture(model, inputs), [(inputs if len(inputs) > 1 else inputs[0], torch.zeros(()))]
    )
    chance = random.Random(seed)
    variants = [{}]
    for _ in range(6):
        some = [group for group in context.groups.free if chance.random() < 0.6]
        variants.append({g.name: chance.sample(range(g.size), chance.randint(0, g.size)) for g in some})
    variants += [{g.name: [g.size - 1]} for g in context.groups.free]
    expected = naive(context, variants)
    for memory in (1, 3000, 2**30):
        plain, found = masked_means(context, variants, memory=memory)
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), (found - expected).abs().max()
        assert plain == pytest.approx(float(expected[0]), rel=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_rows_give_what_their_samples_give(seed):
    """Samples in any order and number, taken anywhere on the way, end in the outputs that they have in the batch."""
    model, inputs = double(random_network(seed))
    programs = Programs(model, sec.capture(model, inputs))
    rows = rows_of(programs, inputs)
    if rows is None:
        return
    program, given = programs.program(inputs)
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(0, rows.count, (5,), generator=generator)
    with torch.no_grad():
        whole = program.run(program.begin(given))
        for stop in range(len(program.graph.nodes)):
            if not rows.able(stop):
                continue
            state = program.run(program.begin(given), stop)
            found = rows.at(5, given[0].device).run(rows.take(state, samples))
            for value in set(program.graph.outputs) & rows.axes.keys():
                axis = rows.axes[value]
                expected = whole.values[value].index_select(axis.dim, axis.places(samples, rows.count))
                assert torch.allclose(found.values[value], expected, rtol=1e-9, atol=1e-10, equal_nan=True)


def test_most_random_networks_run_by_rows():
    able = 0
    for seed in range(30):
        model, inputs = random_network(seed)
        able += rows_of(Programs(model, sec.capture(model, inputs)), inputs) is not None
    assert able >= 20


class Net(nn.Module):
    """Two layers that can lose units, of different kinds."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6 * 16, 5), nn.Linear(5, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def labelled(count=12, size=5):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (count,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True)), x, y


def net():
    torch.manual_seed(0)
    model = Net().double().eval()
    with torch.no_grad():
        model.norm.bias.uniform_(-1, 0.5)
    return model


def test_equals_a_network_whose_consumers_ignore_the_unit():
    """By hand: the columns of the next layer that read the unit are zeroed, and the loss is taken again."""
    model = net()
    batches, x, y = labelled()
    groups = sec.couple(sec.capture(model, x[:2]))
    signed = sec.score(groups, model, "oracle", data=batches, options={"change": "loss"})
    absolute = sec.score(groups, model, "oracle", data=batches)
    accuracy = sec.score(groups, model, "oracle", data=batches, options={"metric": right})
    with torch.no_grad():
        plain, hits = float(F.cross_entropy(model(x), y)), float(right(model(x), y))
        for name, layer, width in (("conv", "hidden", 16), ("hidden", "head", 1)):
            for unit in range(groups[name].size):
                other = copy.deepcopy(model)
                getattr(other, layer).weight[:, unit * width : (unit + 1) * width] = 0
                change = float(F.cross_entropy(other(x), y)) - plain
                assert float(signed[name][unit]) == pytest.approx(change, abs=1e-12)
                assert float(absolute[name][unit]) == pytest.approx(abs(change), abs=1e-12)
                drop = hits - float(right(other(x), y))
                assert float(accuracy[name][unit]) == pytest.approx(drop, abs=1e-12)


def right(outputs, target):
    return (outputs.argmax(1) == target).double().mean()


def test_by_value():
    """y = relu(x) with weights 2 and 3 behind it: without unit 0 the squared error of (1, 1) goes from 25 to 9."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.copy_(torch.tensor([[2.0, 3.0]]))
    x = torch.ones(1, 2, dtype=torch.float64)
    groups = sec.couple(sec.capture(model, x))
    data = [(x, torch.zeros(1, 1, dtype=torch.float64))]
    found = sec.score(groups, model, "oracle", data=data, loss=F.mse_loss, options={"change": "loss"})
    assert found["0"].tolist() == [9 - 25, 4 - 25]


def test_a_unit_that_is_zero_everywhere_changes_nothing_at_all():
    model = net()
    with torch.no_grad():
        model.norm.weight[2], model.norm.bias[2] = 0, -1
    batches, x, _ = labelled()
    groups = sec.couple(sec.capture(model, x[:2]))
    found = sec.score(groups, model, "oracle", data=batches)["conv"]
    assert found[2] == 0
    assert (found[[0, 1, 3, 4, 5]] > 0).all()


def test_the_same_bits_each_time():
    model = net()
    batches, x, _ = labelled()
    groups = sec.couple(sec.capture(model, x[:2]))
    first, second = (sec.score(groups, model, "oracle", data=batches) for _ in range(2))
    assert all(torch.equal(row, second[name]) for name, row in first.items())


def test_samples_that_cannot_be_told_apart_are_masked_one_variant_at_a_time():
    class Mixed(Net):
        def forward(self, x):
            x = torch.relu(self.norm(self.conv(x)))
            x = x - x.mean(0, keepdim=True)
            return self.head(torch.relu(self.hidden(x.flatten(1))))

    model = Mixed().double().eval()
    batches, x, _ = labelled()
    context = context_of(model, sec.capture(model, x[:2]), batches, F.cross_entropy)
    assert next(context.batches()).rows() is None
    variants = [{"conv": [1]}, {"hidden": [0, 3]}, {"conv": [0, 5], "hidden": [2]}]
    _, found = masked_means(context, variants)
    assert torch.allclose(found, naive(context, variants, F.cross_entropy), rtol=1e-12)


def test_unknown_changes_and_units_are_refused():
    model = net()
    batches, x, _ = labelled()
    graph = sec.capture(model, x[:2])
    with pytest.raises(UnknownNameError, match="loss_abs"):
        sec.score(sec.couple(graph), model, "oracle", data=batches, options={"change": "los"})
    with pytest.raises(InputError, match="no such unit"):
        masked_means(context_of(model, graph, batches), [{"conv": [6]}])
