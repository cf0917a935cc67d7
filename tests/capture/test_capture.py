"""Captures against another way to the same graph, and what a capture must leave alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache

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
)
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateurs as sec
from secateurs.capture.graph import Graph, map_refs
from secateurs.capture.run import call
from secateurs.cost import count_graph
from secateurs.testing.chain import check_untouched, snapshot
from secateurs.testing.networks import random_network


def run(graph: Graph, model: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The graph's outputs: its nodes called in order, on the model's own tensors."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    values = {leaf.value: {**tensors, **graph.constants}[leaf.name] for leaf in graph.leaves}
    values |= {item.value: tensor for item, tensor in zip(graph.inputs, inputs, strict=True)}
    with torch.no_grad():
        for node in graph.nodes:
            for out, result in zip(node.outputs, call(node, values.__getitem__), strict=True):
                if out is not None:
                    values[out] = result
    return [values[number] for number in graph.outputs]


def outputs(model: nn.Module, *args: object, **kwargs: object) -> list[Tensor]:
    with torch.no_grad():
        return [item for item in pytree.tree_leaves(model.eval()(*args, **kwargs)) if isinstance(item, Tensor)]


def aliases(graph: Graph) -> list[int]:
    """For each value that a node reads or makes, the first one in the same memory."""
    first: dict[int, int] = {}
    used = [number for node in graph.nodes for number in (*node.inputs, *node.outputs) if number is not None]
    return [first.setdefault(graph.values[number].storage, position) for position, number in enumerate(used)]


@pytest.mark.parametrize("seed", range(20))
def test_traced_equals_recorded_node_by_node(seed: int):
    model, inputs = random_network(2000 + seed)
    traced = sec.capture(model, inputs)
    recorded = sec.capture(model, inputs, how="recorded")
    assert (traced.how, recorded.how) == ("traced", "recorded")
    assert [node.op for node in traced.nodes] == [node.op for node in recorded.nodes]
    assert [node.module for node in traced.nodes] == [node.module for node in recorded.nodes]
    assert traced.hash == recorded.hash
    shapes = [[graph.values[v].shape for node in graph.nodes for v in node.inputs] for graph in (traced, recorded)]
    assert shapes[0] == shapes[1]
    assert aliases(traced) == aliases(recorded)
    assert count_graph(traced) == count_graph(recorded)


@pytest.mark.parametrize("seed", range(12))
def test_graph_computes_what_the_model_computes(seed: int):
    model, inputs = random_network(3000 + seed)
    got = run(sec.capture(model, inputs), model, list(inputs))
    expected = outputs(model, *inputs)
    assert len(got) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


NO_OPERATORS = ("getitem", "aten.detach.default", "aten.alias.default", "aten.clone.default", "aten.lift_fresh_copy")


def exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    program = torch.export.export(model, inputs, strict=False)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return [name for name in names if name.startswith("aten.") and name not in NO_OPERATORS]


@pytest.fixture
def unfused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("name", EXPORTABLE)
def test_operators_are_those_of_torch_export(name: str):
    make, shape = EXPORTABLE[name]
    model, inputs = make().eval(), (torch.randn(shape),)
    ours = [node.op for node in sec.capture(model, inputs).nodes if node.op not in NO_OPERATORS]
    assert ours == exported(model, inputs)


# What a capture leaves alone


@pytest.mark.parametrize("how", ["traced", "recorded"])
def test_model_and_process_are_untouched(how: str):
    model = ConvNet().train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones(2, 4)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    given, before = x.detach().clone(), snapshot(model)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    sec.capture(model, x, how=how)
    check_untouched(model, before)
    assert torch.equal(model.head.weight.grad, torch.ones(2, 4))
    assert torch.equal(x, given) and x.requires_grad and x.grad is None
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert torch.is_grad_enabled()
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


@pytest.mark.parametrize("how", ["traced", "recorded"])
def test_buffers_that_the_model_writes_are_restored(how: str):
    model = Counter().eval()
    x = torch.ones(1, 3)
    with torch.no_grad():
        model(x)
    graph = sec.capture(model, x, how=how)
    assert float(model.calls) == 1
    assert graph.nodes[0].op == "aten.add_.Tensor"


@pytest.mark.parametrize("how", ["traced", "recorded"])
def test_views_of_leaves_share_their_memory(how: str):
    graph = sec.capture(Token(), torch.zeros(2, 3, 6), how=how)
    expand = graph.nodes[0]
    assert expand.op == "aten.expand.default"
    assert graph.values[expand.inputs[0]].storage == graph.values[expand.outputs[0]].storage


def test_in_place_operators_of_the_model_do_not_reach_the_inputs():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))
    for how in ("traced", "recorded"):
        x = torch.tensor([[-1.0, 2.0, -3.0]])
        graph = sec.capture(model, x, how=how)
        assert x.tolist() == [[-1, 2, -3]]
        assert graph.nodes[0].op == "aten.relu_.default"
        made = graph.values[graph.nodes[0].outputs[0]]
        assert made.storage == graph.values[graph.inputs[0].value].storage


@pytest.mark.parametrize(
    ("build", "cache"),
    [
        (Cached, position_table),
        (CachedInClass, CachedInClass.table),
    ],
)
def test_function_caches_keep_no_tensor_without_data(build: type[Cached], cache: Callable[[int], Tensor]):
    cache.cache_clear()
    model = build().eval()
    x = torch.randn(2, 4)
    sec.capture(model, x)
    assert torch.equal(cache(4), torch.arange(4, dtype=torch.float32) * 0.1)
    torch.testing.assert_close(outputs(model, x)[0], model.linear(x + torch.tensor([0, 0.1, 0.2, 0.3])).detach())


def test_function_cache_that_was_made_after_an_earlier_capture():
    sec.capture(ConvNet(), torch.zeros(1, 3, 8, 8))
    module = sys.modules[Cached.__module__]
    module.later = lru_cache(lambda length: torch.arange(length) * 0.1)

    class Later(Cached):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x + module.later(4))

    sec.capture(Later(), torch.zeros(1, 4))
    assert torch.equal(module.later(4), torch.arange(4) * 0.1)


def test_failing_model_is_left_as_it_was():
    model = ConvNet().train()
    before = snapshot(model)
    with pytest.raises(sec.CaptureError):
        sec.capture(model, torch.zeros(1, 5, 8, 8))
    check_untouched(model, before)
    assert not torch.nn.modules.module._global_forward_hooks
    assert sec.capture(model, torch.zeros(1, 3, 8, 8)).how == "traced"


# What a graph says


def test_leaves_inputs_and_modules():
    graph = sec.capture(ConvNet(), torch.zeros(1, 3, 8, 8))
    names = {leaf.name: (leaf.kind, leaf.shape) for leaf in graph.leaves}
    assert names["conv.weight"] == ("parameter", (4, 3, 3, 3))
    assert names["norm.running_mean"] == ("buffer", (4,))
    assert [item.name for item in graph.inputs] == ["x"]
    assert [leaf.name for leaf in graph.unread] == ["norm.num_batches_tracked"]
    assert graph.modules["down"] == "Conv2d"
    first = graph.nodes[0]
    assert (first.op, first.module) == ("aten.conv2d.default", "conv")
    assert "networks.py" in first.source
    assert "self.conv(x)" in first.source
    assert first.where.startswith("`conv2d` in `conv` at ")


def test_tied_weights_are_one_leaf_and_a_shared_module_runs_twice():
    graph = sec.capture(Twice(), torch.zeros(1, 4))
    assert [leaf.names for leaf in graph.leaves if "weight" in leaf.name] == [("one.weight", "two.weight")]
    assert graph.leaf("two.weight") is graph.leaf("one.weight")
    assert [node.module for node in graph.nodes if node.op == "aten.linear.default"] == ["one", "one", "two"]


def test_nested_inputs_keywords_and_outputs():
    model = Nested()
    tokens, mask = torch.randn(2, 7, 5), torch.ones(2, 7, 1)
    graph = sec.capture(model, ({"tokens": tokens},), kwargs={"mask": mask, "double": True})
    assert [item.name for item in graph.inputs] == ["batch['tokens']", "mask"]
    assert list(graph.output) == ["hidden", "pooled", "doubled"]
    assert graph.output["doubled"] is True
    assert graph.output["pooled"][1][1] is None
    shapes = map_refs(graph.output, lambda ref: graph.values[ref.value].shape)
    assert shapes == {"hidden": (2, 7, 3), "pooled": [(2, 3), ((2, 3), None)], "doubled": True}
    for a, b in zip(run(graph, model, [tokens, mask]), outputs(model, {"tokens": tokens}, mask=mask), strict=True):
        assert torch.equal(a, b)


def test_hash_is_of_the_architecture():
    x = torch.zeros(1, 3, 8, 8)
    one, two = ConvNet(), ConvNet()
    assert sec.capture(one, x).hash == sec.capture(two, x).hash
    assert sec.capture(one, torch.zeros(2, 3, 8, 8)).hash != sec.capture(one, x).hash
    two.down.stride = (1, 1)
    two.forward = lambda x: two.head(two.down(two.norm(two.conv(x))).mean((2, 3)))
    assert sec.capture(two, x).hash != sec.capture(one, x).hash


# Control flow that looks at data


def test_branch_on_data_is_recorded_with_a_note():
    model = Branches()
    for x, op in ((torch.ones(1, 3), "aten.relu.default"), (-torch.ones(1, 3), "aten.tanh.default")):
        graph = sec.capture(model, x)
        assert graph.how == "recorded"
        assert "recorded from one real run because tracing stopped" in graph.notes[0]
        assert graph.nodes[-1].op == op
        assert torch.equal(run(graph, model, [x])[0], outputs(model, x)[0])


def test_sizes_that_depend_on_data_are_recorded_and_replayed():
    model = Nonzero().eval()
    nn.init.ones_(model.linear.weight)
    nn.init.zeros_(model.linear.bias)
    x, rows = torch.tensor([[1.0], [-1.0], [2.0], [-2.0], [3.0], [-3.0]]).expand(6, 3), 3
    graph = sec.capture(model, x)
    assert graph.how == "recorded"
    assert graph.values[graph.outputs[0]].shape == (rows, 4)
    assert [decision.op for decision in graph.decisions] == ["aten.gt.Scalar"]
    assert graph.decisions[0].outputs[0].tolist() == [True, False] * 3
    again = sec.capture(model, torch.zeros(6, 3), how="recorded", replay=graph.decisions)
    assert again.values[again.outputs[0]].shape == (rows, 4)


def test_tracing_may_be_insisted_on():
    with pytest.raises(sec.CaptureError, match="how='recorded'"):
        sec.capture(Branches(), torch.ones(1, 3), how="traced")


# Refusals


@pytest.mark.parametrize("model", ["resnet18", nn.Linear, lambda x: x, None])
def test_what_is_no_module(model: object):
    with pytest.raises(sec.InputError, match=r"not a torch\.nn\.Module"):
        sec.capture(model, torch.zeros(1, 3))


@pytest.mark.parametrize("inputs", [None, (), "text", 3, ([], {})])
def test_inputs_without_a_tensor(inputs: object):
    with pytest.raises(sec.InputError, match="no tensor"):
        sec.capture(nn.Linear(3, 2), inputs)


@pytest.mark.parametrize("how", ["auto", "traced", "exported", "recorded"])
def test_empty_batches_are_refused(how: str):
    with pytest.raises(sec.InputError, match=r"inputs are empty.*\(0, 4\).*batch of at least one"):
        sec.capture(Twice(), torch.zeros(0, 4), how=how)
    with pytest.raises(sec.InputError, match=r"\(0, 7, 5\), \(0, 7, 1\)"):
        sec.capture(Nested(), ({"tokens": torch.zeros(0, 7, 5)},), kwargs={"mask": torch.zeros(0, 7, 1)}, how=how)


def test_a_tensor_that_starts_empty_beside_others_is_none_of_our_business():
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor, past: Tensor) -> Tensor:
            return self.linear(torch.cat([past, x], 1))

    for how in ("traced", "exported", "recorded"):
        graph = sec.capture(Remembers(), (torch.zeros(1, 3, 4), torch.zeros(1, 0, 4)), how=how)
        assert graph.values[graph.outputs[0]].shape == (1, 3, 2)


def test_model_that_fails_on_the_inputs():
    with pytest.raises(sec.CaptureError, match=r"ConvNet fails on the example inputs.*\(1, 5, 8, 8\)") as refusal:
        sec.capture(ConvNet(), torch.zeros(1, 5, 8, 8))
    assert isinstance(refusal.value.__cause__, RuntimeError)
    with pytest.raises(sec.CaptureError, match="fails on the example inputs: TypeError"):
        sec.capture(Split(), (torch.zeros(1, 3, 4, 4), torch.zeros(1)))


def test_model_that_returns_no_tensor():
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "done"

    with pytest.raises(sec.CaptureError, match="returns no tensor.*str"):
        sec.capture(Silent(), torch.zeros(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float):
    model = ConvNet()
    with torch.no_grad():
        model.down.weight[0, 0, 1, 1] = value
    with pytest.raises(sec.InputError, match="`down.weight`.*1 of 36 values"):
        sec.capture(model, torch.zeros(1, 3, 8, 8))


def test_large_finite_weights_are_not_refused():
    model = nn.Linear(4, 2)
    nn.init.constant_(model.weight, 3e38)
    assert sec.capture(model, torch.zeros(1, 4)).nodes
