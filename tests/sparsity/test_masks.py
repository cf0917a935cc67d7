"""Masks: importance, scope, distribution, thresholds, and which tensors take part."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.base.errors import InputError, UnknownNameError
from secateurs.sparsity import GroupedWeight, Obd, Threshold, density, layer_weights, masks, parse_pattern
from secateurs.sparsity.distribution import DISTRIBUTIONS


def of(values: list[list[float]]) -> nn.Linear:
    made = nn.Linear(len(values[0]), len(values), bias=False)
    made.weight.data = torch.tensor(values)
    return made


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 4))


def kept(model: nn.Module, *args: Any, **options: Any) -> list[list[int]]:
    (mask,) = masks(model, *args, **options).values()
    return mask.int().tolist()


def test_standard_deviation_by_hand() -> None:
    """The population's deviation of 1, -2, 3, -4 is 2.6926."""
    assert kept(of([[1.0, -2.0, 3.0, -4.0]]), Threshold("std", 1.0)) == [[0, 0, 1, 1]]
    assert Threshold("std", 1.0).of(torch.tensor([1.0, -2.0, 3.0, -4.0])) == pytest.approx(2.6926, abs=1e-4)


def test_mean_and_deviation_by_hand() -> None:
    weights = of([[0.1, -0.2, 0.3, -0.4]])
    assert kept(weights, Threshold("mean_std", 0.0)) == [[0, 0, 1, 1]]
    assert kept(weights, Threshold("mean_std", 1.0)) == [[0, 0, 0, 1]]
    assert Threshold("mean_std", 1.0).of(torch.tensor([0.1, -0.2, 0.3, -0.4])) == pytest.approx(0.3618, abs=1e-4)


@pytest.mark.parametrize(("factor", "gone"), [(0.5, 0.383), (1.0, 0.683), (1.5, 0.866), (2.0, 0.954)])
def test_gaussian_layers_lose_what_theory_says(factor: float, gone: float) -> None:
    layer = nn.Linear(500, 400, bias=False)
    layer.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    found = 1 - density(masks(layer, Threshold("std", factor)))
    assert math.erf(factor / math.sqrt(2)) == pytest.approx(gone, abs=5e-4)
    assert found == pytest.approx(gone, abs=4e-3)


@pytest.mark.parametrize(("factor", "gone"), [(-0.5, 0.380), (0.0, 0.575), (0.5, 0.728), (1.0, 0.839), (1.5, 0.911)])
def test_statistics_of_magnitudes_on_a_gaussian_layer(factor: float, gone: float) -> None:
    layer = nn.Linear(500, 400, bias=False)
    layer.weight.data.normal_(generator=torch.Generator().manual_seed(4))
    assert 1 - density(masks(layer, Threshold("mean_std", factor))) == pytest.approx(gone, abs=4e-3)


def test_a_second_threshold_looks_at_what_is_kept() -> None:
    layer = of([[1.0, -2.0, 3.0, -4.0, 9.0, -9.5]])
    first = masks(layer, Threshold("value", 2.5))
    again = masks(layer, Threshold("std", 1.0), within=first)["weight"]
    survivors = torch.tensor([3.0, -4.0, 9.0, -9.5], dtype=torch.float64)
    limit = float(survivors.std(correction=0))
    assert again.tolist() == [[bool(m and abs(w) >= limit) for m, w in
                               zip(first["weight"][0], layer.weight[0].tolist(), strict=True)]]  # fmt: skip
    assert again.int().tolist() == [[0, 0, 0, 0, 1, 1]]


def test_what_equals_the_threshold_stays() -> None:
    assert kept(of([[1.0, -2.0, 3.0, -4.0]]), Threshold("value", 3.0)) == [[0, 0, 1, 1]]
    assert kept(of([[1.0, -1.0, 1.0, -1.0]]), Threshold("std", 1.0)) == [[1, 1, 1, 1]]
    assert kept(of([[2.0, -2.0, 2.0]]), Threshold("mean_std", 3.0)) == [[1, 1, 1]]
    assert kept(of([[3.0, 3.0, 1.0, 1.0]]), Threshold("value", 3.0), pattern="simd(2)") == [[1, 1, 0, 0]]


def test_a_threshold_meets_the_rms_of_simd_groups() -> None:
    layer = of([[0.3, 0.4, 0.3, 0.3]])
    assert kept(layer, Threshold("value", 0.35), pattern="simd(2)") == [[1, 1, 0, 0]]
    assert kept(layer, Threshold("value", 0.36), pattern="simd(2)") == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ("l1", [[0, 0, 1, 1, 1, 1]]),  # 2.0 against 2.1 and 2.4
        ("l2", [[1, 1, 0, 0, 1, 1]]),  # 1.903 against 1.485 and 1.7
        ("rms", [[1, 1, 0, 0, 1, 1]]),
        ("mean", [[0, 0, 1, 1, 1, 1]]),
    ],
)
def test_measures_by_hand(importance: str, expected: list[list[int]]) -> None:
    layer = of([[1.9, -0.1, 1.05, 1.05, 1.2, -1.2]])
    assert kept(layer, 1 / 3, pattern="simd(2)", importance=importance) == expected


