"""Captures through `torch.export` against captures by this package's own trace: two ways to one graph."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from capture.networks import (
    EXPORTABLE,
    Branches,
    Cached,
    CachedInClass,
    ConvNet,
    Counter,
    Nested,
    Nonzero,
    Split,
    Token,
    Twice,
    position_table,
    transformer,
)
from torch import Tensor, nn

import secateurs as sec
from secateurs.capture.graph import Graph, map_refs
from secateurs.couple.group import ChannelGroup
from secateurs.testing.chain import check_outputs, check_untouched, half_kept, of_model, random_kept, snapshot
from secateurs.testing.networks import random_network

pytestmark = pytest.mark.medium


@dataclass
class Scores:
    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


class Ends(NamedTuple):
    first: Tensor
    last: Tensor


class Pair(nn.Module):
    """Two layers; what `forward` does with them is the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("mean", torch.zeros(6))


class GivesDataclass(Pair):
    def forward(self, x: Tensor) -> Scores:
        hidden = self.one(x).relu()
        return Scores(self.two(hidden), hidden.mean(1))


class GivesNamedTuple(Pair):
    def forward(self, x: Tensor) -> Ends:
        hidden = self.one(x).relu()
        return Ends(hidden.sum(1), self.two(hidden))


class WithoutGradients(Pair):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.one(x).relu()
        with torch.enable_grad():
            return self.two(hidden)


class OwnPrecision(Pair):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            hidden = self.one(x.to(torch.float32)).relu()
        return self.two(hidden)


class Constants(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.slopes = torch.linspace(1, 2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x) * self.slopes + torch.tensor([1.0, 2, 3, 4, 5, 6]))


class ChangesItsInput(Pair):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x[:, 0] = 1
        return self.two(self.one(x).relu_())


class GivesWhatItGot(Pair):
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        return {"x": x, "weight": self.one.weight, "scores": [self.two(self.one(x) + self.one(y))]}


class Options(Pair):
    def forward(self, x: Tensor, gate: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        hidden = self.one(x) if gate is None else self.one(x) * gate
        return self.two(hidden.relu() * scale)


class TwoNames(nn.Module):
    """One module under two names; another called past its `__call__`."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(6, 2)
        self.body = nn.Linear(4, 6)
        self.layers = nn.ModuleList([self.body, nn.ReLU(), self.late])

    def forward(self, x: Tensor) -> Tensor:
        return self.late.forward(self.layers[1](self.layers[0](x)))


class Assigns(Pair):
    """Replaces a buffer by another tensor."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x).relu()
        self.mean = self.mean + hidden.mean(0)
        return self.two(hidden + self.mean)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Case = tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any]]
CASES: dict[str, Case] = {
    **{name: (make, (torch.zeros(shape),), {}) for name, (make, shape) in EXPORTABLE.items()},
    "nested": (Nested, ({"tokens": torch.zeros(2, 7, 5)},), {"mask": torch.ones(2, 7, 1), "double": True}),
    "function cache": (Cached, (torch.zeros(1, 4),), {}),
    "written buffer": (Counter, (torch.zeros(1, 3),), {}),
    "view of a leaf": (Token, (torch.zeros(2, 3, 6),), {}),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)), (X,), {}),
    "dataclass": (GivesDataclass, (X,), {}),
    "named tuple": (GivesNamedTuple, (X,), {}),
    "no_grad": (WithoutGradients, (X,), {}),
    "autocast": (OwnPrecision, (X,), {}),
    "constants": (Constants, (X,), {}),
    "changed input": (ChangesItsInput, (X,), {}),
    "one tensor given twice": (GivesWhatItGot, (X, X), {}),
    "option left out": (Options, (X,), {"scale": 2.0}),
    "option given": (Options, (X, torch.ones(6)), {}),
    "option is None": (Options, (X, None), {}),
    "all by keyword": (Options, (), {"gate": torch.ones(6), "x": X}),
    "two names": (TwoNames, (X,), {}),
}
CASES["keywords in another order"] = (
    Nested,
    ({"tokens": torch.zeros(2, 7, 5)},),
    {"double": True, "mask": torch.ones(2, 7, 1)},
)


def described(groups: list[ChannelGroup]) -> list[tuple[Any, ...]]:
    return [
        (group.name, group.size, group.exact, [(m.leaf, m.dim, m.role, m.units.tolist()) for m in group.members])
        for group in groups
    ]


