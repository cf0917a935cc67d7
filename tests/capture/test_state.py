"""What a model does to tensors of its own while it runs: the graph repeats it, the caller's model keeps none of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sec
from secateurs.cut.prove import run_graph

TABLE: dict[str, Tensor] = {}


class Two(nn.Module):
    """Two layers around something that a subclass does."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.o = nn.Linear(16, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class PaddingMask(Two):
    """A mask that is all true until a slice of it is written."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[0], 1, 1, x.shape[1], dtype=torch.bool)
        mask[..., -1] = False
        q = self.a(x).unsqueeze(1)
        return self.o(F.scaled_dot_product_attention(q, q, q, attn_mask=mask).squeeze(1))


class Steps(Two):
    """Constants that move between reads."""

    def forward(self, x: Tensor) -> Tensor:
        time, rates = torch.zeros(1), torch.arange(3.0)
        for _ in range(3):
            x = self.body(x) + time * rates[0] + rates.sum()
            time += 1
            rates += 1
        return x


class Counter(Two):
    """A plain tensor attribute and a buffer, both written while the model runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = torch.zeros(1)
        self.register_buffer("history", torch.zeros(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.history[0].add_(0.5)
        return self.body(x) * self.calls + self.history.sum(0)


class Table(Two):
    """A result kept in a dictionary of the module's file."""

    def forward(self, x: Tensor) -> Tensor:
        if "positions" not in TABLE:
            TABLE["positions"] = torch.arange(8.0)
        return self.body(x) + TABLE["positions"]


def outputs_of_graph(graph: sec.Graph, model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    leaves: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers()), **graph.constants}
    values = {item.value: tensor for item, tensor in zip(graph.inputs, inputs, strict=True)}
    with torch.no_grad():
        return run_graph(graph, leaves.__getitem__, values, wide=False)


@pytest.mark.parametrize("how", ["traced", "recorded"])
@pytest.mark.parametrize("kind", [PaddingMask, Steps, Counter, Table])
def test_graph_repeats_what_the_model_does(kind: type[Two], how: str):
    TABLE.clear()
    torch.manual_seed(0)
    model = kind().eval()
    x = torch.randn(2, 5, 8)
    before = {name: item.clone() for name, item in vars(model).items() if isinstance(item, Tensor)}
    buffers = {name: item.clone() for name, item in model.named_buffers()}
    graph = sec.capture(model, x, how=how)
    for name, item in before.items():
        assert torch.equal(item, getattr(model, name)), name
    for name, item in buffers.items():
        assert torch.equal(item, dict(model.named_buffers())[name]), name
    found = outputs_of_graph(graph, model, x)
    with torch.no_grad():
        torch.testing.assert_close(found[0], model(x))


@pytest.mark.parametrize("form", ["auto", "graph"])
@pytest.mark.parametrize("kind", [PaddingMask, Steps, Table])
def test_cut_repeats_it_too(kind: type[Two], form: str):
    torch.manual_seed(0)
    model = kind().eval()
    x = torch.randn(2, 5, 8)
    graph = sec.capture(model, x)
    groups = sec.couple(graph)
    plan = sec.plan(graph, groups, keep={"a": range(0, 16, 2)})
    small = sec.cut_detailed(model, plan, x, form=form).model
    with torch.no_grad():
        model.o.weight[:, 1::2] = 0
        if kind is PaddingMask:  # queries meet keys without a layer between: silence the producer instead
            model.a.weight[1::2] = 0
            model.a.bias[1::2] = 0
        torch.testing.assert_close(small(x), model(x))


def test_second_tensor_over_a_buffer_is_refused():
    class View(Two):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("history", torch.zeros(2, 8))
            self.last = self.history[0]

        def forward(self, x: Tensor) -> Tensor:
            self.last.add_(0.5)
            return self.body(x) + self.history.sum(0)

    model = View().eval()
    with pytest.raises(sec.CaptureError, match="history"):
        sec.capture(model, torch.randn(2, 8))
    assert not model.history.any()


def test_one_tensor_given_twice_is_two_inputs():
    class Difference(Two):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.body(x) - 2 * self.body(y)

    model, x = Difference().eval(), torch.randn(2, 8)
    for how in ("traced", "recorded"):
        graph = sec.capture(model, (x, x), how=how)
        other = torch.randn(2, 8)
        assert len(graph.inputs) == 2
        with torch.no_grad():
            torch.testing.assert_close(outputs_of_graph(graph, model, x, other)[0], model(x, other))


def test_patched_forward_leaves_the_original_in_training_mode_untouched():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).train()
    original = model.forward
    model.forward = lambda x: original(x) * 2
    before = {name: item.clone() for name, item in model.state_dict().items()}
    for how in ("traced", "recorded"):
        sec.capture(model, torch.randn(2, 3, 8, 8), how=how)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], item) for name, item in model.state_dict().items())


def test_random_numbers_in_forward_do_not_advance_the_callers_generator():
    class Noisy(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x + torch.randn_like(x) * 0)

    torch.manual_seed(3)
    before = torch.get_rng_state()
    sec.capture(Noisy().eval(), torch.ones(2, 8), how="recorded")
    after_build = torch.get_rng_state()
    model = Noisy().eval()
    state = torch.get_rng_state()
    sec.capture(model, torch.ones(2, 8), how="recorded")
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(before, after_build)  # building draws, capturing does not