def test_mean_is_fair_to_tails_and_sums_are_not() -> None:
    layer = of([[1.0, 1.0, 1.0, 1.0, 1.5, 1.5]])
    assert kept(layer, 0.5, pattern="block(1,4)", importance="mean") == [[0, 0, 0, 0, 1, 1]]
    assert kept(layer, 0.5, pattern="block(1,4)") == [[1, 1, 1, 1, 0, 0]]


def test_taylor_is_the_change_of_a_linear_loss() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=False)
    x = torch.randn(3, 6)
    (layer(x) * torch.arange(12.0).reshape(3, 4)).sum().backward()
    change = []
    for row in range(4):
        changed = layer.weight.detach().clone()
        changed[row] = 0
        after = (x @ changed.T * torch.arange(12.0).reshape(3, 4)).sum()
        before = (x @ layer.weight.detach().T * torch.arange(12.0).reshape(3, 4)).sum()
        change.append(abs(float(before - after)))
    found = masks(layer, 0.5, pattern="block(1,6)", importance="taylor")["weight"].all(dim=1)
    assert sorted(range(4), key=change.__getitem__)[2:] == sorted(
        found.nonzero().flatten().tolist(), key=change.__getitem__
    )
    given = masks(layer, 0.5, importance="taylor", gradients={"weight": torch.ones(4, 6)})
    assert torch.equal(given["weight"], masks(layer, 0.5)["weight"])


def test_taylor_without_gradients_is_refused() -> None:
    with pytest.raises(InputError, match="has no gradient"):
        masks(mlp(), 0.5, importance="taylor")


def test_saliency_by_hand_and_on_a_least_squares_model() -> None:
    """h = 2, w = 0.5 give 0.25. At the minimum of a quadratic loss it is what removing one weight costs, exactly."""
    one = GroupedWeight("w", torch.tensor([0.5]).double(), parse_pattern("weight").groups((1, 1)))
    assert Obd({"w": torch.tensor([[2.0]])})(one).tolist() == [0.25]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator).double() * torch.tensor([5.0, 0.1, 1.0, 3.0, 0.3, 2.0])
    y = torch.randn(50, 4, generator=generator).double()
    layer = nn.Linear(6, 4, bias=False).double()
    layer.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()

    def loss(weight: Tensor) -> float:
        return float((x @ weight.T - y).square().sum() / 2)

    moments = (x.T @ x).diagonal().expand(4, 6)
    grouping = parse_pattern("weight").groups((4, 6))
    found = Obd({"weight": moments})(GroupedWeight("weight", layer.weight.detach().flatten(), grouping))
    for index, saliency in enumerate(found.tolist()):
        without = layer.weight.detach().clone().flatten()
        without[index] = 0
        assert loss(without.reshape(4, 6)) - loss(layer.weight.detach()) == pytest.approx(saliency, abs=1e-10)
    assert not torch.equal(found.argsort(), layer.weight.detach().abs().flatten().argsort())
    (mask,) = masks(layer, 0.5, importance=Obd({"weight": moments})).values()
    assert torch.equal(mask.flatten(), found > found.sort().values[11])


def test_obd_from_the_fisher_information_of_data_and_what_is_missing() -> None:
    model, data = mlp(), [(torch.randn(12, 20), torch.arange(12) % 4)]
    curvature = sec.fisher_importance(model, data)
    found = masks(model, 0.6, importance=Obd(curvature), scope="global", pattern="rows(2)")
    assert density(found) == pytest.approx(0.4, abs=0.01)
    with pytest.raises(InputError, match="curvature of `2.weight` is missing"):
        masks(model, 0.6, importance=Obd({"0.weight": curvature["0.weight"]}))
    with pytest.raises(InputError, match="of another shape"):
        masks(model, 0.6, importance=Obd({**curvature, "2.weight": torch.ones(3)}))
    assert repr(Obd(curvature)) == repr(Obd(dict(reversed(curvature.items()))))
    assert repr(Obd(curvature)) != repr(Obd({**curvature, "0.weight": curvature["0.weight"] * 2}))


def test_an_importance_of_ones_own() -> None:
    def first_weights(weight: GroupedWeight) -> Tensor:
        return -torch.arange(weight.grouping.count, dtype=torch.float64)

    assert kept(of([[9.0, 9.0, 1.0, 1.0]]), 0.5, importance=first_weights) == [[1, 1, 0, 0]]
    with pytest.raises(InputError, match="1 groups|4 groups"):
        masks(of([[9.0, 9.0, 1.0, 1.0]]), 0.5, importance=lambda weight: torch.zeros(3))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 0.9])
