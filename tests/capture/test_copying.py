"""Models that hold what can not be copied, and models that are compiled code already."""

from __future__ import annotations

import copy
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.capture.copying import copied

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))


class Noisy(nn.Module):
    """Noise from generators of its own, in training mode or always."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.b = nn.Linear(8, 3)
        self.always = always
        self.source = torch.Generator().manual_seed(3)
        self.more = {"deep": [torch.Generator().manual_seed(4)]}

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.always:
            x = x + torch.rand(x.shape, generator=self.source)
        return self.b(torch.relu(self.a(x)))


def plan_of(model: nn.Module) -> sec.Plan:
    graph = sec.capture(model, X)
    return sec.plan(graph, sec.couple(graph), keep={"a": [0, 2, 5]})


def test_a_model_with_generators_is_cut_and_keeps_their_state():
    model = Noisy(always=False)
    before = model.source.get_state()
    small = sec.cut(model, plan_of(model), X)
    assert torch.equal(model.source.get_state(), before)
    assert small.source is not model.source and torch.equal(small.source.get_state(), before)
    assert small.more["deep"][0] is not model.more["deep"][0]
    small.train()(X)
    assert not torch.equal(small.source.get_state(), before)
    assert torch.equal(model.source.get_state(), before)


@pytest.mark.parametrize("how", ["traced", "recorded"])
def test_noise_in_eval_mode_is_captured_and_its_cut_refused(how: Any):
    model = Noisy(always=True)
    before = model.source.get_state()
    graph = sec.capture(model, X, how=how)
    assert any("rand" in node.op for node in graph.nodes)
    with pytest.raises(sec.ProofError, match="draws random numbers"):
        sec.cut(model, plan_of(model), X)
    assert torch.equal(model.source.get_state(), before)


def test_a_model_that_can_not_be_copied_says_which_attribute_stands_in_the_way():
    model = Noisy(always=False)
    model.guard = threading.Lock()
    with pytest.raises(sec.CaptureError, match=r"Noisy can not be copied.*lock.*Next: make the attribute") as refused:
        sec.capture(model, X)
    assert str(refused.value).count("Next:") == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: torch.jit.script(nn.Linear(4, 4)), "the model itself"),
        (lambda: torch.jit.trace(nn.Linear(4, 4), X), "the model itself"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(torch.jit.script(nn.ReLU()))), "`1.0`"),
    ],
    ids=["scripted", "traced", "inside"],
)
def test_torchscript_is_refused(make: Any, where: str):
    with pytest.raises(sec.InputError, match=rf"TorchScript.*Where: {where}.*Next: pass the nn.Module"):
        sec.capture(make(), X)


def in_place(module: nn.Module) -> nn.Module:
    module.compile()
    return module


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.compile(nn.Linear(4, 4)), r"the model itself.*_orig_mod"),
        (lambda: nn.Sequential(nn.Linear(4, 4), torch.compile(nn.Linear(4, 4))), r"`1`.*_orig_mod"),
        (lambda: in_place(nn.Linear(4, 4)), r"the model itself.*before `\.compile\(\)`"),
    ],
    ids=["whole", "inside", "in place"],
)
def test_compiled_modules_are_refused(make: Any, words: str):
    with pytest.raises(sec.InputError, match=rf"A compiled module can not be cut.*{words}.*smaller one afterwards"):
        sec.capture(make(), X)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_function_is_followed():
    @torch.jit.script
    def gate(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    class Gated(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(gate(self.a(x)))

    model = Gated(always=False)
    small = sec.cut(model, plan_of(model), X)
    with torch.no_grad():
        model.b.weight[:, [1, 3, 4, 6, 7]] = 0
    torch.testing.assert_close(small(X), model(X))


class Aware(nn.Module):
    """Says itself how it is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Aware:
        other = Aware()
        other.inner = copy.deepcopy(self.inner, memo)
        other.copies = self.copies + 1
        return other


def odd_model() -> nn.Module:
    """Shared and nested parts, lists that hold modules, cycles, and classes that copy themselves."""
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ModuleList([shared, nn.ReLU(), Aware()]), nn.LSTM(3, 4))
    model.extra = {"listed": [shared, (shared, nn.Identity())], "empty": {}, 3: {"a", "b"}, "row": torch.ones(2)}
    model.again = model.extra["listed"]
    model.itself = [model]
    model.tied = nn.Linear(3, 3)
    model.tied.weight = shared.weight
    return model


def structure(item: Any, seen: dict[int, int]) -> Any:
    """What an object is made of, with a number for everything that was met before."""
    if isinstance(item, (int, str, float, bool, type(None))):
        return repr(item)
    if isinstance(item, weakref.ref):
        return "reference", structure(item(), seen)
    if callable(item) and not isinstance(item, nn.Module):
        return item
    if id(item) in seen:
        return f"#{seen[id(item)]}"
    seen[id(item)] = len(seen)
    if isinstance(item, Tensor):
        return type(item).__name__, item.requires_grad, item.tolist()
    if isinstance(item, dict):
        return type(item).__name__, [(structure(key, seen), structure(value, seen)) for key, value in item.items()]
    if isinstance(item, (list, tuple)):
        return type(item).__name__, [structure(part, seen) for part in item]
    if isinstance(item, (set, frozenset)):
        return type(item).__name__, sorted(item)
    return type(item), structure(vars(item), seen)


def test_a_copy_is_what_deepcopy_makes_of_the_model():
    model = odd_model()
    before = structure(model, {})
    ours, theirs = copied(model, {}), copy.deepcopy(model)
    assert structure(ours, {}) == structure(theirs, {})
    assert structure(model, {}) == before
    assert ours[1][2].copies == 1 and ours[1][2].inner is not model[1][2].inner
    assert ours[0] is ours[1][0] is ours.extra["listed"][0] and ours.tied.weight is ours[0].weight
    assert ours.itself[0] is ours
    parts = {id(part) for part in model.modules()} | {id(tensor) for tensor in model.parameters()}
    assert not parts & ({id(part) for part in ours.modules()} | {id(tensor) for tensor in ours.parameters()})


def test_a_copy_keeps_what_the_memo_names():
    model = odd_model()
    ours = copied(model, {id(tensor): tensor for tensor in model.parameters()})
    assert all(a is b for a, b in zip(ours[0].parameters(), model[0].parameters(), strict=True))
    assert all(a is b for a, b in zip(ours[2].parameters(), model[2].parameters(), strict=True))
