"""Gates on units: the rule, and that gates in weights are gates on what the weights read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from train.networks import convolutional, images, loader, plain, points, same, state
from train.stopping import Interrupted, Stopping

import secateurs as sec
from secateurs import recipe
from secateurs.base.errors import InputError, UnknownNameError
from secateurs.capture.program import Programs, Read
from secateurs.couple.columns import reading_columns
from secateurs.couple.group import Groups
from secateurs.couple.sites import Site, consumption_sites
from secateurs.testing.criteria import CASES, Concat
from secateurs.testing.networks import random_network, randomize
from secateurs.train import checkpoint
from secateurs.train.finetune import FineTune, finetune
from secateurs.train.gates import Gates, NodeGates


def coupled(model: nn.Module, inputs: Any) -> Groups:
    return sec.couple(sec.capture(model, inputs))


# --- the rule


@pytest.mark.parametrize(("threshold", "fall"), [(0.75, 1 / 16), (0.75, 1 / 10), (0.5, 0.07), (0.8, 0.003), (0.8, 0.5)])
def test_without_a_gradient_beta_falls_evenly_and_alpha_closes_below_the_threshold(threshold: float, fall: float):
    gates = Gates(strength=fall / 0.5, threshold=threshold)
    beta, alpha = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.bool)
    closes = floor((1 - threshold) / fall) + 1
    for step in range(1, closes + 1):
        beta, alpha = gates.moved(beta, alpha, torch.zeros(1, dtype=torch.float64), 0.5)
        assert float(beta) == pytest.approx(1 - step * fall)
        assert bool(alpha) is (step < closes)


def test_oscillation_inside_the_band_toggles_nothing():
    gates = Gates(strength=0.0, threshold=0.8, margin=0.01)
    for open_ in (True, False):
        beta, alpha = torch.tensor([0.805], dtype=torch.float64), torch.tensor([open_])
        for step in range(50):
            slope = torch.tensor([0.004 * (-1) ** step], dtype=torch.float64)
            beta, alpha = gates.moved(beta, alpha, slope, 1.0)
            assert 0.8 <= float(beta) < 0.81
            assert bool(alpha) is open_


def test_a_closed_gate_opens_at_the_upper_end_and_beta_never_exceeds_one():
    gates = Gates(strength=0.0)
    beta, alpha = torch.tensor([0.7], dtype=torch.float64), torch.tensor([False])
    seen = []
    for _ in range(8):
        beta, alpha = gates.moved(beta, alpha, torch.tensor([-0.05], dtype=torch.float64), 1.0)
        seen.append((round(float(beta), 6), bool(alpha)))
    assert seen == [
        (0.75, False),
        (0.8, False),
        (0.85, True),
        (0.9, True),
        (0.95, True),
        (1, True),
        (1, True),
        (1, True),
    ]


@pytest.mark.parametrize(
    ("gates", "upper"), [(Gates(strength=0.0), 0.8 + 0.01), (Gates(strength=0.0, threshold=0.75, margin=0.125), 0.875)]
)
def test_the_upper_end_of_the_band_opens_and_nothing_below_it(gates: Gates, upper: float):
    beta = torch.tensor([upper], dtype=torch.float64)
    beta = torch.cat([torch.nextafter(beta, torch.zeros_like(beta)), beta])
    after, alpha = gates.moved(beta, torch.zeros(2, dtype=torch.bool), torch.zeros(2), 1.0)
    assert torch.equal(after, beta)
    assert alpha.tolist() == [False, True]


def test_the_penalty_pulls_towards_zero_from_below_too():
    beta, _ = Gates(strength=0.1).moved(
        torch.tensor([-0.5, 0.0], dtype=torch.float64), torch.tensor([False, False]), torch.zeros(2), 1.0
    )
    assert beta.tolist() == pytest.approx([-0.4, 0.0])


# --- gates in weights


def gated_program(model: nn.Module, groups: Groups, inputs: Any, z: dict[str, Tensor]) -> Any:
    """What the captured graph gives when every operator that sums units away reads them times `z`: the definition."""

    def change(sites: list[tuple[str, Site]]) -> Read:
        def read(value: int, tensor: Tensor) -> Tensor:
            for name, site in sites:
                if site.value == value:
                    factors = torch.where(torch.from_numpy(site.units >= 0), z[name][site.units], 1.0)
                    tensor = tensor * factors.to(tensor.dtype).reshape(
                        [-1 if dim == site.dim else 1 for dim in range(tensor.dim())]
                    )
            return tensor

        return read

    at: dict[int, list[tuple[str, Site]]] = {}
    for name, sites in consumption_sites(groups).items():
        for site in sites if name in z else ():
            at.setdefault(site.node, []).append((name, site))
    program, tensors = Programs(model, groups.graph).program(inputs)
    return program.output(program.run(program.begin(tensors), reads={node: change(mine) for node, mine in at.items()}))


def loss_of(output: Any, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    leaves = [item for item in pytree.tree_leaves(output) if isinstance(item, Tensor) and item.is_floating_point()]
    return torch.stack([(item * torch.randn(item.shape, generator=generator)).sum() for item in leaves]).sum()


def check_gates_are_gates(model: nn.Module, inputs: tuple[Any, ...], seed: int) -> int:
    """Outputs and the gates' gradients with random gates closed, against the definition. Returns how many gates."""
    groups = coupled(model, inputs)
    if not reading_columns(groups).found:
        return 0
    whole = copy.deepcopy(model)
    gates = NodeGates(groups, model, Gates(strength=0.0))
    generator = torch.Generator().manual_seed(seed)
    tensors = gates.tensors("")
    gates.load({**tensors, "alpha": torch.rand(gates.alpha.shape, generator=generator) < 0.6}, "")
    z = {
        name: torch.isin(torch.arange(len(beta)), torch.tensor(gates.state().open[name], dtype=torch.int64))
        .double()
        .requires_grad_()
        for name, beta in gates.state().beta.items()
    }
    model.zero_grad()
    ours, expected = model(*inputs), gated_program(whole, groups, inputs, z)
    for one, other in zip(pytree.tree_leaves(ours), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)
    ours, expected = loss_of(ours), loss_of(expected)
    slopes: tuple[Tensor | None, ...] = (None,) * len(z)
    if ours.requires_grad:
        ours.backward()
    if expected.requires_grad:
        slopes = torch.autograd.grad(expected, list(z.values()), allow_unused=True)
    wanted = torch.cat([torch.zeros_like(one) if s is None else s for one, s in zip(z.values(), slopes, strict=True)])
    torch.testing.assert_close(gates.slope(), wanted, rtol=2e-3, atol=2e-4 * float(wanted.abs().max().clamp_min(1)))
    gates.load(tensors, "")
    return gates.alpha.numel()