def test_exact_counts_in_every_layer_and_over_all(sparsity: float) -> None:
    model = mlp()
    for mask in masks(model, sparsity).values():
        assert int(mask.sum()) == mask.numel() - math.floor(sparsity * mask.numel() + 0.5)
    found = masks(model, sparsity, scope="global")
    total = sum(mask.numel() for mask in found.values())
    assert sum(int(mask.sum()) for mask in found.values()) == total - math.floor(sparsity * total + 0.5)


def test_global_scope_is_one_ranking() -> None:
    model = mlp()
    model[4].weight.data.sign_().mul_(50)  # the last layer's weights dwarf all others
    found = masks(model, 0.5, scope="global")
    assert bool(found["4.weight"].all())
    size = {name: item.tensor.abs() for name, item in layer_weights(model).items()}
    least = min(float(size[name][mask].min()) for name, mask in found.items())
    most = max(float(size[name][~mask].max()) for name, mask in found.items() if not bool(mask.all()))
    assert most <= least


def test_of_equal_weights_in_one_ranking_those_of_earlier_layers_go() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    found = masks(model, 0.45, scope="global")  # 4.5 of 10: a half counts up
    assert [mask.int().tolist() for mask in found.values()] == [[[0, 0, 0], [0, 0, 1]], [[1, 1], [1, 1]]]


def test_erdos_renyi_kernel() -> None:
    shapes = {"conv": (64, 32, 3, 3), "small": (10, 8), "large": (300, 784)}
    total = sum(math.prod(shape) for shape in shapes.values())
    for sparsity in (0.5, 0.8, 0.95):
        found = DISTRIBUTIONS["erk"](shapes, sparsity)
        gone = sum(found[name] * math.prod(shape) for name, shape in shapes.items())
        assert gone == pytest.approx(sparsity * total)
        scaled = {
            name: (1 - found[name]) * math.prod(shape) / sum(shape) for name, shape in shapes.items() if found[name] > 0
        }
        assert max(scaled.values()) == pytest.approx(min(scaled.values()))
        for name in set(shapes) - set(scaled):
            assert sum(shapes[name]) / math.prod(shapes[name]) * max(scaled.values()) >= 1, "dense without need"
    assert DISTRIBUTIONS["erk"](shapes, 0.5)["small"] == 0.0


def test_erdos_renyi_masks_reach_the_total() -> None:
    model = mlp()
    found = masks(model, 0.7, distribution="erk")
    assert 1 - density(found) == pytest.approx(0.7, abs=3 / 940)
    assert len({round(float(mask.float().mean()), 2) for mask in found.values()}) > 1


def test_targets_by_layer() -> None:
    model = mlp()
    found = masks(model, {"0": 0.9, "2.weight": Threshold("value", 0.0)})
    assert set(found) == {"0.weight", "2.weight"}
    assert int(found["0.weight"].sum()) == 60
    assert bool(found["2.weight"].all())
    with pytest.raises(UnknownNameError, match=r"0\.weight|weights:"):
        masks(model, {"seven": 0.5})


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_shares_that_numpy_computed(kind: type) -> None:
    model, share = mlp(), kind(0.75)
    for given in (share, {"0": share}):
        found, expected = masks(model, given), masks(model, sec.sparsity.spec.plain_targets(given))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert int(masks(model, {"0": share})["0.weight"].sum()) == 150
    stored = json.loads(json.dumps(sec.Sparsity({"0": share}).plain()))
    assert sec.Sparsity.from_plain(stored) == sec.Sparsity({"0": 0.75})


def test_targets_by_globs_and_modules_that_hold_layers() -> None:
    model = nn.ModuleDict({"conv1": nn.Conv2d(2, 2, 1), "conv2": nn.Conv2d(2, 2, 1), "fc": mlp()})
    for given, expected in (
        ({"conv2": 0.0, "conv*": 0.5, "fc": 0.9}, [2, 4, 60, 30, 4]),
        ({"fc.?": 0.5, "fc.2.weight": 0.0}, [None, None, 300, 300, 20]),
        ({"fc.2": 0.0, "*": 0.5, "fc": 0.9}, [2, 2, 60, 300, 4]),
    ):
        found = masks(model, given)
        assert list(found) == [name for name in layer_weights(model) if name in found]
        kept = [int(found[name].sum()) if name in found else None for name in layer_weights(model)]
        assert kept == expected
    with pytest.raises(UnknownNameError, match="no weight named 'cnv"):
        masks(model, {"cnv*": 0.5})


