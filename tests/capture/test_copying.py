"""Models that hold what can not be copied, and models that are compiled code already."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec

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
