"""Taylor expansions of the loss: by hand, against its true changes, and against plain autograd on the module."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.capture.program import Programs
from secateurs.couple.sites import consumption_sites
from secateurs.testing.networks import random_network, randomize

torch.set_num_threads(1)

D = torch.float64


def total(output: Tensor, target: Tensor) -> Tensor:
    """The mean over samples of the sum of the outputs: linear, for any target."""
    return output.flatten(1).sum(1).mean()


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().flatten(1).sum(1).mean()


def scores(model: nn.Module, criterion: str, data: list, loss=total, **more) -> dict[str, Tensor]:
    first = data[0][0] if isinstance(data[0], (list, tuple)) else data[0]
    groups = sec.couple(sec.capture(model, first[:1]))
    return sec.score(groups, model, criterion, data=data, loss=loss, **{"normalizer": "none", **more})


def put(layer: nn.Module, weight, bias=None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=D).reshape(layer.weight.shape))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias, dtype=D))
    return layer


def maps() -> nn.Module:
    """One input row [1, 2] becomes the maps [1, 2] and [2, 4]; the loss has slopes [0.5, -0.1] and [1, 1] to them."""
    return nn.Sequential(
        put(nn.Conv1d(1, 2, 1, bias=False), [1.0, 2.0]), nn.ReLU(), nn.Flatten(),
        put(nn.Linear(4, 1, bias=False), [0.5, -0.1, 1.0, 1.0]),
    ).double()  # fmt: skip


ROW = (torch.tensor([[[1.0, 2.0]]], dtype=D), torch.zeros(1))


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def batches(seed: int, sizes: tuple[int, ...], shape: tuple[int, ...], out: tuple[int, ...]) -> list:
    x, y = noise(seed, sum(sizes), *shape), noise(seed + 1, sum(sizes), *out)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def network(seed: int = 3) -> nn.Module:
    """Convolution, batch norm with statistics, ReLU, pooling, convolution, a mean and a linear layer."""
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    randomize(model, torch.Generator().manual_seed(seed))
    return model.double().eval()


IMAGES = (2, 8, 8)


class TestActivations:
    def test_by_hand(self):
        (row,) = scores(maps(), "taylor", [ROW]).values()
        assert row.tolist() == pytest.approx([0.15, (2 + 4) / 2])

    def test_each_sample_counts_by_its_own_loss_and_magnitude(self):
        """The second sample's maps have the other sign: slopes cancel over the batch, magnitudes do not."""
        model = maps()
        model[1] = nn.Identity()
        data = [(torch.tensor([[[1.0, 2.0]], [[-1.0, -2.0]]], dtype=D), torch.zeros(2))]
        (row,) = scores(model, "taylor", data).values()
        assert row.tolist() == pytest.approx([0.15, 3])

    def test_default_normaliser_is_the_euclidean_norm_of_a_layer(self):
        (row,) = scores(maps(), "taylor", [ROW], normalizer=None).values()
        assert row.tolist() == pytest.approx([0.15 / math.hypot(0.15, 3), 3 / math.hypot(0.15, 3)])

    def test_is_the_true_change_of_a_loss_that_is_linear_in_the_map(self):
        model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.GELU(), nn.Conv2d(5, 3, 3)).double().eval()
        randomize(model, torch.Generator().manual_seed(2))
        (x, y) = batches(0, (1,), (2, 7, 7), (3, 3, 3))[0]
        (row,) = scores(model, "taylor", [(x, y)]).values()
        with torch.no_grad():
            before = total(model(x), y)
            for unit in range(5):
                kept = model[3].weight[:, unit].clone()
                model[3].weight[:, unit] = 0
                change = abs(float(total(model(x), y) - before))
                model[3].weight[:, unit] = kept
                assert float(row[unit]) * 25 == pytest.approx(change, rel=1e-10)

    def test_equals_hooks_on_the_module_one_sample_at_a_time(self):
        model, data = network(), batches(5, (4, 3), IMAGES, (3,))
        expected = {"0": torch.zeros(5, dtype=D), "4": torch.zeros(4, dtype=D)}
        for x, y in data:
            for n in range(len(x)):
                pooled = model[:4](x[n : n + 1]).detach().requires_grad_()
                mean = model[4:8](pooled)
                loss = squared(model[8](mean), y[n : n + 1])
                for name, z in (("0", pooled), ("4", mean)):
                    (g,) = torch.autograd.grad(loss, z, retain_graph=True)
                    expected[name] += (z * g)[0].detach().reshape(z.shape[1], -1).mean(1).abs() / 7
        found = scores(model, "taylor", data, squared)
        for name, row in found.items():
            assert torch.allclose(row, expected[name], rtol=1e-10), name

    def test_a_row_for_each_place_where_a_stream_is_read(self):
        class Stream(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.branch, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                x = self.stem(x)
                return self.head(x + torch.relu(self.branch(x)))

        model = Stream().double()
        (x, y) = data = batches(1, (6,), (3,), (2,))[0]
        stem = model.stem(x)
        first = stem.detach().requires_grad_()
        last = (stem + torch.relu(model.branch(first))).detach().requires_grad_()
        ((g_last),) = torch.autograd.grad(squared(model.head(last), y) * 6, last)
        (g_first,) = torch.autograd.grad(torch.relu(model.branch(first)), first, g_last)
        rows = torch.stack([(first * g_first).abs().mean(0), (last * g_last).abs().mean(0)]).detach()
        for equalization, expected in (("sum", rows.sum(0)), ("max", rows.amax(0)), ("min", rows.amin(0))):
            (row,) = scores(model, "taylor", [data], squared, equalization=equalization).values()
            assert torch.allclose(row, expected, rtol=1e-10)

    @pytest.mark.parametrize("how", ["first", "second", "rows", "interleaved"])
    def test_wherever_the_samples_lie(self, how: str):
        class Tokens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                n, t = x.shape[:2]
                if how in ("second", "interleaved"):
                    x = x.transpose(0, 1)
                if how in ("rows", "interleaved"):
                    x = x.reshape(n * t, 3)
                x = self.head(torch.tanh(self.body(x)))
                if how == "rows":
                    return x.view(n, t, 2)
                return x if how == "first" else x.view(t, n, 2).transpose(0, 1)

        model = Tokens().double()
        randomize(model, torch.Generator().manual_seed(4))
        (x, y) = batches(7, (6,), (5, 3), (5, 2))[0]
        z = torch.tanh(model.body(x)).detach().requires_grad_()
        (g,) = torch.autograd.grad(squared(model.head(z), y) * 6, z)
        (row,) = scores(model, "taylor", [(x, y)], squared).values()
        assert torch.allclose(row, (z * g).mean(1).abs().mean(0).detach(), rtol=1e-10)

    def test_samples_that_are_mixed_are_refused(self):
        class Mixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                x = self.body(x)
                return self.head(x - x.mean(0, keepdim=True))

        with pytest.raises(sec.InputError, match="cannot be told apart.*taylor_gates"):
            scores(Mixed().double(), "taylor", batches(0, (4,), (3,), (2,)), squared)

    def test_what_is_overwritten_after_it_was_read(self):
        """The same network twice: with an activation that writes over what a consumer has read, and without."""

        class Over(nn.Module):
            def __init__(self, inplace: bool) -> None:
                super().__init__()
                self.stem, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
                self.act = nn.ReLU(inplace)

            def forward(self, x: Tensor) -> Tensor:
                x = self.stem(x)
                early = self.a(x)
                return early + self.b(self.act(x))

        one, other = Over(True).double(), Over(False).double()
        other.load_state_dict(one.state_dict())
        data = batches(3, (5,), (3,), (2,))
        for criterion in ("taylor", "taylor_gates"):
            for a, b in zip(*(scores(m, criterion, data, squared).values() for m in (one, other)), strict=True):
                assert torch.equal(a, b)
                assert bool((a > 0).any())

    def test_cost_is_taken_off_normalised_scores(self):
        """6 x 6 positions times 3 x 3 x 2 weights and two FLOPs each: 1,296 per unit, twice in two groups of units."""
        model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 1)).double()
        data = batches(5, (4,), IMAGES, (3, 6, 6))
        (plain,) = scores(model, "taylor", data, squared, normalizer=None).values()
        (charged,) = scores(model, "taylor", data, squared, normalizer=None, options={"flops_weight": 100.0}).values()
        assert torch.allclose(plain - charged, torch.full((5,), 100 * 1296e-6, dtype=D), rtol=1e-9)

    def test_cost_of_transposed_and_grouped_convolutions_and_linear_layers(self):
        from secateurs.score.criterion import Context
        from secateurs.score.flops import unit_flops
        from secateurs.score.score import tensors_of

        model = nn.Sequential(
            nn.Conv2d(2, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.ReLU(),
            nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 7), nn.ReLU(), nn.Linear(7, 2),
        )  # fmt: skip
        groups = sec.couple(sec.capture(model, torch.zeros(1, 2, 4, 4)))
        context = Context(groups, model, tensors_of(groups, model), torch.Generator())
        cost = {group.name: unit_flops(group, context) * 1e6 for group in groups.free}
        macs = sec.count(model, torch.zeros(1, 2, 4, 4)).by_module()
        size = {group.name: group.size for group in groups.free}
        for name in ("0", "2", "4", "7"):
            assert cost[name] == pytest.approx(2 * macs[name] / size[name])
        assert cost["0"] == 2 * 16 * 2
        assert cost["7"] == 2 * 8 * 36


