"""Optimal brain damage: true changes of quadratic losses; every diagonal against plain derivatives of the module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sec
from secateurs.score.criterion import Context
from secateurs.score.curvature import fisher, gauss_newton, hutchinson, sampled_gauss_newton
from secateurs.score.per_sample import squared_gradients
from secateurs.score.samples import Samples
from secateurs.score.score import tensors_of
from secateurs.testing.networks import random_network, randomize

pytestmark = pytest.mark.medium

torch.set_num_threads(1)

D = torch.float64


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().flatten(1).sum(1).mean()


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def context_of(model: nn.Module, data: list, loss=squared, seed: int = 0) -> Context:
    groups = sec.couple(sec.capture(model, data[0][0][:1]))
    samples = Samples(model, groups.graph, data, loss=loss, seed=seed)
    return Context(groups, model, tensors_of(groups, model), torch.Generator(), samples, seed)


def obd(model: nn.Module, data: list, loss=squared, seed: int = 0, **options) -> dict[str, Tensor]:
    groups = sec.couple(sec.capture(model, data[0][0][:1]))
    return sec.score(groups, model, "obd", data=data, loss=loss, options=options, normalizer="none", seed=seed)


class Fixed(nn.Module):
    """`K` units, each with its own output and a constant behind it: a linear model."""

    def __init__(self, inputs: int, behind: list[float]) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, len(behind), bias=False)
        self.register_buffer("out", torch.diag(torch.tensor(behind)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(x), self.out)


def white(count: int, features: int) -> Tensor:
    """Inputs `[count, features]` whose features have mean square 1 and do not correlate."""
    return torch.linalg.qr(noise(1, count, features))[0] * count**0.5


def change_without(model: nn.Module, name: str, index: tuple, x: Tensor, y: Tensor) -> float:
    weight = model.get_parameter(name)
    with torch.no_grad():
        before = squared(model(x), y)
        kept = weight[index].clone()
        weight[index] = 0
        change = float(squared(model(x), y) - before)
        weight[index] = kept
    return change


DIAGONALS = ["fisher", "gauss_newton", "hutchinson"]


class TestQuadraticLoss:
    @pytest.mark.parametrize("diagonal", ["gauss_newton", "hutchinson"])
    def test_by_hand(self, diagonal: str):
        """The loss `(w - y)^2` has the second derivative 2: a weight of 0.5 costs 0.25; behind a 3 it is 18: 9."""
        model = Fixed(1, [1.0, 3.0]).double()
        with torch.no_grad():
            model.body.weight.copy_(torch.tensor([[0.5], [1.0]]))
        data = [(torch.ones(1, 1, dtype=D), torch.zeros(1, 2, dtype=D))]
        (row,) = obd(model, data, diagonal=diagonal, probes=1).values()
        assert row.tolist() == pytest.approx([0.25, 9])

    def test_fisher_by_hand(self):
        """Slopes `2 (w - y)` of two samples, 1 and 3: mean square 5, times half the square of 0.5."""
        model = Fixed(1, [1.0, 1.0]).double()
        nn.init.constant_(model.body.weight, 0.5)
        data = [(torch.ones(2, 1, dtype=D), torch.tensor([[0.0, 0.5], [-1.0, 0.5]], dtype=D))]
        (row,) = obd(model, data, diagonal="fisher").values()
        assert row.tolist() == pytest.approx([5 * 0.125, 0])

    def test_at_the_minimum_each_weight_costs_what_it_says(self):
        x, y = noise(3, 12, 4), noise(4, 12, 2)
        model = Fixed(4, [2.0, -3.0]).double()
        with torch.no_grad():
            model.body.weight.copy_(torch.linalg.lstsq(x, y).solution.T / torch.tensor([[2.0], [-3.0]]))
        h = gauss_newton(context_of(model, [(x[:5], y[:5]), (x[5:], y[5:])]), ["body.weight"])["body.weight"]
        saliency = h * model.body.weight.detach().square() / 2
        for unit in range(2):
            for place in range(4):
                change = change_without(model, "body.weight", (unit, place), x, y)
                assert float(saliency[unit, place]) == pytest.approx(change, abs=1e-10)

    @pytest.mark.parametrize("diagonal", ["gauss_newton", "hutchinson"])
    def test_with_a_diagonal_hessian_each_unit_costs_what_it_says(self, diagonal: str):
        x = white(9, 4)
        model = Fixed(4, [2.0, -3.0, 0.1]).double()
        y = model(x).detach()
        (row,) = obd(model, [(x, y)], diagonal=diagonal, probes=2).values()
        for unit in range(3):
            assert float(row[unit]) == pytest.approx(change_without(model, "body.weight", (unit,), x, y), abs=1e-10)

    def test_its_order_beats_that_of_magnitudes(self):
        """Large weights in front of small constants and the other way round, at the minimum."""
        x, behind = white(20, 3), [0.1, 0.5, 1.0, 2.0, 4.0]
        model = Fixed(3, behind).double()
        with torch.no_grad():
            model.body.weight.copy_(noise(2, 5, 3) * torch.tensor([[3.0], [2.0], [0.5], [0.7], [0.4]]))
        y = model(x).detach()
        (saliency,) = obd(model, [(x, y)], diagonal="gauss_newton").values()
        magnitude = model.body.weight.detach().square().sum(1)
        assert saliency.argsort().tolist() != magnitude.argsort().tolist()
        for count in range(1, 5):
            costs = [
                change_without(model, "body.weight", (order.argsort()[:count],), x, y)
                for order in (saliency, magnitude)
            ]
            assert costs[0] <= costs[1]
            assert count > 3 or costs[0] < costs[1]

    def test_a_direction_in_which_the_loss_falls_scores_zero(self):
        model = Fixed(2, [1.0, 1.0]).double()
        data = [(noise(0, 6, 2), torch.zeros(6, 2))]
        (row,) = obd(model, data, lambda out, y: (out.square() * torch.tensor([1.0, -1.0])).sum(1).mean(),
                     diagonal="hutchinson", probes=200).values()  # fmt: skip
        assert float(row[0]) > 0
        assert float(row[1]) == 0


def per_sample_oracle(model: nn.Module, x: Tensor, y: Tensor, name: str, loss=squared) -> Tensor:
    """The mean of squared gradients, one sample after the other, with plain autograd."""
    weight = model.get_parameter(name)
    each = [torch.autograd.grad(loss(model(x[n : n + 1]), y[n : n + 1]), weight)[0] for n in range(len(x))]
    return torch.stack(each).square().mean(0)


def kinds() -> dict[str, tuple[nn.Module, tuple[int, ...], list[str]]]:
    """Layers of every kind: `(model, shape of a sample, leaves)`."""
    plain = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
                          nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2), nn.ReLU(), nn.Flatten(),
                          nn.Linear(96, 5), nn.ReLU(), nn.Linear(5, 2))  # fmt: skip
    turned = nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1), nn.Tanh(), nn.Conv2d(4, 1, 2))
    line = nn.Sequential(nn.Conv1d(2, 4, 3), nn.GELU(), nn.ConvTranspose1d(4, 3, 2, groups=1), nn.Conv1d(3, 2, 1))
    solid = nn.Sequential(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Conv3d(3, 2, 2, padding="same"))
    return {
        "plain": (plain, (2, 8, 8), ["0.weight", "3.weight", "6.weight", "8.weight"]),
        "transposed": (turned, (2, 4, 4), ["0.weight", "2.weight"]),
        "line": (line, (2, 9), ["0.weight", "2.weight", "3.weight"]),
        "solid": (solid, (1, 4, 4, 4), ["0.weight"]),
        "padding by name": (solid, (1, 4, 4, 4), ["0.weight", "2.weight"]),
        "tied": (Tied(), (6, 3), ["body.weight", "head.weight"]),
        "samples second": (Turned(False), (4, 3), ["body.weight", "head.weight"]),
        "samples interleaved": (Turned(True), (4, 3), ["body.weight", "head.weight"]),
        "own way": (OwnWay(), (3,), ["weight"]),
    }


class Tied(nn.Module):
    """One layer twice, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(torch.tanh(self.body(x)))))


