"""Soft filter pruning: how many filters are zero after each epoch, that they may return, and their removal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from train.networks import convolutional, images, loader, plain, points, same, state
from train.stopping import Interrupted

import secateurs as sec
from secateurs import recipe
from secateurs.base.errors import InputError, TrainError, UnknownNameError
from secateurs.testing.strategies import networks
from secateurs.train.finetune import FineTune, finetune
from secateurs.train.soft import Filters, Soft

pytestmark = pytest.mark.medium

torch.set_num_threads(1)
IMAGE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(3))


class Residual(nn.Module):
    """A stem and one block that share their channels, a depthwise layer inside the block."""

    def __init__(self, width: int = 10, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, 7, 1)
        self.deep = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.outer = nn.Conv2d(7, width, 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.deep(self.inner(x)).relu())
        return self.head(x.mean((2, 3)))


def zeros(model: nn.Module) -> dict[str, list[int]]:
    """`{weight: its zero filters}` of convolutions and linear layers."""
    return {
        name: [index for index, row in enumerate(weight) if not row.any()]
        for name, weight in model.named_parameters()
        if weight.dim() > 1
    }


def watched(model: nn.Module, config: FineTune, data: Any = None) -> list[dict[str, list[int]]]:
    """The zero filters right after each epoch."""
    seen: list[dict[str, list[int]]] = []

    def look(net: nn.Module) -> float:
        seen.append(zeros(net))
        return 0.0

    finetune(model, data or loader(images(40)), config, evaluate=look)
    return seen


@pytest.mark.parametrize("fraction", [0.3, 0.25, 0.5, 0.95])
def test_exactly_so_many_filters_are_zero_after_each_epoch(fraction: float) -> None:
    config = FineTune(epochs=3, lr=0.05, soft=Soft(fraction=fraction), progress=False)
    for net in watched(convolutional(width=9), config):
        assert {name: len(found) for name, found in net.items()} == {
            "0.weight": min(floor(fraction * 9 + 0.5), 8),
            "4.weight": min(floor(fraction * 5 + 0.5), 4),
            "8.weight": 0,
        }


def test_filters_return_early_in_training() -> None:
    epochs = watched(
        convolutional(width=16), FineTune(epochs=5, lr=0.2, schedule="constant", soft=Soft(), progress=False)
    )
    assert any(one["0.weight"] != other["0.weight"] for one, other in pairwise(epochs))


def test_only_every_second_epoch_and_the_end() -> None:
    config = FineTune(epochs=3, lr=0.05, soft=Soft(every=2), progress=False)
    assert [len(net["0.weight"]) for net in watched(convolutional(width=10), config)] == [0, 3, 0]
    assert len(zeros(finetune(convolutional(width=10), loader(images(40)), config).model)["0.weight"]) == 3


def test_the_smallest_go_and_nothing_but_their_weights_changes() -> None:
    model = convolutional(width=10)
    for norm, order in (("l1", 1), ("l2", 2)):
        config = FineTune(epochs=0, soft=Soft(norm=norm), progress=False)
        small = finetune(model, loader(images(40)), config).model
        norms = torch.linalg.vector_norm(model[0].weight.detach().flatten(1), order, dim=1)
        assert zeros(small)["0.weight"] == sorted(norms.argsort()[:3].tolist())
        left = [name for name, tensor in state(small).items() if not torch.equal(tensor, state(model)[name])]
        assert left == ["0.weight", "4.weight"]


def test_coupled_layers_zero_the_same_units() -> None:
    for net in watched(Residual(), FineTune(epochs=2, lr=0.05, soft=Soft(), progress=False)):
        assert net["stem.weight"] == net["outer.weight"]
        assert len(net["stem.weight"]) == 3
        assert net["inner.weight"] == net["deep.weight"]
        assert len(net["inner.weight"]) == 2
        assert not net["head.weight"]


def test_a_weight_that_is_computed_keeps_its_group_out() -> None:
    model = convolutional()
    model[0] = nn.utils.parametrizations.weight_norm(model[0])
    net = watched(model, FineTune(epochs=1, soft=Soft(fraction=0.5), progress=False))[0]
    assert [len(found) for name, found in net.items() if name.startswith("0.")] == [0, 0]
    assert len(net["4.weight"]) == 3


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = FineTune(epochs=4, lr=0.1, soft=Soft(fraction=0.4), checkpoint_steps=1, progress=False)
    data = loader(images(24))
    whole = finetune(Residual(), data, config).model
    calls = 0

    def stopping(net: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise Interrupted
        return 0.0

    for _ in range(6):
        try:
            again = finetune(Residual(), data, config, folder=tmp_path, evaluate=stopping).model
            break
        except Interrupted:
            pass
    assert calls == 8
    assert same(state(whole), state(again))
    with pytest.raises(TrainError, match="soft"):
        other = FineTune(epochs=4, lr=0.1, soft=Soft(), checkpoint_steps=1, progress=False)
        finetune(Residual(), data, other, folder=tmp_path, evaluate=lambda net: 0.0)


def test_the_zero_filters_are_removed_and_their_constants_handed_over() -> None:
    config = FineTune(epochs=2, lr=0.05, progress=False)
    before = state(Residual(bias=True))
    model = Residual(bias=True)
    result = sec.soft_prune(model, IMAGE, loader(images(40)), fraction=0.3, finetune=config, padding="mean")
    assert same(state(model), before)
    assert (result.model.stem.out_channels, result.model.inner.out_channels) == (7, 5)
    assert result.model.deep.groups == 5
    found = zeros(result.trained.model)
    assert list(result.plan.removed["outer.weight"][0]) == found["outer.weight"]
    assert list(result.plan.removed["deep.weight"][0]) == found["deep.weight"]


def test_behind_padding_maps_of_constants_make_it_answer_like_the_trained_one() -> None:
    config = FineTune(epochs=1, lr=0.05, progress=False)
    data = loader(images(40))
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(6 * 36, 3))
    nn.init.uniform_(model[0].bias, 0.1, 0.5)
    result = sec.soft_prune(model, IMAGE, data, finetune=config, padding="map")
    assert result.handed is not None
    assert result.handed.exact
    x = images(16)[0]
    torch.testing.assert_close(result.model.eval()(x), result.trained.model.eval()(x))
    removed = sum(item.size - len(item.kept) for item in result.plan.groups)
    for part in (f"{removed} units", f"{result.plan.after['macs']:,}", "handed over exactly"):
        assert part in str(result)
    assert "by 'mean'" in str(sec.soft_prune(model, IMAGE, data, finetune=config, padding="mean"))


def test_without_padding_the_smaller_network_answers_like_the_trained_one() -> None:
    """The first layer's filters are constants after bias, batch norm and ReLU; the second reads them unpadded."""
    config = FineTune(epochs=2, lr=0.05, progress=False)
    result = sec.soft_prune(convolutional(width=10), IMAGE, loader(images(40)), fraction=0.4, finetune=config)
    assert result.handed is not None
    assert result.handed.exact
    x = images(16)[0]
    torch.testing.assert_close(result.model.eval()(x), result.trained.model.eval()(x))
    dropped = sec.soft_prune(
        convolutional(width=10), IMAGE, loader(images(40)), fraction=0.4, finetune=config, bias="drop", recalibrate=2
    )
    assert dropped.handed is None
    assert dropped.plan.removed == result.plan.removed
    assert (dropped.model.eval()(x) - result.model(x)).abs().max() > 1e-3