@pytest.mark.parametrize("case", sorted(CASES))
def test_gates_in_weights_are_gates_on_units(case: str):
    make, shape, sizes = CASES[case]
    model = make().eval()
    randomize(model, torch.Generator().manual_seed(5))
    assert check_gates_are_gates(model, (torch.randn(4, *shape[1:]),), 1) == sum(sizes)


def test_a_recurrent_layer_reads_its_own_units():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 5, num_layers=2, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.cell(x)[0])
            return out

    torch.manual_seed(0)
    assert check_gates_are_gates(Recurrent(), (torch.randn(2, 4, 3),), 2) >= 5


@pytest.mark.medium
@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_gates_on_random_networks(seed: int):
    model, inputs = random_network(seed)
    assume(trains(model, inputs))
    check_gates_are_gates(model, inputs, seed)


def trains(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """PyTorch refuses the backward pass of some networks that write in place, with gates or without."""
    loss = loss_of(copy.deepcopy(model)(*inputs))
    try:
        loss.backward() if loss.requires_grad else None
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return False
        raise
    return True


def test_a_network_that_cannot_be_trained_anyway_is_told_apart():
    assert not trains(*random_network(13))
    assert trains(*random_network(14))


# --- in training


def nothing(outputs: Tensor, target: Tensor) -> Tensor:
    """A loss whose gradient is zero everywhere."""
    return outputs.sum() * 0.0


def training(**changes: Any) -> FineTune:
    given = {"epochs": 2, "lr": 0.5, "schedule": "constant", "progress": False, "gates": Gates(strength=0.125)}
    return FineTune(**{**given, **changes})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_a_gradient_training_closes_all_but_one_at_the_known_step(optimizer: str):
    """(1 - 0.8) / (0.5 * 0.125) = 3.2: open after step 3, closed after step 4; 3 batches are an epoch."""
    for steps, closed in ((3, 0), (4, 5)):
        config = training(epochs=1, batches=steps, loss=nothing, optimizer=optimizer)
        result = finetune(plain(), list(loader(points(40), shuffle=False)), config)
        assert result.gates is not None
        assert result.gates.closed == closed
        assert result.gates.beta["0"] == pytest.approx([1 - steps / 16] * 6)
        zero = (result.model.state_dict()["2.weight"] == 0).all(0)
        assert zero.sum() == closed
        assert len(result.gates.open["0"]) == 6 - closed


def test_the_state_dict_keeps_its_keys_and_closed_columns_are_zeros():
    data = loader(images())
    result = finetune(convolutional(), data, training(epochs=2, lr=0.05, gates=Gates(strength=1.0)))
    assert list(result.model.state_dict()) == list(convolutional().state_dict())
    assert result.gates is not None
    assert 0 < result.gates.closed < 11
    for name, leaf, each in (("0", "4.weight", 1), ("4", "8.weight", 16)):
        columns = result.model.state_dict()[leaf].movedim(1, 0).flatten(1)
        for index, column in enumerate(columns):
            assert bool(column.any()) is (index // each in result.gates.open[name])


def test_a_closed_unit_and_its_readers_rest_and_come_back_as_they_were():
    model, data = plain(), points()
    gates = NodeGates(coupled(model, data[0]), model, Gates(strength=0.0, start=0.805))
    before = state(model)
    alpha = torch.ones(6, dtype=torch.bool)
    alpha[2] = False
    gates.load({**gates.tensors(""), "alpha": alpha}, "")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    slope = float(gates.slope()[2])
    gates.learn(0.0)
    optimizer.step()
    gates.settle()
    after = state(model)
    assert torch.equal(after["0.weight"][2], before["0.weight"][2])
    assert not after["2.weight"][:, 2].any()
    assert not torch.equal(after["0.weight"][1], before["0.weight"][1])
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    slope = float(gates.slope()[2])
    assert slope != 0
    gates.learn(-0.02 / slope)
    optimizer.step()
    gates.settle()
    assert bool(gates.alpha[2])
    assert torch.equal(state(model)["2.weight"][:, 2], before["2.weight"][:, 2])


def test_every_step_can_be_the_last_before_a_resume(tmp_path: Path):
    config = training(checkpoint_steps=1, lr=0.1, gates=Gates(strength=0.4), momentum=0.9, weight_decay=0.01)
    data = loader(images())
    undisturbed = finetune(convolutional(), data, config)
    stopping = Stopping()

    stopped = training(
        checkpoint_steps=1, lr=0.1, gates=Gates(strength=0.4), momentum=0.9, weight_decay=0.01, loss=stopping
    )
    for _ in range(20):
        try:
            result = finetune(convolutional(), data, stopped, folder=tmp_path)
            break
        except Interrupted:
            assert (tmp_path / checkpoint.FILE).exists()
    assert stopping.calls > 8
    assert same(state(result.model), state(undisturbed.model))
    assert result.gates == undisturbed.gates
    assert result.gates is not None
    assert result.gates.closed > 0
    calls = stopping.calls
    again = finetune(convolutional(), data, stopped, folder=tmp_path)
    assert (again.gates, stopping.calls) == (result.gates, calls)


def test_weights_that_are_not_trained_carry_no_gates():
    model = Concat()
    model.head.requires_grad_(False)
    gates = NodeGates(coupled(model, torch.zeros(1, 3, 4, 4)), model, Gates(strength=0.1))
    assert gates.state().missing == {"both": "`head.weight`, which reads it, is not trained"}
    assert sorted(gates.state().open) == ["left", "right"]


def test_only_the_groups_that_are_named():
    model = Concat()
    groups = coupled(model, torch.zeros(1, 3, 4, 4))
    assert list(NodeGates(groups, model, Gates(strength=0.1, only=["ri*"])).state().open) == ["right"]
    with pytest.raises(UnknownNameError, match="did you mean 'right'"):
        NodeGates(groups, model, Gates(strength=0.1, only=["rigth"]))


def test_a_model_without_units_is_refused():
    model = nn.Linear(4, 2)
    with pytest.raises(InputError, match="There is no unit to put a gate on"):
        NodeGates(coupled(model, torch.zeros(1, 4)), model, Gates(strength=0.1))


def test_a_recipe_can_ask_for_them():
    wanted = {"epochs": 2, "gates": {"strength": 2e-4, "start": 0.8002, "only": ["conv*"]}}
    made = recipe.make(budget={"macs": 0.5}, finetune=wanted)
    assert made.finetune is not None
    assert made.finetune.gates == Gates(strength=2e-4, start=0.8002, only=["conv*"])
    assert recipe.read(made.to_yaml()) == made
    with pytest.raises(sec.RecipeError, match="strenght"):
        recipe.make(budget={"macs": 0.5}, finetune={"gates": {"strenght": 1.0}})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gates(strength=-1.0),
        lambda: Gates(strength=float("inf")),
        lambda: Gates(strength=0.1, threshold=1.5),
        lambda: Gates(strength=0.1, margin=-0.1),
        lambda: Gates(strength=0.1, start=0.7),
        lambda: Gates(strength=0.1, lr=-1),
        lambda: Gates(strength=0.1, only="conv1"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[], Gates]):
    with pytest.raises(InputError, match=r"Gates\("):
        make()


@pytest.mark.parametrize("other", [{"keep": "best"}, {"penalty": sec.Penalty()}, {"soft": sec.Soft()}])
def test_what_gates_cannot_be_trained_with_is_refused(other: dict[str, Any]):
    with pytest.raises(InputError, match="Gates cannot be trained with"):
        training(**other)
