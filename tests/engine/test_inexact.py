"""Where removing a channel changes more than its own contribution, the group says so.

The oracle knows nothing of groups or of statistics over kept indices: it is the user's network with the input of the
layer that reads the removed channels multiplied by 0 there, by a hook. Where the cut network differs from that, the
group must be marked inexact, with the operator and the user's line, and so must the plan, the proof and the report.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import secateurs as sec
from secateurs.report.tables import proof_sentence
from secateurs.testing.networks import randomize

torch.set_num_threads(1)

fixed = settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))


class Weighted(nn.Module):
    """A convolution or linear layer whose weight goes through a function first."""

    def __init__(self, change: Callable[[Tensor], Tensor], channels: int, linear: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, channels) if linear else torch.empty(6, channels, 3, 3))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        weight = self.change(self.weight)
        return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, padding=1)


class Compared(nn.Module):
    """Rows of the weight compared with the input, as in prototype and cosine classifiers."""

    def __init__(self, measure: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 8))
        self.measure = measure

    def forward(self, x: Tensor) -> Tensor:
        return self.measure(x, self.weight)


class SumGate(nn.Module):
    """Scales by a sum over channels: a layer that reads all of them, each with weight one."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.sum(1, keepdim=True))


class Net(nn.Module):
    """A producer of 8 channels, something between, a reader of them, a head."""

    def __init__(
        self, reader: nn.Module, between: Callable[[Tensor], Tensor] = torch.tanh, linear: bool = False
    ) -> None:
        super().__init__()
        self.a = nn.Linear(5, 8) if linear else nn.Conv2d(3, 8, 3, padding=1)
        self.b = reader
        self.head = nn.Linear(6, 3)
        self.between = between
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.between(torch.sigmoid(self.a(x))))
        return self.head(torch.tanh(y if self.linear else y.mean((2, 3))))

    def example(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn((2, 5) if self.linear else (2, 3, 6, 6), generator=generator, dtype=torch.float64)


def judge(net: Net, seed: int = 0, *, weights: bool = True) -> tuple[float, bool]:
    """Cut a random part of the producer. The difference from the masked original; whether it is declared exact.

    Checks that group, plan, proof and report agree with each other. A frozen producer gives (0, True).
    """
    if weights:
        randomize(net, torch.Generator().manual_seed(seed))
    net, x = net.double().eval(), net.example()
    groups = sec.couple(graph := sec.capture(net, (x,)))
    mine = next(g for g in groups if any(m.leaf == "a.weight" and m.dim == 0 for m in g.members))
    if mine.frozen is not None:
        assert mine.frozen
        return 0.0, True
    chance = random.Random(seed)
    keep = sorted(chance.sample(range(mine.size), max(1, mine.size // 2)))
    plan = sec.plan(graph, groups, keep={mine.name: keep})
    result = sec.cut_detailed(net, plan, (x,))
    assert result.proof.exact == mine.exact
    said = proof_sentence(vars(result.proof))
    assert ("over the kept ones" in said) == (not mine.exact)
    why = next(item.why for item in plan.groups if item.name == mine.name)
    if not mine.exact:
        assert re.match(r"`\w+`.* at .*:\d+", mine.inexact_because)
        assert mine.inexact_because in why and mine.inexact_because in str(plan) and mine.inexact_because in str(groups)
    gone = list(plan.removed["a.weight"][0])
    wanted, got = masked(net, gone, x), result.model(x).detach()
    return float((wanted - got).abs().max() / wanted.abs().max()), mine.exact


def masked(net: Net, gone: list[int], x: Tensor) -> Tensor:
    """The original, with what its readers read at `gone` set to zero by hooks."""

    def silence(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y = args[0].clone()
        y[:, gone] = 0
        return (y, *args[1:])

    hooks = [m.register_forward_pre_hook(silence) for m in (net.b, net.between) if isinstance(m, nn.Module)]
    try:
        return net(x).detach()
    finally:
        for hook in hooks:
            hook.remove()


STATISTICS = {
    "mean": lambda x, d: x.mean(d, keepdim=True),
    "std": lambda x, d: x.std(d, keepdim=True, correction=0),
    "var": lambda x, d: x.var(d, keepdim=True, correction=0),
    "std_mean": lambda x, d: sum(torch.std_mean(x, d, keepdim=True, correction=0)),
    "norm": lambda x, d: torch.linalg.vector_norm(x, dim=d, keepdim=True),
    "vector_norm": lambda x, d: torch.linalg.vector_norm(x, 3, dim=d, keepdim=True),
    "amax": lambda x, d: x.amax(d, keepdim=True),
    "logsumexp": lambda x, d: x.logsumexp(d, keepdim=True),
    "squares": lambda x, d: (x * x).sum(d, keepdim=True).sqrt(),
    "power": lambda x, d: torch.rsqrt(x.pow(2).sum(d, keepdim=True) + 1e-3),
    "absolute": lambda x, d: x.abs().sum(d, keepdim=True),
    "softmax": lambda x, d: x.softmax(d[0]),
}
USES = {"divide": lambda x, s: x / (s.abs() + 1), "subtract": lambda x, s: x - s, "scale": lambda x, s: x * s.abs()}


@pytest.mark.medium
@fixed
@given(
    st.sampled_from(sorted(STATISTICS)),
    st.sampled_from(sorted(USES)),
    st.sets(st.integers(0, 3), min_size=1),
    st.sampled_from(["weight", "map"]),
    st.integers(0, 99),
)
def test_any_statistic_over_any_axes_is_exact_or_declared(statistic, use, dims, of, seed):
    """Statistics of a weight, and of what the layer before gives, over a random set of axes."""

    def change(x: Tensor) -> Tensor:
        return USES[use](x, STATISTICS[statistic](x, sorted(dims)))

    plain = nn.Conv2d(8, 6, 3, padding=1)
    net = Net(Weighted(change, 8, False)) if of == "weight" else Net(plain, change)
    difference, exact = judge(net, seed)
    assert not exact or difference < 1e-5


def conv(**options) -> nn.Module:
    return nn.Conv2d(8, 6, 3, padding=1, **options)


def old(norm, layer: nn.Module, **options) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(layer, **options)


INEXACT = {
    "weight_norm, rows": lambda: Net(parametrizations.weight_norm(conv(), dim=0)),
    "weight_norm, taps": lambda: Net(parametrizations.weight_norm(conv(), dim=2)),
    "weight_norm, whole": lambda: Net(parametrizations.weight_norm(conv(), dim=None)),
    "weight_norm, linear": lambda: Net(parametrizations.weight_norm(nn.Linear(8, 6)), linear=True),
    "weight_norm, old": lambda: Net(old(weight_norm, conv())),
    "weight_norm, old, taps": lambda: Net(old(weight_norm, conv(), dim=2)),
    "weight_norm, transposed": lambda: Net(parametrizations.weight_norm(nn.ConvTranspose2d(8, 6, 3, padding=1), dim=1)),
    "spectral_norm": lambda: Net(parametrizations.spectral_norm(conv())),
    "spectral_norm, old": lambda: Net(old(spectral_norm, conv())),
    "standardised by batch norm": lambda: Net(
        Weighted(lambda w: F.batch_norm(w.reshape(1, 6, -1), None, None, training=True).view_as(w), 8, False)
    ),
    "normalize": lambda: Net(Weighted(lambda w: F.normalize(w.flatten(1)).view_as(w), 8, False)),
    "matrix norm": lambda: Net(Weighted(lambda w: w / torch.linalg.matrix_norm(w), 8, True), linear=True),
    "linalg norm": lambda: Net(Weighted(lambda w: w / torch.linalg.norm(w), 8, True), linear=True),
    "cosine classifier": lambda: Net(Compared(lambda x, w: F.linear(F.normalize(x), F.normalize(w))), linear=True),
    "cosine_similarity": lambda: Net(
        Compared(lambda x, w: F.cosine_similarity(x.unsqueeze(1), w.unsqueeze(0), dim=-1)), linear=True
    ),
    "pairwise_distance": lambda: Net(
        Compared(lambda x, w: F.pairwise_distance(x.unsqueeze(1), w.unsqueeze(0))), linear=True
    ),
    "cdist": lambda: Net(Compared(torch.cdist), linear=True),
    "squared distance": lambda: Net(Compared(lambda x, w: (x.unsqueeze(1) - w).pow(2).sum(-1)), linear=True),
    "layer_norm": lambda: Net(nn.Linear(8, 6), lambda x: F.layer_norm(x, x.shape[1:]), linear=True),
    "normalized activations": lambda: Net(conv(), lambda x: F.normalize(x, dim=1)),
}
EXACT = {
    "weight_norm, columns": lambda: Net(parametrizations.weight_norm(conv(), dim=1)),
    "weight_norm, transposed": lambda: Net(parametrizations.weight_norm(nn.ConvTranspose2d(8, 6, 3, padding=1), dim=0)),
    "per-kernel norm": lambda: Net(Weighted(F.instance_norm, 8, False)),
    "group norm of one channel": lambda: Net(conv(), lambda x: F.group_norm(x, 8)),
    "space": lambda: Net(conv(), lambda x: x / x.norm(dim=(2, 3), keepdim=True)),
    "a sum that reads the channels": lambda: Net(conv(), SumGate()),
    "plain": lambda: Net(conv()),
}


def spectral(name: str) -> bool:
    """Their buffers must fit their weight, so they keep the weights they come with."""
    return name.startswith("spectral")


@pytest.mark.parametrize("name", INEXACT)
def test_a_layer_that_rescales_what_stays_is_declared(name):
    torch.manual_seed(0)
    difference, exact = judge(INEXACT[name](), weights=not spectral(name))
    assert difference > 1e-5  # otherwise the case shows nothing
    assert not exact


@pytest.mark.parametrize("name", EXACT)
def test_a_layer_that_leaves_the_rest_alone_is_exact(name):
    difference, exact = judge(EXACT[name]())
    assert exact
    assert difference < 1e-12