@pytest.mark.parametrize("make", [convolutional, Residual])
def test_a_network_in_graph_form_is_trained_and_cut_like_the_module(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    graph = sec.capture(model, images(8)[0])
    nothing = sec.plan(graph, sec.couple(graph), {})
    form = sec.cut_detailed(model, nothing, images(8)[0], form="graph").model
    config = FineTune(epochs=0, progress=False)
    both = [
        sec.soft_prune(net, images(8)[0], loader(images(24)), finetune=config, padding="mean").plan.removed
        for net in (model, form)
    ]
    assert both[0]
    assert both[0] == both[1]


@pytest.mark.medium
@settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(networks(), st.sampled_from([0.2, 0.5]))
def test_in_any_network_the_zero_filters_are_whole_units_and_can_be_cut(program: Any, fraction: float) -> None:
    """Every producer of a group is zero at the rows of the same units, and nothing else changed."""
    model, inputs = program.build()
    groups, soft = sec.couple(sec.capture(model, inputs)), Soft(fraction=fraction)
    try:
        filters = Filters(groups, soft)
    except InputError:
        return
    before = state(model)
    filters.zero(model)
    after, found = state(model), filters.zeros(model)
    touched = set()
    for name, members in filters.producers.items():
        size = groups[name].size
        assert len(found[name]) >= min(floor(fraction * size + 0.5), size - 1)
        for member in members:
            touched.add(member.leaf)
            gone = [index for index, unit in enumerate(member.units) if unit in found[name]]
            assert not after[member.leaf].index_select(member.dim, torch.tensor(gone, dtype=torch.long)).any()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= touched
    keep = {name: sorted(set(range(groups[name].size)) - set(units)) or [0] for name, units in found.items() if units}
    sec.cut_detailed(model, sec.plan(groups.graph, groups, keep), inputs, groups=groups)


def test_what_cannot_be_used_is_refused() -> None:
    data = loader(points())
    for bad in (0.0, 1.0, -0.1, float("nan"), True, "half"):
        with pytest.raises(InputError, match="fraction"):
            Soft(fraction=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="every"):
        Soft(every=0)
    with pytest.raises(InputError, match="list"):
        Soft(exclude="head")
    with pytest.raises(UnknownNameError, match="'l2'"):
        Soft(norm="l3")
    with pytest.raises(InputError, match="no filter"):
        finetune(plain(), data, FineTune(soft=Soft(exclude=["0"]), progress=False))
    with pytest.raises(InputError, match="twice"):
        sec.soft_prune(plain(), torch.randn(2, 4), data, finetune=FineTune(soft=Soft()))
    with pytest.raises(UnknownNameError):
        sec.soft_prune(plain(), torch.randn(2, 4), data, bias="keep")
    with pytest.raises(InputError, match="not a mean"):
        sec.soft_prune(plain(), torch.randn(2, 4), data, bias="propagate_mean")


def test_a_recipe_can_ask_for_it() -> None:
    made = recipe.make(budget={"macs": 0.5}, finetune={"epochs": 2, "soft": {"fraction": 0.2, "norm": "l1"}})
    assert made.finetune.soft == Soft(fraction=0.2, norm="l1")
    assert recipe.read(made.to_yaml()) == made