def gate_oracle(model, groups, inputs, target, loss):
    """Central differences of the loss when the sites of one tap are scaled by 1 +- h, `{group: [taps, size]}`."""
    programs = Programs(model, groups.graph)
    program, given = programs.program(inputs)
    found = {}
    for name, sites in consumption_sites(groups).items():
        taps: dict = {}
        for site in (site for site in sites if not site.inside):
            taps.setdefault((site.value, site.dim, site.units.tobytes()), []).append(site)
        rows = []
        for mine in taps.values():
            slopes = []
            for unit in range(groups[name].size):
                ends = []
                for h in (1e-5, -1e-5):

                    def scaled(value, tensor, site=mine[0], unit=unit, h=h):
                        if value != site.value:
                            return tensor
                        shape = [1] * tensor.dim()
                        shape[site.dim] = -1
                        return tensor * torch.from_numpy(np.where(site.units == unit, 1 + h, 1.0)).view(shape)

                    with torch.no_grad():
                        reads = {site.node: scaled for site in mine}
                        state = program.run(program.begin(given), reads=reads)
                        ends.append(float(loss(program.output(state), target)))
                slopes.append((ends[0] - ends[1]) / 2e-5)
            rows.append(torch.tensor(slopes, dtype=D))
        if rows:
            found[name] = torch.stack(rows)
    return found