def test_targets_by_class() -> None:
    model = nn.ModuleDict({"conv1": nn.Conv2d(2, 2, 1), "conv2": nn.Conv2d(2, 2, 1), "fc": mlp()})
    for given, expected in (
        ({nn.Linear: 0.9}, [None, None, 60, 30, 4]),
        ({nn.Linear: 0.9, nn.Conv2d: 0.5}, [2, 2, 60, 30, 4]),
        ({nn.Module: 0.5, nn.Linear: 0.9}, [2, 2, 60, 30, 4]),  # the nearer class
        ({"conv2": 0.0, "fc.2": 0.0, "fc.?": 0.5, nn.Linear: 0.9, nn.Conv2d: 0.5}, [2, 4, 300, 300, 20]),
    ):  # names before globs before classes
        found = masks(model, given)
        kept = [int(found[name].sum()) if name in found else None for name in layer_weights(model)]
        assert kept == expected
    by_deviation = masks(model, {nn.Linear: Threshold("std", 1.0), nn.Conv2d: Threshold("std", 0.5)})
    assert torch.equal(by_deviation["fc.0.weight"], masks(model, Threshold("std", 1.0), only=["fc.0"])["fc.0.weight"])
    assert torch.equal(by_deviation["conv1.weight"], masks(model, Threshold("std", 0.5))["conv1.weight"])


def test_classes_that_do_not_decide_are_refused() -> None:
    class Named:
        pass

    class Both(nn.Linear, Named):
        pass

    model = nn.Sequential(Both(4, 4))
    assert int(masks(model, {nn.Linear: 0.5, Named: 0.5})["0.weight"].sum()) == 8
    assert int(masks(model, {nn.Linear: 0.5, Both: 0.25, Named: 0.75})["0.weight"].sum()) == 12
    with pytest.raises(InputError, match=r"different things of `0\.weight`.*Linear: 0\.5, Named: 0\.75"):
        masks(model, {nn.Linear: 0.5, Named: 0.75})
    assert int(masks(model, {nn.Linear: 0.5, Named: 0.75, "0": 0.25})["0.weight"].sum()) == 12
    with pytest.raises(UnknownNameError, match="No Conv2d has a weight here.*there is Both"):
        masks(model, {nn.Conv2d: 0.5})
    with pytest.raises(InputError, match="7 names no layer"):
        masks(model, {7: 0.5})
    tied = nn.Sequential(nn.Linear(4, 4), nn.Bilinear(2, 2, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="different things"):
        masks(tied, {nn.Linear: 0.5, nn.Bilinear: 0.75})


def test_masks_nest() -> None:
    model = mlp()
    first = masks(model, 0.5)
    for parameter in model.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    second = masks(model, 0.6, within=first)
    for name, mask in second.items():
        assert not bool((mask & ~first[name]).any())
        assert int(mask.sum()) == mask.numel() - math.floor(0.6 * mask.numel() + 0.5)


def test_the_model_is_not_changed() -> None:
    model = mlp()
    before = {name: item.clone() for name, item in model.state_dict().items()}
    masks(model, 0.5)
    assert all(torch.equal(item, before[name]) for name, item in model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"sparsity": True},
        {"sparsity": float("nan")},
        {"sparsity": 0.5, "scope": "world"},
        {"sparsity": 0.5, "scope": "global", "distribution": "erk"},
        {"sparsity": Threshold("std", 1.0), "scope": "global"},
        {"sparsity": {"0": 0.5}, "distribution": "erk"},
        {"sparsity": 0.5, "pattern": "2:4"},
        {"sparsity": 0.5, "importance": "l7"},
        {"sparsity": 0.5, "distribution": "even"},
        {"sparsity": 0.5, "exclude": ["nowhere"]},
        {"sparsity": 0.5, "exclude": ["*"]},
        {"sparsity": 0.5, "exclude": "0"},
        {"sparsity": 0.5, "only": "0.weight"},
        {"sparsity": 0.5, "exclude": nn.Linear},
        {"sparsity": 0.5, "importance": 3},
        {"sparsity": "90%"},
        {"sparsity": 0.5, "within": {"0.weight": torch.ones(3)}},
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        masks(mlp(), **options)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(InputError, match="OrderedDict has no layers"):
        masks(mlp().state_dict(), 0.5)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        masks(of([[1.0, float("nan")]]), 0.5)


def test_a_lazy_layer_without_shape_is_refused() -> None:
    with pytest.raises(InputError, match="run the model once"):
        masks(nn.LazyLinear(3), 0.5)


@pytest.mark.parametrize(("kind", "factor"), [("median", 1.0), ("std", -1.0), ("value", math.inf), ("std", "1")])
def test_thresholds_that_make_no_sense(kind: str, factor: Any) -> None:
    with pytest.raises(InputError):
        Threshold(kind, factor)
