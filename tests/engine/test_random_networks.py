"""Random networks and random plans: every chain ends in a proven model that an independent oracle agrees with."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import secateurs as sec
from benchmarks.fuzz import Tally, fuzz
from secateurs.testing.chain import all_kept, check_chain, check_dead, check_outputs, named_tensors, random_kept
from secateurs.testing.networks import Program, random_network, random_program
from secateurs.testing.shrinking import shrink
from secateurs.testing.strategies import networks

torch.set_num_threads(1)

pytestmark = pytest.mark.medium

fixed = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)


@settings(fixed, max_examples=300)
@given(networks(), st.integers(0, 999), st.sampled_from(["heads", "heads", "head_dim"]))
def test_chain_agrees_with_the_masked_original(program, seed, unit):
    model, example_inputs = program.build()
    check_chain(model, example_inputs, random_kept(seed), unit=unit)


@settings(fixed, max_examples=30)
@given(networks())
def test_empty_plan_is_the_identity(program):
    model, example_inputs = program.build()
    report = check_chain(model, example_inputs, all_kept)
    assert report.plan.empty
    assert report.form == "native"
    state = report.small.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@settings(fixed, max_examples=30)
@given(networks(), st.integers(0, 999))
def test_replaying_a_plan_gives_the_same_model(program, seed):
    model, example_inputs = program.build()
    graph = sec.capture(model, example_inputs)
    groups = sec.couple(graph)
    plan = sec.plan(graph, groups, keep=random_kept(seed)(groups))
    first = sec.cut(model, plan, example_inputs)
    second = sec.cut(model, type(plan).from_json(plan.to_json()), example_inputs)
    assert named_tensors(first).keys() == named_tensors(second).keys()
    for name, tensor in named_tensors(first).items():
        assert torch.equal(tensor, named_tensors(second)[name]), name


@settings(fixed, max_examples=30)
@given(networks(), st.integers(0, 999))
def test_cutting_twice_composes(program, seed):
    """A cut model can be cut again, and its second cut is judged against itself by the same oracle."""
    model, example_inputs = program.build()
    first = check_chain(model, example_inputs, random_kept(seed))
    if first.form == "native":
        check_chain(first.small, example_inputs, random_kept(seed + 1))


@settings(fixed, max_examples=30)
@given(networks(), st.integers(0, 999))
def test_order_of_modules_changes_nothing(program, seed):
    model, example_inputs = program.build()
    shuffled = reorder(copy.deepcopy(model), seed)
    graph, other = sec.capture(model, example_inputs), sec.capture(shuffled, example_inputs)
    assert graph.hash == other.hash
    groups, others = sec.couple(graph), sec.couple(other)
    assert partition(groups) == partition(others)
    plan = sec.plan(graph, groups, keep=random_kept(seed)(groups))
    small, small_other = sec.cut(model, plan, example_inputs), sec.cut(shuffled, plan, example_inputs)
    for name, tensor in named_tensors(small).items():
        assert torch.equal(tensor, named_tensors(small_other)[name]), name


def reorder(model: nn.Module, seed: int) -> nn.Module:
    """The same model with its parameters, buffers and children registered in another order."""
    chance = random.Random(seed)
    for module in model.modules():
        registries = [module._parameters, module._buffers]
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            registries.append(module._modules)
        for registry in registries:
            items = list(registry.items())
            chance.shuffle(items)
            registry.clear()
            registry.update(items)
    return model


def partition(groups):
    """The groups as sets of (leaf, dim, index) per unit, without names or order."""
    found = set()
    for group in groups:
        units: dict[int, set] = {unit: set() for unit in range(group.size)}
        for member in group.members:
            for index, unit in enumerate(member.units.tolist()):
                if unit >= 0:
                    units[unit].add((member.leaf, member.dim, index))
        found.add((group.frozen is None, frozenset(frozenset(unit) for unit in units.values())))
    return found


def test_generator_is_determined_by_its_seed():
    one, inputs = random_network(7)
    two, same_inputs = random_network(7)
    assert one.program == two.program
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(inputs, same_inputs, strict=True))
    assert len({random_program(seed) for seed in range(50)}) > 45


def test_a_printed_program_is_the_program():
    from secateurs.testing.networks import Step

    program = random_program(11)
    assert eval(repr(program), {"Program": Program, "Step": Step}) == program


def test_oracle_notices_a_channel_that_leaks():
    """Guards the oracle itself: it must reject a cut model whose removed channel was still read."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 1)).double().eval()
    right = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid(), nn.Conv2d(3, 2, 1)).double().eval()
    with torch.no_grad():
        right[0].weight.copy_(model[0].weight[:3])
        right[0].bias.copy_(model[0].bias[:3])
        right[2].weight.copy_(model[2].weight[:, :3])
        right[2].bias.copy_(model[2].bias)
    removed = {"0.weight": {0: (3,)}, "0.bias": {0: (3,)}, "2.weight": {1: (3,)}}
    inputs = (torch.randn(2, 3, 4, 4, dtype=torch.float64),)
    assert check_outputs(model, right, removed, inputs)
    wrong = copy.deepcopy(right)
    with torch.no_grad():
        wrong[2].bias.add_(1e-6)
    with pytest.raises(AssertionError, match="differs by"):
        check_outputs(model, wrong, removed, inputs)


def test_oracle_notices_a_removal_that_is_still_read():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 1)).double().eval()
    inputs = (torch.randn(2, 3, 4, 4, dtype=torch.float64),)
    whole = {"0.weight": {0: (3,)}, "0.bias": {0: (3,)}, "2.weight": {1: (3,)}}
    assert check_dead(model, whole, inputs)
    with pytest.raises(AssertionError, match="still reads"):
        check_dead(model, {**whole, "2.weight": {1: (2,)}}, inputs)


def test_shrinking_keeps_only_what_fails():
    program = next(
        p for p in map(random_program, range(1000)) if len(p.steps) > 4 and any(s.op == "conv2d" for s in p.steps)
    )
    small = shrink(program, lambda p: any(step.op == "conv2d" for step in p.steps))
    assert [step.op for step in small.steps] == ["conv2d"]
    assert small.steps[0].pick == () and small.seed == 0


def test_fuzzing_resumes_where_it_was_stopped(tmp_path):
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    fuzz(40, 5, 4, whole, lambda text: None)
    tally = Tally()
    fuzz(15, 5, 4, parts, lambda text: None)
    half = json.loads(parts.read_text())
    parts.with_suffix(".running.json").write_text(json.dumps(half))
    fuzz(40, 5, 4, parts, lambda text: None)
    one, two = json.loads(whole.read_text()), json.loads(parts.read_text())
    assert one.keys() == tally.as_json(5, 0).keys()
    for key in ("networks", "counts", "networks_by_operator", "failures"):
        assert one[key] == two[key], key
    assert one["failures"] == []