def smooth(output, target):
    """A loss of whatever a random network returns."""
    from torch.utils import _pytree as pytree

    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return sum(
        (leaf.double().tanh() * torch.arange(1, leaf.numel() + 1).view(leaf.shape).cos()).sum() for leaf in leaves
    )


class TestGates:
    def test_by_hand(self):
        (row,) = scores(maps(), "taylor_gates", [ROW]).values()
        assert row.tolist() == pytest.approx([0.3**2, 6.0**2])

    @pytest.mark.parametrize("behind", [nn.Identity(), nn.ReLU()])
    def test_behind_a_batch_norm_it_is_what_its_scale_and_shift_say(self, behind: nn.Module):
        """A ReLU changes nothing: it does not see the scale of a gate."""
        model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), behind, nn.Conv2d(5, 3, 3)).double().eval()
        randomize(model, torch.Generator().manual_seed(2))
        data = batches(0, (3, 2), IMAGES, (3, 4, 4))
        expected = torch.zeros(5, dtype=D)
        for x, y in data:
            norm = model[1]
            slopes = torch.autograd.grad(squared(model(x), y), (norm.weight, norm.bias))
            expected += (norm.weight * slopes[0] + norm.bias * slopes[1]).detach().square() / 2
        (row,) = scores(model, "taylor_gates", data, squared).values()
        assert torch.allclose(row, expected, rtol=1e-10)

    def test_mini_batches_are_averaged_or_run_together(self):
        model, data = network(), batches(5, (2, 3, 4), IMAGES, (3,))
        each = [scores(model, "taylor_gates", [batch], squared) for batch in data]
        mean = scores(model, "taylor_gates", data, squared)
        running = scores(model, "taylor_gates", data, squared, options={"momentum": 0.9})
        for name in mean:
            a, b, c = (row[name] for row in each)
            assert torch.allclose(mean[name], (a + b + c) / 3, rtol=1e-12)
            assert torch.allclose(running[name], 0.9 * (0.9 * a + 0.1 * b) + 0.1 * c, rtol=1e-12)

    @pytest.mark.parametrize("seed", range(12))
    def test_equals_differences_of_the_loss_of_random_networks(self, seed: int):
        model, inputs = random_network(seed)
        model, inputs = model.double().eval(), tuple(x.double() if x.is_floating_point() else x for x in inputs)
        groups = sec.couple(sec.capture(model, inputs))
        expected = gate_oracle(model, groups, inputs, None, smooth)
        found = sec.score(groups, model, "taylor_gates", data=[(inputs, torch.zeros(1))], loss=smooth,
                          normalizer="none", equalization="sum")  # fmt: skip
        for name, rows in expected.items():
            worth = rows.square().sum(0)
            scale = max(1e-6, float(worth.max()))
            assert float((found[name] - worth).abs().max()) <= 1e-4 * scale, name


