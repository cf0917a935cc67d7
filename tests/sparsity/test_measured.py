"""Importances that look at data, against naive loops over samples and finite differences, and against `sec.score`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import secateurs as sec
from secateurs.base.errors import InputError, TrainError, UnknownNameError
from secateurs.score import CRITERIA
from secateurs.sparsity import IMPORTANCES, GroupedWeight, Obd, layer_weights, masks, parse_pattern
from secateurs.sparsity.importance import UNIT_ONLY
from secateurs.sparsity.measured import Evidence, scores_of
from secateurs.testing.chain import check_untouched, snapshot

D = torch.float64
Batch = tuple[Tensor, Tensor]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(3 * 9, 5),
    ).double()  # fmt: skip


def images(*sizes: int, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 2, 6, 6, generator=generator, dtype=D)
    y = torch.randint(0, 5, (sum(sizes),), generator=generator)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def scores(
    model: nn.Module, importance: Any, data: Any, pattern: str = "weight", *, loss: Any = "cross_entropy",
    batches: int | None = None, seed: int = 0, **options: Any,
) -> dict[str, Tensor]:  # fmt: skip
    form = parse_pattern(pattern)
    weights = {
        name: GroupedWeight(name, item.tensor.double().flatten(), form.groups(tuple(item.tensor.shape), item.layout))
        for name, item in layer_weights(model).items()
    }
    evidence = Evidence(model, data, loss, batches, seed)
    return scores_of(weights, importance, options=options, evidence=evidence)


def slopes(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[..., Tensor] = cross_entropy) -> dict[str, Tensor]:
    """The gradient of the mean loss in eval mode, plainly."""
    twin = copy.deepcopy(model).eval()
    loss(twin(x), y).backward()
    return {name: twin.get_parameter(name).grad for name in layer_weights(model)}  # type: ignore[misc]


def one_by_one(model: nn.Module, data: list[Batch]) -> list[dict[str, Tensor]]:
    return [slopes(model, x[n : n + 1], y[n : n + 1]) for x, y in data for n in range(len(x))]


def mean(items: list[Tensor]) -> Tensor:
    return torch.stack(items).mean(0)


def grouped(numbers: Tensor, ids: Tensor) -> Tensor:
    """The sum over each group, by a loop."""
    return torch.stack([numbers[ids == group].sum() for group in range(int(ids.max()) + 1)])


def ids_of(model: nn.Module, name: str, pattern: str) -> Tensor:
    item = layer_weights(model)[name]
    return parse_pattern(pattern).groups(tuple(item.tensor.shape), item.layout).ids


@pytest.mark.parametrize("pattern", ["weight", "rows(2)", "filter"])
def test_obd_by_fisher_is_half_the_mean_square_of_slopes_times_weights(pattern: str) -> None:
    model, data = network(), images(3, 2)
    each = one_by_one(model, data)
    for name, found in scores(model, "obd", data, pattern).items():
        weight = model.get_parameter(name).detach()
        expected = grouped(mean([item[name].square() for item in each]) * weight.square() / 2,
                           ids_of(model, name, pattern))  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-16)


def test_obd_by_gauss_newton_is_that_of_the_jacobian() -> None:
    model, data = network(), images(2, 1)
    found = scores(model, "obd", data, diagonal="gauss_newton")
    twin = copy.deepcopy(model).eval()
    total = {name: torch.zeros_like(twin.get_parameter(name)) for name in found}
    for x, _ in data:
        for row in x:
            output = twin(row[None])[0]
            p = output.detach().softmax(0)
            curvature = torch.diag(p) - torch.outer(p, p)
            for name in found:
                jacobian = torch.stack(
                    [torch.autograd.grad(entry, twin.get_parameter(name), retain_graph=True)[0] for entry in output]
                ).flatten(1)
                total[name] += (jacobian * (curvature @ jacobian)).sum(0).reshape(total[name].shape) / 3
    for name, score in found.items():
        expected = total[name] * twin.get_parameter(name).detach().square() / 2
        torch.testing.assert_close(score, expected.flatten(), rtol=1e-8, atol=1e-14)


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(1).mean()


@pytest.mark.parametrize("diagonal", ["gauss_newton", "hutchinson"])
def test_with_a_diagonal_hessian_obd_is_what_the_loss_rises_by(diagonal: str) -> None:
    """Rows of one entry each make the Hessian of a linear layer diagonal, and the layer's own answers the minimum."""
    x = torch.diag(torch.tensor([0.3, 2.0, 1.0, 5.0], dtype=D))
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    y = model(x).detach()
    found = scores(model, "obd", [(x, y)], "rows(2)", loss=squared, diagonal=diagonal, probes=1)["weight"]
    ids = ids_of(model, "weight", "rows(2)")
    for group, score in enumerate(found.tolist()):
        without = torch.where(ids == group, 0.0, model.weight.detach())
        assert float(squared(x @ without.T, y)) == pytest.approx(score, abs=1e-12)
    mask = masks(
        model, 0.5, importance="obd", pattern="rows(2)", data=[(x, y)], loss=squared, options={"diagonal": diagonal}
    )["weight"]
    assert torch.equal(mask, torch.isin(ids, found.argsort()[4:]))


