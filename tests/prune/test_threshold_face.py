"""`prune` in the style of a threshold toolkit: data-free, normalised, equalised, by granularity; biases handed over."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.a, self.b = Block(width), Block(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(torch.relu(self.norm(self.stem(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    """Filters with norms spread over three decades, as after training with a group penalty."""
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(10 ** (-3 * torch.rand(module.out_channels, 1, 1, 1)))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.bias.normal_()
    return model


def by_hand(model: Net, threshold: float, fold, granularity: int, least: int) -> list[int]:
    """The three passes for the channels of the residual stream, written out."""
    stats = []
    for conv in (model.stem, model.a.conv2, model.b.conv2):
        norms = conv.weight.detach().double().flatten(1).norm(dim=1)
        stats.append(norms / norms.max())
    stat = fold(torch.stack(stats))
    keep = max(int((stat >= threshold).sum()), min(least, len(stat)))
    keep = min(-(-keep // granularity) * granularity, len(stat))
    return sorted(stat.argsort(descending=True)[:keep].tolist())


FOLDS = {
    "union": lambda s: s.max(0).values,
    "intersection": lambda s: s.min(0).values,
    "arithmetic_mean": lambda s: s.mean(0),
    "geometric_mean": lambda s: s.prod(0) ** (1 / 3),
}


@pytest.mark.parametrize("equalization", FOLDS)
@pytest.mark.parametrize(("granularity", "least"), [(8, 16), (4, 4), (1, 1)])
def test_three_passes_equal_those_by_hand(net: Net, equalization: str, granularity: int, least: int):
    before = copy.deepcopy(net.state_dict())
    result = sec.prune(
        net, IMAGE, budget=sec.Budget(threshold=0.1), criterion="l2", normalizer="max", granularity=granularity,
        min_channels=least, equalization=equalization, exclude=[], bias="drop",
    )  # fmt: skip
    decision = next(item for item in result.plan.groups if item.name == "stem")
    assert list(decision.kept) == by_hand(net, 0.1, FOLDS[equalization], granularity, least)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert result.met
    small = result.model
    assert small.stem.out_channels == small.a.conv2.out_channels == small.b.conv2.out_channels == len(decision.kept)


def test_norms_of_filters_are_the_default_and_nothing_else_is_needed(net: Net):
    """The call of the toolkit, which names no criterion; mean magnitudes rank other filters above the threshold."""
    with torch.no_grad():
        net.a.conv1.weight[::2] = 0
        net.a.conv1.weight[::2, 0, 0, 0] = 0.3  # half of the largest norm, and next to nothing in the mean
    ask = {
        "budget": sec.Budget(threshold=0.1), "normalizer": "max", "granularity": 8, "min_channels": 16,
        "equalization": "union", "exclude": [], "bias": "drop",
    }  # fmt: skip
    result = sec.prune(net, IMAGE, **ask)
    kept = [item.kept for item in result.plan.groups]
    assert result.plan.criterion == "l2"
    assert list(kept[0]) == by_hand(net, 0.1, FOLDS["union"], 8, 16)
    assert kept == [item.kept for item in sec.prune(net, IMAGE, criterion="l2", **ask).plan.groups]
    assert kept != [item.kept for item in sec.prune(net, IMAGE, criterion="l1", **ask).plan.groups]
    assert sec.prune(net, IMAGE, budget=sec.Budget(macs=0.5)).plan.criterion == "l1"


def test_excluded_member_keeps_the_whole_group(net: Net):
    result = sec.prune(
        net, IMAGE, budget=sec.Budget(threshold=0.5), criterion="l2", normalizer="max", min_channels=4,
        exclude=["a.conv2"],
    )  # fmt: skip
    assert result.model.stem.out_channels == result.model.b.conv2.out_channels == 32
    assert result.model.a.conv1.out_channels < 32


def test_bias_is_handed_over(net: Net):
    """Removed channels put out constants here: dropping them costs, handing them over costs nothing."""
    with torch.no_grad():
        gone = torch.arange(32) % 4 == 0
        for conv in (net.a.conv1, net.b.conv1):
            conv.weight[gone] = 0
    ask = {
        "budget": sec.Budget(threshold=1e-9), "criterion": "l2", "normalizer": "max", "exclude": ["stem"],
        "min_channels": 2,
    }  # fmt: skip
    expected = net(IMAGE).detach()
    dropped = sec.prune(net, IMAGE, **ask)
    mapped = sec.prune(net, IMAGE, **ask, bias="propagate", padding="map")
    interior = sec.prune(net, IMAGE, **ask, bias="propagate")
    assert interior.model.a.conv1.out_channels == 24
    errors = [float((item.model(IMAGE).detach() - expected).abs().max()) for item in (dropped, interior, mapped)]
    assert errors[2] < 1e-5
    assert errors[2] < errors[1] < errors[0]
    assert mapped.form == "graph"
    assert mapped.handed is not None
    assert mapped.handed.exact
    norms = (net.a.norm1, net.b.norm1)
    constants = [n.bias - n.weight * n.running_mean / (n.running_var + n.eps).sqrt() for n in norms]
    alive = sum(int((row[gone] > 0).sum()) for row in constants)
    assert 0 < alive < 16
    assert f"Handed over: {alive} constants" in str(mapped)
    assert dropped.handed is None
    assert "Handed over" not in str(dropped)


def test_criterion_with_data_and_options(net: Net):
    data = [
        (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.arange(4) % 5) for i in range(3)
    ]
    seen = []

    class Watched(list):
        def __iter__(self):
            for item in super().__iter__():
                seen.append(1)
                yield item

    result = sec.prune(
        net, IMAGE, budget=sec.Budget(macs=0.6), criterion="apoz", options={"eps": 0.01}, data=Watched(data),
        score_batches=2, recalibrate=0,
    )  # fmt: skip
    assert len(seen) == 2
    assert result.after.macs <= 0.6 * result.before.macs
    with pytest.raises(sec.UnknownNameError, match="no option 'epps'.*did you mean 'eps'"):
        sec.prune(net, IMAGE, budget=sec.Budget(macs=0.6), criterion="apoz", options={"epps": 0.1}, data=data)


def test_reconstruction_takes_the_place_of_recalibration(net: Net):
    generator = torch.Generator().manual_seed(5)
    data = [(torch.randn(8, 3, 8, 8, generator=generator), torch.zeros(8)) for _ in range(4)]
    inputs = torch.cat([x for x, _ in data])
    expected = net(inputs).detach()

    def closeness(model: nn.Module) -> float:
        return -float((model(inputs).detach() - expected).square().mean())

    ask = {"budget": sec.Budget(macs=0.7), "criterion": "l2", "data": data, "evaluate": closeness}
    result = sec.prune(net, IMAGE, **ask, reconstruct=4)
    assert list(result.accuracy) == ["original", "cut", "reconstructed"]
    assert result.accuracy["reconstructed"] > 0.5 * result.accuracy["cut"]
    with pytest.raises(sec.InputError, match="Reconstruction needs data"):
        sec.prune(net, IMAGE, budget=sec.Budget(macs=0.5), reconstruct=2)


def test_bad_choices_are_refused_before_any_work(net: Net):
    with pytest.raises(sec.UnknownNameError, match="did you mean 'propagate'"):
        sec.prune(net, IMAGE, budget=sec.Budget(macs=0.5), bias="propagat")
    with pytest.raises(sec.InputError, match="needs data"):
        sec.prune(net, IMAGE, budget=sec.Budget(macs=0.5), bias="propagate_mean")
    with pytest.raises(sec.InputError, match="'taylor' needs data"):
        sec.prune(net, IMAGE, budget=sec.Budget(macs=0.5), criterion="taylor")