class Turned(nn.Module):
    """Tokens first, then samples, in two dimensions or in one."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        self.rows, self.body, self.head = rows, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        x = x.transpose(0, 1)
        x = self.head(torch.tanh(self.body(x.reshape(n * t, 3) if self.rows else x)))
        return x.view(t, n, 2).transpose(0, 1)


class OwnWay(nn.Module):
    """A weight that is read by other operators too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.zeros(4, 3)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(F.linear(x, self.weight / (1 + self.weight.abs()))))


class TestSquaredGradients:
    @pytest.mark.parametrize("kind", list(kinds()))
    def test_fisher_equals_plain_autograd_one_sample_at_a_time(self, kind: str):
        model, shape, leaves = kinds()[kind]
        randomize(model, torch.Generator().manual_seed(6))
        model = model.double().eval()
        x = noise(7, 5, *shape)
        y = noise(8, *model(x).shape)
        found = fisher(context_of(model, [(x[:2], y[:2]), (x[2:], y[2:])]), leaves)
        for name in leaves:
            assert torch.allclose(found[name], per_sample_oracle(model, x, y, name), rtol=1e-9, atol=1e-14), name

    @pytest.mark.parametrize("seed", [4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18])
    def test_one_run_equals_one_run_per_sample(self, seed: int):
        """Random networks with something to score. Where scoring finds no gradient, plain autograd must find none."""
        model, inputs = random_network(seed)
        model, inputs = model.double().eval(), tuple(x.double() if x.is_floating_point() else x for x in inputs)
        more = tuple(torch.cat([x, x.flip(-1) * 0.5 if x.is_floating_point() else x.flip(-1)]) for x in inputs)
        groups = sec.couple(sec.capture(model, inputs))
        targets = torch.zeros(len(more[0]))
        samples = Samples(model, groups.graph, [(more, targets)], loss=wavy)
        context = Context(groups, model, tensors_of(groups, model), torch.Generator(), samples)
        leaves = list(dict.fromkeys(m.leaf for group in groups.free for m in context.producers(group)))
        assert leaves
        (batch,) = list(context.batches())

        def totals(batch, state, program):
            with torch.enable_grad():
                yield batch.loss(state, program) * batch.size

        try:
            one, other = (squared_gradients(batch, leaves, totals, one_by_one=each) for each in (False, True))
        except sec.InputError:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                wavy(model(*more), targets).backward()
            return
        for name in leaves:
            scale = float(other[name].abs().max()) if other[name].numel() else 0.0
            assert torch.allclose(one[name], other[name], rtol=1e-7, atol=1e-9 * scale), name

    @pytest.mark.parametrize("diagonal", DIAGONALS)
    def test_never_negative_and_the_same_in_other_batches(self, diagonal: str):
        model, shape, _ = kinds()["plain"]
        randomize(model, torch.Generator().manual_seed(6))
        model = model.double().eval()
        x, y = noise(7, 6, *shape), noise(8, 6, 2)
        whole = obd(model, [(x, y)], diagonal=diagonal, probes=3)
        parts = obd(model, list(zip(x.split([1, 5]), y.split([1, 5]), strict=True)), diagonal=diagonal, probes=3)
        for name, row in whole.items():
            assert torch.allclose(row, parts[name], rtol=1e-9)
            assert bool((row >= 0).all())
            assert bool((row > 0).any())


