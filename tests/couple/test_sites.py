"""Zeroing units where they are summed away is removing them: checked against networks that were really cut."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import secateurs as sec
from secateurs.capture.program import Programs
from secateurs.couple.sites import consumption_sites, first_use
from secateurs.testing.networks import random_network

pytestmark = pytest.mark.medium

torch.set_num_threads(1)


def silenced(model, groups, sites, gone, inputs):
    """The whole graph with these units (`{group: units}`) zeroed at every site."""
    at = {}
    for name, units in gone.items():
        for site in sites[name]:
            at.setdefault(site.node, []).append((site, np.isin(site.units, units)))

    def reader(mine):
        def read(value, tensor):
            for site, lost in mine:
                if site.value == value:
                    shape = [1] * tensor.dim()
                    shape[site.dim] = -1
                    tensor = tensor * torch.from_numpy(~lost).to(tensor.dtype).view(shape)
            return tensor

        return read

    program, given = Programs(model, groups.graph).program(inputs)
    with torch.no_grad():
        state = program.run(program.begin(given), reads={node: reader(mine) for node, mine in at.items()})
    return program.output(state)


def check_like_cut(model, inputs, seed, unit="heads"):
    """Random units of the exact groups: the silenced graph against the smaller network. How many units went."""
    graph = sec.capture(model, inputs)
    groups = sec.couple(graph, unit=unit)
    sites = consumption_sites(groups)
    chance = random.Random(seed)
    gone = {g.name: chance.sample(range(g.size), chance.randint(0, g.size - 1)) for g in groups.free if g.exact}
    keep = {g.name: sorted(set(range(g.size)) - set(gone.get(g.name, ()))) for g in groups.free}
    small = sec.cut(model, sec.plan(graph, groups, keep=keep), inputs)
    with torch.no_grad():
        expected = small(*inputs)
    found = silenced(model, groups, sites, gone, inputs)
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        if a.shape == b.shape:  # an output may itself be smaller
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True), f"differs by {(a - b).abs().max()}"
    return sum(map(len, gone.values()))


def double(network):
    model, inputs = network
    return model.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)


@pytest.mark.parametrize("seed", range(40))
def test_zeroing_at_the_sites_is_cutting(seed):
    check_like_cut(*double(random_network(seed)), seed)


@pytest.mark.parametrize("seed", range(40, 60))
def test_zeroing_at_the_sites_is_cutting_columns_of_heads(seed):
    check_like_cut(*double(random_network(seed)), seed, unit="head_dim")


def test_random_networks_have_units_to_zero():
    assert sum(check_like_cut(*double(random_network(seed)), seed) for seed in range(30)) > 40


def sites_of(model, x):
    groups = sec.couple(sec.capture(model.eval(), x))
    return groups, consumption_sites(groups)


def test_a_chain_by_value():
    """Two convolutions with a batch norm and an activation between: the second convolution reads the channels away."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    groups, sites = sites_of(model, torch.zeros(1, 3, 5, 5))
    (site,) = sites["0.weight"] if "0.weight" in sites else sites[groups.free[0].name]
    node = groups.graph.nodes[site.node]
    assert node.module == "3"
    assert node.inputs[0] == site.value
    assert site.dim == 1
    assert site.units.tolist() == [0, 1, 2, 3]
    assert first_use(sites) == {groups.free[0].name: node.index}


def test_flattened_maps_give_each_unit_its_columns():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 3, 2))
    groups, sites = sites_of(model, torch.zeros(1, 3, 1, 3))
    (site,) = sites[groups.free[0].name]
    assert site.units.tolist() == [0, 0, 0, 1, 1, 1]
    assert groups.graph.nodes[site.node].module == "3"


def test_side_by_side_each_group_knows_its_part():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(5, 1)

        def forward(self, x):
            return self.head(torch.cat([self.left(x), self.right(x)], 1))

    _, sites = sites_of(Two(), torch.zeros(2, 3))
    found = {name: [site.units.tolist() for site in places] for name, places in sites.items()}
    assert sorted(found.values()) == [[[-1, -1, 0, 1, 2]], [[0, 1, -1, -1, -1]]]


def test_each_consumer_of_a_residual_stream_is_a_site():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + torch.relu(self.branch(x)))

    groups, sites = sites_of(Stream(), torch.zeros(2, 3))
    places = sites[groups.free[0].name]
    assert [groups.graph.nodes[site.node].module for site in places] == ["branch", "head"]
    assert first_use(sites)[groups.free[0].name] == places[0].node


def test_what_is_written_into_a_blank_tensor_follows_the_inputs():
    class Canvas(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(6, 2)

        def forward(self, x):
            canvas = torch.zeros(x.shape[0], 6, dtype=x.dtype)
            canvas[:, 1:5] = torch.relu(self.body(x))
            return self.head(canvas)

    model = Canvas().double().eval()
    inputs = (torch.randn(5, 3, dtype=torch.float64),)
    for seed in range(4):
        check_like_cut(model, inputs, seed)


def test_a_recurrent_layer_reads_its_own_units_inside():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0])

    model = Recurrent().double().eval()
    inputs = (torch.randn(2, 5, 3, dtype=torch.float64),)
    groups = sec.couple(sec.capture(model, inputs))
    names = {leaf.value: leaf.name for leaf in groups.graph.leaves}
    (sites,) = consumption_sites(groups).values()
    assert [names[site.value] for site in sites if site.inside] == [
        "cell.weight_hh_l0",
        "cell.weight_ih_l1",
        "cell.weight_hh_l1",
    ]
    assert [groups.graph.nodes[site.node].module for site in sites if not site.inside] == ["head"]
    for seed in range(4):
        check_like_cut(model, inputs, seed)


def test_moving_data_is_no_consumer():
    """Halves of a layer's channels are taken apart and gated: nothing is summed before the head."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 8), nn.Linear(4, 2)

        def forward(self, x):
            y = self.body(x)
            return self.head(y[:, :4] * torch.sigmoid(y[:, 4:]))

    groups, sites = sites_of(Gated(), torch.zeros(2, 3))
    (places,) = sites.values()
    assert [groups.graph.nodes[site.node].module for site in places] == ["head"]