def check_same(traced: Graph, exported: Graph) -> None:
    """The same graph, node by node, and the same groups, free and frozen."""
    assert (traced.how, exported.how) == ("traced", "exported")
    assert [node.op for node in traced.nodes] == [node.op for node in exported.nodes]
    assert [node.module for node in traced.nodes] == [node.module for node in exported.nodes]
    assert [leaf.names for leaf in traced.leaves] == [leaf.names for leaf in exported.leaves]
    assert traced.inputs == exported.inputs
    assert traced.output == exported.output
    assert traced.unread == exported.unread
    assert traced.hash == exported.hash
    assert traced.constants.keys() == exported.constants.keys()
    assert all(torch.equal(exported.constants[name], tensor) for name, tensor in traced.constants.items())
    assert traced.known.keys() == exported.known.keys()
    ours, theirs = sec.couple(traced), sec.couple(exported)
    assert described(ours.free) == described(theirs.free)
    assert described(ours.frozen) == described(theirs.frozen)


@pytest.mark.parametrize("name", CASES)
def test_exported_is_traced(name: str):
    make, args, kwargs = CASES[name]
    model = make()
    exported = sec.capture(model, args, kwargs=kwargs, how="exported")
    check_same(sec.capture(model, args, kwargs=kwargs, how="traced"), exported)


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.medium) for seed in range(8, 40))])
def test_random_networks_couple_and_cut_as_traced(seed: int):
    model, inputs = random_network(7000 + seed)
    exported = sec.capture(model, inputs, how="exported")
    check_same(sec.capture(model, inputs, how="traced"), exported)
    groups = sec.couple(exported)
    plan = sec.plan(exported, groups, keep=random_kept(seed)(groups))
    result = sec.cut_detailed(model, plan, inputs, groups=groups)
    check_outputs(model.double(), result.model.double(), of_model(exported, plan.removed), doubles(inputs))
    assert sec.capture(result.model.float(), inputs, how="exported").how == "exported"