def test_curvature_of_hutchinson_is_that_of_finite_differences() -> None:
    """The mean over many probes, on a network small enough to move every weight."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 3, dtype=D), torch.arange(6) % 3
    found = scores(model, "obd", [(x, y)], diagonal="hutchinson", probes=800)
    exact = {name: torch.zeros(score.numel(), dtype=D) for name, score in found.items()}
    with torch.no_grad():
        for name, numbers in exact.items():
            flat = model.get_parameter(name).flatten()
            for place in range(flat.numel()):
                values = []
                for move in (1e-4, 0.0, -1e-4):
                    flat[place] += move
                    values.append(float(cross_entropy(model(x), y)))
                    flat[place] -= move
                curved = (values[0] - 2 * values[1] + values[2]) / 1e-8
                numbers[place] = max(0.0, curved * float(flat[place]) ** 2 / 2)
    one, other = torch.cat(list(found.values())), torch.cat(list(exact.values()))
    assert float((one - other).abs().max()) < 0.1 * float(other.max())
    assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.98


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "group": lambda change, ids: grouped(change, ids).square(),
    "absolute": lambda change, ids: grouped(change, ids).abs(),
    "squares": lambda change, ids: grouped(change.square(), ids),
}


@pytest.mark.parametrize("pattern", ["weight", "rows(2)"])
@pytest.mark.parametrize("form", FORMULAS)
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_taylor_weights_are_the_formula(form: str, per: str, pattern: str) -> None:
    model, data = network(), images(3, 2)
    each = one_by_one(model, data) if per == "sample" else [slopes(model, x, y) for x, y in data]
    for name, found in scores(model, "taylor_weights", data, pattern, form=form, per=per).items():
        weight, ids = model.get_parameter(name).detach(), ids_of(model, name, pattern)
        expected = mean([FORMULAS[form](item[name] * weight, ids) for item in each])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-16)


def test_of_samples_the_split_into_batches_does_not_matter() -> None:
    model = network()
    for importance, options in (
        ("taylor_weights", {"per": "sample", "form": "absolute"}), ("taylor_weights", {"per": "sample", "order": 2}),
        ("obd", {}), ("taylor", {}),
    ):  # fmt: skip
        one = scores(model, importance, images(6), "rows(2)", **options)
        other = scores(model, importance, images(1, 3, 2), "rows(2)", **options)
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-16)


def test_taylor_with_data_is_the_slope_of_the_mean_loss() -> None:
    model, data = network(), images(4, 1, 2)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    plainly = slopes(model, x, y)
    for name, found in scores(model, "taylor", data, "rows(2)").items():
        expected = grouped(plainly[name] * model.get_parameter(name).detach(), ids_of(model, name, "rows(2)")).abs()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-16)
    own = masks(model, 0.6, importance=lambda weight: weight.total(weight.values * weight.gradient).abs(), data=data)
    assert all(torch.equal(mask, own[name]) for name, mask in masks(model, 0.6, importance="taylor", data=data).items())
    first = masks(model, 0.6, importance="taylor", data=data, batches=1)
    assert all(
        torch.equal(mask, first[name])
        for name, mask in masks(model, 0.6, importance="taylor", gradients=slopes(model, *data[0])).items()
    )


@pytest.mark.parametrize(
    ("criterion", "of_units", "of_weights"),
    [
        ("obd", {"diagonal": "fisher"}, {"diagonal": "fisher"}),
        ("obd", {"diagonal": "gauss_newton"}, {"diagonal": "gauss_newton"}),
        ("obd", {"diagonal": "hutchinson", "probes": 3}, {"diagonal": "hutchinson", "probes": 3}),
        ("obd", {"diagonal": "gauss_newton", "draws": 2}, {"diagonal": "gauss_newton", "draws": 2}),
        ("taylor_weights", {}, {}),
        ("taylor_weights", {"form": "squares"}, {"form": "squares"}),
        ("taylor_weights", {"order": 2, "momentum": 0.9}, {"order": 2, "momentum": 0.9}),
    ],
)
def test_filters_score_as_units_do(criterion: str, of_units: dict[str, Any], of_weights: dict[str, Any]) -> None:
    """A unit that one layer produces is a filter of it. (Probes are drawn by leaf, so that the leaves are the same.)"""
    model = network()
    model.append(nn.Linear(5, 5).double())
    data = images(3, 2)
    groups = sec.couple(sec.capture(model, data[0][0]))
    units = sec.score(groups, model, criterion, data=data, options=of_units, normalizer="none")
    assert set(units) == {"0", "4", "7"}
    form = parse_pattern("block(1,99)")  # filters, and rows of the linear layer
    weights = {
        f"{name}.weight": GroupedWeight(
            f"{name}.weight", model.get_parameter(f"{name}.weight").detach().flatten(),
            form.groups(tuple(model.get_parameter(f"{name}.weight").shape), item.layout),
        )
        for name, item in ((name, layer_weights(model)[f"{name}.weight"]) for name in units)
    }  # fmt: skip
    found = scores_of(weights, criterion, options=of_weights, evidence=Evidence(model, data))
    for name, row in units.items():
        torch.testing.assert_close(found[f"{name}.weight"], row, rtol=1e-9, atol=1e-16)


def test_chance_is_seeded_differs_between_layers_and_nests() -> None:
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    first = masks(model, 0.5, importance="random", seed=3)
    assert all(torch.equal(mask, first[name]) for name, mask in masks(model, 0.5, importance="random", seed=3).items())
    assert not torch.equal(first["0.weight"], first["1.weight"])
    assert not torch.equal(first["0.weight"], masks(model, 0.5, importance="random", seed=4)["0.weight"])
    further = masks(model, 0.8, importance="random", seed=3)
    assert not bool((further["0.weight"] & ~first["0.weight"]).any())
    state = torch.get_rng_state()
    masks(model, 0.5, importance="random")
    assert torch.equal(state, torch.get_rng_state())


class Tied(nn.Module):
    """One weight under two names, and a layer that nothing runs through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.idle = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.two(self.one(x).tanh())
        return result