def plain_slopes(model, x, y, loss, names):
    parameters = dict(model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss(model(x), y), [parameters[n] for n in names]), strict=True))


class Fixed(nn.Module):
    """Two units, each with its own output and a constant weight behind it: a loss quadratic in all parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2, bias=False)
        self.register_buffer("out", torch.tensor([[2.0, 0.0], [0.0, -3.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.body(x), self.out)


class TestWeights:
    def test_by_hand(self):
        """Slopes [0.5 * 1 - 0.1 * 2] = 0.3 to a weight of 1, and 1 + 2 = 3 to a weight of 2."""
        (row,) = scores(maps(), "taylor_weights", [ROW]).values()
        assert row.tolist() == pytest.approx([0.3**2, 6.0**2])

    def test_sum_of_a_filter_and_sum_of_squares(self):
        model = nn.Sequential(put(nn.Linear(2, 2, bias=False), [[3.0, -1.0], [0.5, 0.5]]),
                              put(nn.Linear(2, 1, bias=False), [[1.0, 2.0]])).double()  # fmt: skip
        data = [(torch.tensor([[1.0, 2.0]], dtype=D), torch.zeros(1))]  # slopes [1, 2] and [2, 4]
        (filters,) = scores(model, "taylor_weights", data).values()
        (squares,) = scores(model, "taylor_weights", data, options={"form": "squares"}).values()
        assert filters.tolist() == pytest.approx([(3 - 2) ** 2, (1 + 2) ** 2])
        assert squares.tolist() == pytest.approx([3**2 + 2**2, 1 + 2**2])

    def test_equals_plain_autograd_per_mini_batch(self):
        model, data = network(), batches(5, (4, 3), IMAGES, (3,))
        names = {"0": "0.weight", "4": "4.weight"}
        for form in ("filter", "squares"):
            expected = dict.fromkeys(names, 0)
            for x, y in data:
                slopes = plain_slopes(model, x, y, squared, list(names.values()))
                for name, leaf in names.items():
                    parts = (slopes[leaf] * model.get_parameter(leaf)).detach().flatten(1)
                    expected[name] += (parts.sum(1).square() if form == "filter" else parts.square().sum(1)) / 2
            for name, row in scores(model, "taylor_weights", data, squared, options={"form": form}).items():
                assert torch.allclose(row, expected[name], rtol=1e-10)

    def test_second_order_is_the_true_change_of_a_quadratic_loss(self):
        model = Fixed().double()
        ((x, y),) = batches(2, (7,), (3,), (2,))
        (row,) = scores(model, "taylor_weights", [(x, y)], squared, options={"order": 2}).values()
        with torch.no_grad():
            before = squared(model(x), y)
            for unit in range(2):
                kept = model.body.weight[unit].clone()
                model.body.weight[unit] = 0
                change = float(squared(model(x), y) - before)
                model.body.weight[unit] = kept
                assert float(row[unit]) == pytest.approx(change**2, rel=1e-10)

    def test_second_order_equals_the_whole_hessian(self):
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        ((x, y),) = batches(2, (5,), (2,), (2,))
        names, given = zip(*model.named_parameters(), strict=True)
        flat = torch.cat([p.detach().flatten() for p in given])

        def loss(vector: Tensor) -> Tensor:
            parts = vector.split([p.numel() for p in given])
            tensors = {n: part.view(p.shape) for n, part, p in zip(names, parts, given, strict=True)}
            return squared(torch.func.functional_call(model, tensors, (x,)), y)

        g, h = torch.autograd.functional.jacobian(loss, flat), torch.autograd.functional.hessian(loss, flat)
        change = (g * flat - flat * (h @ flat) / 2)[:6].view(3, 2)
        for form, expected in (("filter", change.sum(1).square()), ("squares", change.square().sum(1))):
            (row,) = scores(model, "taylor_weights", [(x, y)], squared, options={"order": 2, "form": form}).values()
            assert torch.allclose(row, expected, rtol=1e-10)

    @pytest.mark.parametrize("options", [{"order": 3}, {"order": 0}, {"momentum": 1.0}, {"momentum": -0.1}])
    def test_options_that_make_no_sense(self, options: dict):
        with pytest.raises(sec.InputError, match="given"):
            scores(maps(), "taylor_weights", [ROW], options=options)

    def test_unknown_form(self):
        with pytest.raises(sec.UnknownNameError, match="did you mean 'filter'"):
            scores(maps(), "taylor_weights", [ROW], options={"form": "filters"})


@pytest.mark.parametrize("criterion", ["taylor", "taylor_gates", "taylor_weights"])
class TestRefusals:
    def test_a_loss_that_is_not_a_number(self, criterion: str):
        data = [ROW, (torch.full((1, 1, 2), float("nan"), dtype=D), torch.zeros(1))]
        with pytest.raises(sec.InputError, match="not one finite number.*batch 1.*nan"):
            scores(maps(), criterion, data)

    def test_no_labels(self, criterion: str):
        with pytest.raises(sec.InputError, match="needs labels"):
            scores(maps(), criterion, [ROW[0]])

    def test_a_loss_without_a_gradient(self, criterion: str):
        with pytest.raises(sec.InputError, match="no gradient"):
            scores(maps(), criterion, [ROW], lambda output, target: (output > 0).double().mean())

    def test_a_model_that_cannot_be_differentiated(self, criterion: str):
        class Over(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 4), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                x = torch.tanh(self.body(torch.relu(self.first(x))))
                return self.head(x.mul_(2))

        with pytest.raises(sec.InputError, match="writes over activations"):
            scores(Over().double(), criterion, batches(0, (3,), (3,), (2,)), squared)

    def test_a_layer_that_the_loss_does_not_see_scores_zero(self, criterion: str):
        class Heads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.one, self.two = (nn.Linear(3, n) for n in (4, 5, 2, 2))
                self.one, self.two = nn.Linear(4, 2), nn.Linear(5, 2)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return self.one(self.a(x)), self.two(self.b(x))

        found = scores(Heads().double(), criterion, batches(0, (3,), (3,), (2,)), lambda out, y: squared(out[0], y))
        assert found["b"].tolist() == [0] * 5
        assert bool((found["a"] > 0).all())