def doubles(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


@pytest.mark.parametrize("form", ["auto", "graph"])
@pytest.mark.parametrize("name", ["convolutions", "split", "transformer", "constants", "two names"])
def test_cut_from_an_exported_graph_is_proven(name: str, form: str):
    make, args, kwargs = CASES[name]
    model = make().eval()
    groups = sec.couple(sec.capture(model, args, kwargs=kwargs, how="exported"))
    plan = sec.plan(groups.graph, groups, keep=half_kept(groups))
    assert any(plan.removed.values())
    result = sec.cut_detailed(model, plan, args, kwargs, groups=groups, form=form)
    other = sec.cut_detailed(model, plan, args, kwargs, form=form)
    assert result.form == other.form == ("native" if name == "convolutions" and form == "auto" else other.form)
    assert result.proof == other.proof
    twice = [torch.cat([item, item]) for item in args]
    with torch.no_grad():
        pairs = zip(result.model(*twice), other.model(*twice), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_sources_are_lines_of_forward():
    graph = sec.capture(ConvNet(), torch.zeros(1, 3, 8, 8), how="exported")
    sources = [node.source for node in graph.nodes]
    assert sources == [node.source for node in sec.capture(ConvNet(), torch.zeros(1, 3, 8, 8)).nodes]
    assert graph.nodes[0].where.startswith("`conv2d` in `conv` at ")
    assert "networks.py" in sources[0] and "self.conv(x)" in sources[0]


def test_output_structure_of_a_dataclass():
    graph = sec.capture(GivesDataclass(), X, how="exported")
    shapes = map_refs(graph.output, lambda ref: graph.values[ref.value].shape)
    assert shapes == {"logits": (3, 2), "hidden": (3,), "loss": None}


def test_memory_that_is_shared_and_written():
    """A buffer changed in place and an input written to keep their storage, as in the model's own run."""
    counter = sec.capture(Counter(), torch.zeros(1, 3), how="exported")
    first = counter.nodes[0]
    assert first.op == "aten.add_.Tensor"
    assert [node.op for node in counter.nodes].count("aten.copy_.default") == 0
    assert counter.values[first.inputs[0]].storage == counter.values[first.outputs[0]].storage
    changed = sec.capture(ChangesItsInput(), X, how="exported")
    assert changed.nodes[0].op == "aten.mul_.Tensor"
    given = changed.values[changed.inputs[0].value].storage
    assert changed.values[changed.nodes[0].outputs[0]].storage == given


def test_assigned_buffer_ends_in_a_copy_and_cuts():
    model = Assigns().eval()
    groups = sec.couple(sec.capture(model, X, how="exported"))
    assert groups.graph.nodes[-1].op == "aten.copy_.default"
    assert groups.graph.leaf("mean").value == groups.graph.nodes[-1].inputs[0]
    plan = sec.plan(groups.graph, groups, keep=half_kept(groups))
    result = sec.cut_detailed(model, plan, X, groups=groups)
    assert result.model.mean.shape == (3,)
    assert not model.mean.any()


def test_tied_weights_are_one_leaf():
    graph = sec.capture(Twice(), torch.zeros(1, 4), how="exported")
    assert [leaf.names for leaf in graph.leaves if "weight" in leaf.name] == [("one.weight", "two.weight")]
    assert [node.module for node in graph.nodes if node.op == "aten.linear.default"] == ["one", "one", "two"]


# What it leaves alone


def process() -> tuple[Any, ...]:
    state = torch.get_rng_state().tolist(), random.getstate(), torch.is_grad_enabled()
    return (*state, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled(), list(warnings.filters))


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_process_are_untouched(fails: bool, capfd: pytest.CaptureFixture[str]):
    model = ConvNet().train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones(2, 4)
    x = torch.randn(2, 5 if fails else 3, 8, 8, requires_grad=True)
    given, before, around = x.detach().clone(), snapshot(model), process()
    if fails:
        with pytest.raises(sec.CaptureError):
            sec.capture(model, x, how="exported")
    else:
        sec.capture(model, x, how="exported")
    check_untouched(model, before)
    assert process() == around
    assert torch.equal(model.head.weight.grad, torch.ones(2, 4))
    assert torch.equal(x, given) and x.requires_grad and x.grad is None
    assert not torch.nn.modules.module._global_forward_hooks
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("build", [Counter, Assigns, ChangesItsInput])
def test_state_is_restored(build: type[nn.Module]):
    model, before, x = build(), None, torch.ones(2, 3 if build is Counter else 4)
    before = snapshot(model)
    sec.capture(model, x, how="exported")
    check_untouched(model, before)
    assert torch.equal(x, torch.ones_like(x))


@pytest.mark.parametrize(("build", "cache"), [(Cached, position_table), (CachedInClass, CachedInClass.table)])
@pytest.mark.parametrize("width", [4, 5])
def test_function_caches_keep_no_tensor_without_data(build: Callable[[], nn.Module], cache: Any, width: int):
    """Also when export fails after the cache was filled."""
    cache.cache_clear()
    if width == 4:
        sec.capture(build(), torch.randn(2, width), how="exported")
    else:
        with pytest.raises(sec.CaptureError):
            sec.capture(build(), torch.randn(2, width), how="exported")
    assert torch.equal(cache(4), torch.arange(4, dtype=torch.float32) * 0.1)


# Refusals


@pytest.mark.parametrize("build", [Branches, Nonzero])
def test_what_export_refuses_is_refused_with_its_reason(build: type[nn.Module], capfd: pytest.CaptureFixture[str]):
    with pytest.raises(sec.CaptureError, match=r"torch.export.*(data-dependent|nonzero).*how='auto'"):
        sec.capture(build(), torch.ones(1, 3), how="exported")
    assert capfd.readouterr() == ("", "")
    assert sec.capture(build(), torch.ones(1, 3)).how == "recorded"


def test_regions_that_a_graph_can_not_hold():
    class Either(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, self.one.forward, lambda y: self.one(y).tanh(), (x,))

    with pytest.raises(sec.CaptureError, match="`cond`, which has no place in a graph"):
        sec.capture(Either(), X, how="exported")


def test_modules_that_only_a_closure_knows():
    """Export takes the weights of such modules for constants; cutting them would leave the constants whole."""
    model = Pair()
    model.forward = lambda x: model.two(model.one(x).relu())
    with pytest.raises(sec.CaptureError, match="second tensor over the memory.*how='auto'"):
        sec.capture(model, X, how="exported")
    assert sec.capture(model, X).nodes


def test_exported_programs_are_no_models():
    program = torch.export.export(Split().eval(), (torch.zeros(1, 3, 4, 4),), strict=False)
    with pytest.raises(sec.InputError, match="ExportedProgram.*pass the module that was exported"):
        sec.capture(program, torch.zeros(1, 3, 4, 4), how="exported")


def test_unknown_way():
    with pytest.raises(sec.InputError, match="'export'.*auto, traced, exported, recorded"):
        sec.capture(transformer(), torch.zeros(1, 5, 8), how="export")