def wavy(output, target):
    """A mean over samples of what a random network returns, each entry with a weight of its own."""
    from torch.utils import _pytree as pytree

    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    rows = [leaf.double().tanh().flatten(1) for leaf in leaves if leaf.dim() and len(leaf) == len(target)]
    return sum((row * torch.arange(1, row.shape[1] + 1).cos()).sum(1) for row in rows).mean()


def classifier(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Conv1d(2, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    randomize(model, torch.Generator().manual_seed(seed))
    return model.double().eval(), noise(1, 6, 2, 4), torch.tensor([0, 1, 2, 1, 0, 2])


class TestGaussNewton:
    def test_of_a_last_linear_layer_by_the_formula(self):
        model, x, y = classifier()
        p, features = model(x).softmax(1).detach(), model[:3](x).detach()
        expected = torch.einsum("ni,nj->ij", p * (1 - p), features.square()) / 6
        found = gauss_newton(context_of(model, [(x[:4], y[:4]), (x[4:], y[4:])], "cross_entropy"), ["3.weight"])
        assert torch.allclose(found["3.weight"], expected, rtol=1e-10)

    def test_equals_the_outputs_jacobian_around_the_curvature_of_the_loss(self):
        model, x, y = classifier()
        found = gauss_newton(context_of(model, [(x, y)], "cross_entropy"), ["0.weight"])["0.weight"]
        expected = torch.zeros_like(found)
        for n in range(6):
            p = model(x[n : n + 1]).softmax(1)[0].detach()
            slopes = torch.func.jacrev(
                lambda w, n=n: torch.func.functional_call(model, {"0.weight": w}, (x[n : n + 1],))[0]
            )(model[0].weight.detach())
            expected += torch.einsum("iabc,ij,jabc->abc", slopes, p.diag() - torch.outer(p, p), slopes) / 6
        assert torch.allclose(found, expected, rtol=1e-9)

    def test_labels_do_not_matter_for_cross_entropy(self):
        model, x, y = classifier()
        one = obd(model, [(x, y)], "cross_entropy", diagonal="gauss_newton")["0"]
        assert torch.allclose(one, obd(model, [(x, y.flip(0))], "cross_entropy", diagonal="gauss_newton")["0"])

    def test_drawn_labels_come_close_and_do_not_depend_on_batches(self):
        model, x, y = classifier()
        exact = gauss_newton(context_of(model, [(x, y)], "cross_entropy"), ["0.weight"])["0.weight"]
        context = context_of(model, [(x, y)], "cross_entropy", seed=5)
        drawn = sampled_gauss_newton(context, ["0.weight"], 600)["0.weight"]
        assert torch.allclose(drawn, exact, rtol=0.25)
        few = [
            obd(model, list(zip(x.split(size), y.split(size), strict=True)), "cross_entropy", seed=3,
                diagonal="gauss_newton", draws=2)["0"]
            for size in (6, 4, 1)
        ]  # fmt: skip
        assert torch.allclose(few[0], few[1], rtol=1e-9)
        assert torch.allclose(few[0], few[2], rtol=1e-9)

    def test_drawn_labels_of_several_positions(self):
        """Each position has a label of its own and the loss is the mean over them."""
        model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Tanh(), nn.Conv1d(4, 3, 1))
        randomize(model, torch.Generator().manual_seed(0))
        model, x, y = model.double(), noise(1, 2, 2, 3), torch.zeros(2, 3, dtype=torch.long)
        exact = gauss_newton(context_of(model, [(x, y)], "cross_entropy"), ["0.weight"])["0.weight"]
        drawn = sampled_gauss_newton(context_of(model, [(x, y)], "cross_entropy"), ["0.weight"], 600)["0.weight"]
        assert torch.allclose(drawn, exact, rtol=0.3)

    def test_outputs_that_are_not_one_row_per_sample(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
        data = [(noise(0, 4, 3), torch.zeros(4))]
        with pytest.raises(sec.InputError, match="one row per sample.*fisher"):
            obd(model.double(), data, lambda out, y: out.square().mean(), diagonal="gauss_newton")

    def test_drawn_labels_for_another_loss(self):
        model, x, _ = classifier()
        with pytest.raises(sec.InputError, match="cannot be computed"):
            obd(model, [(x, noise(0, 6, 3))], "mse", diagonal="gauss_newton", draws=1)


class TestHutchinson:
    def test_comes_close_to_the_diagonal_of_the_hessian(self):
        model, x, y = classifier()
        weight = model[0].weight.detach()

        def loss(w: Tensor) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(model, {"0.weight": w}, (x,)), y)

        exact = torch.autograd.functional.hessian(loss, weight).view(16, 16).diagonal().view(weight.shape)
        data = [(x[:4], y[:4]), (x[4:], y[4:])]
        found = hutchinson(context_of(model, data, "cross_entropy"), ["0.weight"], 500)["0.weight"]
        assert float((found - exact).abs().max()) < 0.2 * float(exact.abs().max())

    def test_follows_the_seed(self):
        model, x, y = classifier()
        first, again, other = (
            obd(model, [(x, y)], "cross_entropy", seed, diagonal="hutchinson", probes=2)["0"] for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)

    def test_a_loss_without_curvature_scores_zero(self):
        model = Fixed(2, [1.0, 1.0]).double()
        data = [(noise(0, 6, 2), torch.zeros(6, 2))]
        for diagonal in ("hutchinson", "gauss_newton"):
            (row,) = obd(model, data, lambda out, y: out.sum(1).mean(), diagonal=diagonal).values()
            assert row.tolist() == [0, 0]


@pytest.mark.parametrize("options", [{"probes": 0}, {"draws": -1}])
def test_numbers_that_make_no_sense(options: dict):
    model, x, y = classifier()
    with pytest.raises(sec.InputError, match="at least one probe"):
        obd(model, [(x, y)], "cross_entropy", **options)


def test_unknown_diagonal():
    model, x, y = classifier()
    with pytest.raises(sec.UnknownNameError, match="did you mean 'fisher'"):
        obd(model, [(x, y)], "cross_entropy", diagonal="fischer")


@pytest.mark.parametrize("diagonal", DIAGONALS)
def test_what_is_refused(diagonal: str):
    model, x, y = classifier()
    with pytest.raises(sec.InputError, match="not one finite number"):
        obd(model, [(x * float("nan"), y)], "cross_entropy", diagonal=diagonal)
    with pytest.raises(sec.InputError, match="needs labels"):
        groups = sec.couple(sec.capture(model, x[:1]))
        sec.score(groups, model, "obd", data=[x], options={"diagonal": diagonal})