@pytest.mark.parametrize("importance", ["obd", "taylor", "taylor_weights"])
def test_tied_weights_count_together_and_idle_ones_not_at_all(importance: str) -> None:
    model = Tied().double()
    data = [(torch.randn(4, 5, dtype=D), torch.arange(4))]
    options = {"per": "sample"} if importance == "taylor_weights" else {}
    found = scores(model, importance, data, **options)
    each = one_by_one_tied(model, data[0])
    weight = model.one.weight.detach()
    expected = {
        "obd": mean([item.square() for item in each]) * weight.square() / 2,
        "taylor": (mean(each) * weight).abs(),
        "taylor_weights": mean([(item * weight).square() for item in each]),
    }[importance]
    torch.testing.assert_close(found["one.weight"], expected.flatten(), rtol=1e-9, atol=1e-16)
    assert not bool(found["idle.weight"].any())


def one_by_one_tied(model: Tied, batch: Batch) -> list[Tensor]:
    found = []
    for x, y in zip(*batch, strict=True):
        (slope,) = torch.autograd.grad(cross_entropy(model(x[None]), y[None]), [model.one.weight])
        found.append(slope)
    return found


def test_the_model_and_chance_stay_as_they_are() -> None:
    model = network().train()
    model[0].weight.requires_grad_(False)
    before, random = snapshot(model), torch.get_rng_state()
    data = DataLoader(TensorDataset(*images(9)[0]), 4, shuffle=True, generator=torch.Generator().manual_seed(5))
    given = data.generator.get_state()
    for importance in ("obd", "taylor", "taylor_weights"):
        masks(model, 0.5, importance=importance, data=data)
    check_untouched(model, before)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(given, data.generator.get_state())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
def test_a_schedule_looks_at_the_weights_of_the_moment(mode: str) -> None:
    model, data = network(), images(4, 3)
    held = sec.sparsify(model, 0.6, importance="obd", data=data, schedule=sec.Gradual(0, 3, every=1), mode=mode)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        cross_entropy(model.eval()(data[0][0]), data[0][1]).backward()
        optimizer.step()
        before, target = held.masks, held.schedule.at(held.steps + 1, 0.6)
        expected = copy.deepcopy(model)  # what computes; masked weights are judged by what they would be
        each = one_by_one(expected, data)
        dense = {name: held.dense[name].clone() for name in before}
        held.step()
        optimizer.zero_grad()
        for name, mask in held.masks.items():
            score = mean([item[name].square() for item in each]) * dense[name].square()
            if mode == "hard":
                score = torch.where(before[name], score, -1.0)
            gone = score.flatten().argsort(stable=True)[: int(target * score.numel() + 0.5)]
            assert set((~mask).flatten().nonzero().flatten().tolist()) == set(gone.tolist())
    assert held.settled()
    held.detach()


