"""What the pictures take from data, against plain PyTorch with hooks on the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from benchmarks import imagenet
from secateurs.report import figures


class Net(nn.Module):
    """Convolution, norm and ReLU in place; a shortcut; a pooling; two linear layers, the second used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.body = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 4)
        self.again = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = F.relu(self.body(x) + x)
        x = torch.tanh(self.fc(x.mean((2, 3))))
        return self.again(self.again(x))  # type: ignore[no-any-return]


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.bias.normal_()
    return model


DATA = torch.randn(10, 3, 5, 7, generator=torch.Generator().manual_seed(1))
ENDS = {"stem": "act", "body": "body", "fc": "tanh", "again": "again"}


def by_hooks(model: Net) -> dict[str, Tensor]:
    """What each layer ends in, `[samples, channels, ...]`, recorded by forward hooks on the modules."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.setdefault(name, out.clone()))
        for name, module in model.named_children()
    ]
    with torch.no_grad():
        model(DATA)
    for hook in hooks:
        hook.remove()
    seen["tanh"] = torch.tanh(seen["fc"])
    return {layer: seen[end] for layer, end in ENDS.items()}


def test_layers_end_after_what_acts_on_each_channel_alone(model: Net) -> None:
    found = figures.layers(sec.capture(model, DATA[:2]))
    assert [layer.name for layer in found] == list(ENDS)
    assert [layer.weight for layer in found] == [f"{name}.weight" for name in ENDS]


@pytest.mark.parametrize("size", [10, 4, 1])
def test_activity_is_what_hooks_see_whatever_the_batches(model: Net, size: int) -> None:
    graph = sec.capture(model, DATA[:2])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    data = [(part, torch.zeros(len(part))) for part in DATA.split(size)]
    found = figures.activities(model, graph, data, figures.layers(graph))
    assert found.count == 10
    assert torch.equal(found.first, DATA[0])
    for name, expected in by_hooks(model).items():
        rows = expected.transpose(0, 1).flatten(1)
        activity = found.of[name]
        assert torch.allclose(activity.mean, rows.double().abs().mean(1), atol=1e-6), name
        assert torch.allclose(activity.zeros, (rows == 0).double().mean(1)), name
        assert torch.allclose(activity.sample, expected[0], atol=1e-6), name
        assert activity.lowest == pytest.approx(float(expected.min()), abs=1e-6)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_silenced_filter_has_only_zeros(model: Net) -> None:
    with torch.no_grad():
        model.norm.weight[2] = 0
        model.norm.bias[2] = -1
    graph = sec.capture(model, DATA[:2])
    stem = figures.layers(graph)[0]
    activity = figures.activities(model, graph, [DATA], [stem]).of["stem"]
    assert activity.mean[2] == 0
    assert activity.zeros[2] == 1
    assert 0 < activity.zeros[0] < 1


def test_no_more_batches_than_asked_for_are_looked_at(model: Net) -> None:
    graph = sec.capture(model, DATA[:2])
    assert figures.activities(model, graph, list(DATA.split(3)), figures.layers(graph), limit=2).count == 6


def test_gated_activations_and_inputs_without_samples() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 1)
            self.last = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.last(y * torch.sigmoid(y))  # type: ignore[no-any-return]

    model, x = Gated().eval(), torch.randn(1, 4, 5)
    graph = sec.capture(model, x)
    found = figures.activities(model, graph, [x], figures.layers(graph))
    with torch.no_grad():
        assert torch.allclose(found.of["conv"].sample, model.conv(x))  # its output has two readers: there it ends
        assert torch.allclose(found.of["last"].sample, model(x).movedim(-1, 0)[:, 0])


@pytest.mark.data
@pytest.mark.medium
def test_dead_filters_of_a_published_network_let_nothing_through(data: Path) -> None:
    """Eleven of the 24 first filters of MobileNet v1 0.75 are dead; without them it answers as before."""
    pytest.importorskip("PIL")
    model = imagenet.mobilenet(data)
    photos = imagenet.Photos(data, imagenet.centred, range(0, 1000, 50), size=10)
    inputs = next(iter(photos))[0]
    graph = sec.capture(model, inputs)
    first = figures.layers(graph)[0]
    activity = figures.activities(model, graph, photos, [first]).of["conv1"]
    dead = figures.dead_filters(model.conv1.weight, activity.mean)
    assert dead.numbers == [2, 3, 5, 6, 7, 9, 11, 13, 17, 18, 23]
    with torch.no_grad():
        before = model(inputs)
        model.conv1_bn.weight[dead.numbers] = 0
        model.conv1_bn.bias[dead.numbers] = 0
        after = model(inputs)
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert float((before - after).abs().max()) < 0.1 * float(before.abs().max())