def test_every_criterion_of_units_is_one_of_weights_or_says_why_not() -> None:
    assert set(CRITERIA) - set(IMPORTANCES) == set(UNIT_ONLY)
    for name, why in UNIT_ONLY.items():
        with pytest.raises(UnknownNameError, match=f"{name!r} scores whole units"):
            masks(network(), 0.5, importance=name)
        assert why


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"importance": "obd"}, InputError, "'obd' needs data"),
        ({"importance": "taylor_weights"}, InputError, "'taylor_weights' needs data"),
        ({"importance": "obd", "data": []}, TrainError, "empty"),
        ({"importance": "obd", "data": images(2), "options": {"diagonals": "fisher"}}, UnknownNameError, "'diagonal'"),
        ({"importance": "obd", "data": images(2), "options": {"diagonal": "fischer"}}, UnknownNameError, "'fisher'"),
        ({"importance": "obd", "data": images(2), "options": {"probes": "many"}}, InputError, "is a number"),
        ({"importance": "obd", "data": images(2), "options": {"probes": 0}}, InputError, "at least one probe"),
        ({"importance": "taylor_weights", "data": images(2), "options": {"per": "row"}}, UnknownNameError, "per"),
        ({"importance": "taylor_weights", "data": images(2), "options": {"order": 3}}, InputError, "order is 1 or 2"),
        ({"importance": "l1", "options": {"eps": 1}}, UnknownNameError, "'l1' has no option 'eps'"),
        ({"importance": "taylor", "data": images(2), "gradients": {}}, InputError, "Both `data` and `gradients`"),
        ({"importance": "obd", "data": [images(2)[0][0]]}, TrainError, "not a pair"),
        ({"importance": "obd", "data": images(2), "batches": 0}, InputError, "no number of batches"),
        ({"importance": "random", "seed": -1}, InputError, "not a seed"),
        ({"data": images(2)}, InputError, "the importance 'l1' does not look at it"),
        ({"importance": "random", "data": images(2)}, InputError, "does not look at it"),
        ({"importance": Obd({}), "data": images(2)}, InputError, "does not look at it"),
    ],
)
def test_what_cannot_be_used_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        masks(network(), 0.5, **given)


def test_an_importance_of_ones_own_may_look_at_data() -> None:
    def steep(weight: GroupedWeight) -> Tensor:
        return weight.total(weight.gradient.abs())

    def heavy(weight: GroupedWeight) -> Tensor:
        return weight.total(weight.values.abs())

    model, data = network(), images(2)
    slopes = Evidence(model, data).gradients(layer_weights(model))
    for name, mask in masks(model, 0.5, importance=steep, data=data).items():
        assert float(slopes[name].abs()[mask.flatten()].min()) >= float(slopes[name].abs()[~mask.flatten()].max())
    expected = masks(model, 0.5)
    assert all(
        torch.equal(mask, expected[name]) for name, mask in masks(model, 0.5, importance=heavy, data=data).items()
    )


def test_a_sparsifier_asks_for_data_at_once() -> None:
    with pytest.raises(InputError, match="'obd' needs data"):
        sec.sparsify(network(), 0.5, importance="obd", schedule=sec.Gradual(5, 10))
    with pytest.raises(InputError, match="'l1' does not look at it"):
        sec.sparsify(network(), 0.5, data=images(2))


def test_data_that_each_process_sees_another_part_of_is_refused() -> None:
    data = TensorDataset(*images(8)[0])
    shared = DataLoader(data, 4, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    with pytest.raises(InputError, match="masks would differ"):
        masks(network(), 0.5, importance="obd", data=shared)


@pytest.mark.medium
def test_a_loader_can_be_in_the_middle_of_an_epoch() -> None:
    """Workers that outlive an epoch serve one at a time."""
    whole = TensorDataset(*images(12)[0])
    data = DataLoader(whole, 3, num_workers=1, persistent_workers=True)
    found = []
    for number, (x, _) in enumerate(data):
        found.append(x)
        if number == 1:
            mask = masks(network(), 0.5, importance="obd", data=data)
    assert torch.equal(torch.cat(found), whole.tensors[0])
    plain = masks(network(), 0.5, importance="obd", data=DataLoader(whole, 3))
    assert all(torch.equal(mask[name], plain[name]) for name in plain)
