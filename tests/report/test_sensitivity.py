"""Sensitivity of layers: the table against masks by hand, what it says of a curve, and what a kill leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.deliver.request import state_digest

FRACTIONS = (0.0, 0.25, 0.5, 0.75)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 3),
    ).eval()  # fmt: skip
    with torch.no_grad():
        made[7].bias -= made(torch.randn(500, 1, 8, 8)).mean(0)
    return made


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Images that the network itself has labelled, so that it makes no mistake and all that is lost shows."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(20, 1, 8, 8, generator=generator) for _ in range(count)]
    with torch.no_grad():
        return [(batch, network()(batch).argmax(1)) for batch in images]


def curve(*metric: float | None, baseline: float = 0.9, **more: float) -> sec.Sensitivity:
    fractions = tuple((number + 1) / 10 for number in range(len(metric)))
    return sec.Sensitivity("weight", fractions, baseline, {"a.weight": metric}, {"a.weight": 10}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["weight", "rows(2)", "kernel", "filter", "simd(4)"])
def test_every_cell_is_the_model_with_that_one_mask(pattern: str) -> None:
    model, data = network(), batches()
    judge = sec.accuracy(data)
    found = sec.sensitivity(model, judge, pattern=pattern, fractions=FRACTIONS)
    assert found.baseline == judge(model)
    assert found.sizes == {"0.weight": 72, "3.weight": 432, "7.weight": 72}
    for name, row in found.metric.items():
        for fraction, value in zip(FRACTIONS, row, strict=True):
            by_hand = network()
            mask = sec.masks(by_hand, fraction, pattern=pattern, only=[name])[name]
            by_hand.get_parameter(name).data.mul_(mask)
            assert value == judge(by_hand)
    assert len({value for row in found.metric.values() for value in row}) > 3  # or nothing was compared


@pytest.mark.parametrize("pattern", ["weight", "filter"])
def test_running_the_prefix_once_gives_the_same_table(pattern: str) -> None:
    model, data = network(), batches()
    found = sec.sensitivity(model, sec.accuracy(data), pattern=pattern, fractions=FRACTIONS)
    shared = sec.sensitivity(model, data=data, pattern=pattern, fractions=FRACTIONS)
    assert shared == found
    first = sec.sensitivity(model, data=data, pattern=pattern, fractions=FRACTIONS, batches=1)
    assert first.metric == sec.sensitivity(model, sec.accuracy(data[:1]), pattern=pattern, fractions=FRACTIONS).metric


def test_a_tied_weight_loses_in_all_places_at_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.one = nn.Linear(6, 6)
            self.two = nn.Linear(6, 6)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu())  # type: ignore[no-any-return]

    data = [(torch.randn(40, 6, generator=torch.Generator().manual_seed(3)), torch.arange(40) % 6)]
    found = sec.sensitivity(Tied(), data=data, fractions=[0.5, 0.9])
    assert list(found.metric) == ["one.weight"]
    assert found == sec.sensitivity(Tied(), sec.accuracy(data), fractions=[0.5, 0.9])


def test_the_model_is_untouched_and_each_layer_is_pruned_alone_even_if_evaluation_writes() -> None:
    model = network().train()
    before, modes = state_digest(model), [module.training for module in model.modules()]
    seen: list[set[str]] = []

    def evaluate(copy: nn.Module) -> float:
        assert copy is not model and not copy.training
        theirs, ours = dict(copy.state_dict()), model.state_dict()
        seen.append({name for name in ours if not torch.equal(theirs[name], ours[name])})
        for name in seen[-1]:
            zeroed = theirs[name] != ours[name]
            assert bool((theirs[name][zeroed] == 0).all())
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.add_(1.0)  # a scan that put back only the masked weight would carry this on
        return 0.5

    sec.sensitivity(model, evaluate, fractions=FRACTIONS)
    assert seen == [set(), *[{name} for _ in FRACTIONS[1:] for name in ("0.weight", "3.weight", "7.weight")]]
    assert state_digest(model) == before
    assert [module.training for module in model.modules()] == modes


def test_weights_have_the_grid_of_the_paper() -> None:
    """0 to 0.95 in steps of 0.05: of twenty weights one more each time."""
    found = sec.sensitivity(nn.Linear(20, 1), lambda model: float(model.weight.count_nonzero()))
    assert found.fractions == pytest.approx([percent / 100 for percent in range(0, 96, 5)])
    assert found.metric == {"weight": tuple(20.0 - number for number in range(20))}


def test_a_fraction_that_removes_no_more_is_not_looked_at_again() -> None:
    calls: list[int] = []

    def evaluate(model: nn.Module) -> float:
        calls.append(1)
        return float(len(calls))

    model = nn.Sequential(nn.Conv1d(4, 3, 1))  # three filters: 0, 0, 1, 1, 2 of them go
    found = sec.sensitivity(model, evaluate, pattern="filter", fractions=[0.0, 0.1, 0.2, 0.3, 0.6])
    assert found.metric == {"0.weight": (1.0, 1.0, 2.0, 2.0, 3.0)}


def test_the_largest_fraction_is_the_one_below_the_first_failure() -> None:
    dips = curve(0.9, 0.89, 0.7, 0.9)  # what passes again at 0.4 does not count
    assert dips.largest(0.01) == {"a.weight": 0.2}
    assert dips.largest(0.01, record="first_fail") == {"a.weight": 0.3}
    assert dips.largest(0.005) == {"a.weight": 0.1}
    assert dips.largest(0.2) == dips.largest(0.2, record="first_fail") == {"a.weight": 0.4}  # never fails
    assert curve(0.5, 0.9).largest(0.1) == {"a.weight": 0.0}
    assert curve(0.5, 0.9).largest(0.1, record="first_fail") == {"a.weight": 0.1}


def test_exactly_the_tolerance_is_within_it() -> None:
    assert 0.8 - 0.1 > 0.7  # in floating point
    assert curve(0.7, 0.69, baseline=0.8).largest(0.1) == {"a.weight": 0.1}


def test_a_layer_that_rises_above_the_baseline_has_not_failed() -> None:
    assert curve(0.95, 0.9).largest(0.0) == {"a.weight": 0.2}


def test_targets_are_what_masks_takes() -> None:
    model = network()
    found = sec.Sensitivity(
        "weight", (0.5, 0.75), 1.0, {"0.weight": (0.5, 0.5), "3.weight": (1.0, 0.2), "7.weight": (1.0, 0.99)},
        {"0.weight": 72, "3.weight": 432, "7.weight": 72}, tolerance=0.1,
    )  # fmt: skip
    assert found.targets() == {"3.weight": 0.5, "7.weight": 0.75}
    masks = sec.masks(model, found.targets())
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"3.weight": 216, "7.weight": 18}
    assert found.removed() == (216 + 54) / (72 + 432 + 72)
    with sec.sparsify(model, found.targets()) as held:
        assert set(held.masks) == {"3.weight", "7.weight"}


def test_channels_are_no_targets_of_weights() -> None:
    found = sec.Sensitivity("channel", (0.5,), 1.0, {"conv": (1.0,)}, {"conv": 8}, tolerance=0.1)
    assert found.largest() == {"conv": 0.5} and found.removed() == 0.5
    with pytest.raises(sec.InputError, match=r"Channels.*sec.prune"):
        found.targets()


def test_a_layer_is_left_once_it_has_fallen_too_far() -> None:
    model, data = network(), batches()
    full = sec.sensitivity(model, sec.accuracy(data), fractions=FRACTIONS)
    drop = 0.1
    found = sec.sensitivity(model, sec.accuracy(data), fractions=FRACTIONS, stop_at_drop=drop)
    assert any(None in row for row in found.metric.values())
    for name, row in found.metric.items():
        for one, other in zip(row, full.metric[name], strict=True):
            assert one is None or one == other
        end = row.index(None) if None in row else len(row)
        assert set(row[end:]) <= {None}
        assert all(value is not None and value >= full.baseline - drop for value in row[: end - 1])
        if end < len(row):
            assert row[end - 1] < full.baseline - drop
    assert found.largest(drop) == full.largest(drop)
    with pytest.raises(sec.InputError, match="is not known"):
        found.largest(1.0)


class Killed(Exception):
    pass


def counted(limit: int, judge: Callable[[nn.Module], float], calls: list[int]) -> Callable[[nn.Module], float]:
    def evaluate(model: nn.Module) -> float:
        if len(calls) == limit:
            raise Killed
        calls.append(1)
        return judge(model)

    return evaluate


def test_a_killed_scan_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, judge = network(), sec.accuracy(batches())
    whole = sec.sensitivity(model, judge, fractions=FRACTIONS)
    with pytest.raises(Killed):
        sec.sensitivity(model, counted(5, judge, []), fractions=FRACTIONS, folder=tmp_path)
    calls: list[int] = []
    again = sec.sensitivity(model, counted(99, judge, calls), fractions=FRACTIONS, folder=tmp_path)
    assert again == whole
    assert len(calls) == 1 + 3 * 3 - 5
    with pytest.raises(sec.ArtifactError, match="another run"):
        sec.sensitivity(model, judge, fractions=(0.5,), folder=tmp_path)


def test_json_there_and_back_and_nothing_else_is_taken() -> None:
    found = curve(0.9, None, stop_at_drop=0.1, tolerance=0.05)
    text = found.to_json()
    assert sec.Sensitivity.from_json(text) == found
    assert sec.Sensitivity.from_json(text).to_json() == text
    data = json.loads(text)
    for wrong in ({**data, "format": 2}, {**data, "metric": {"a": [1]}}, {**data, "more": 1}, [], {"metric": {}}):
        with pytest.raises(sec.InputError, match="not a sensitivity table"):
            sec.Sensitivity.from_json(json.dumps(wrong))
    with pytest.raises(sec.InputError, match="not a sensitivity table"):
        sec.Sensitivity.from_json("no json")


def test_prints_the_story() -> None:
    text = " ".join(str(curve(0.9, 0.85, 0.1, tolerance=0.05)).split())
    assert "Baseline 0.9000" in text
    assert "within 0.05" in text and "20%" in text
    assert "would lose 20.0% of the weights" in text
    assert " a 10 0.900 0.850 " in text and "a.weight" not in text
    assert "within" not in str(curve(0.9, 0.85))  # nobody has said what may be lost


def test_a_long_grid_prints_few_columns_with_the_last() -> None:
    row = tuple(1 - number / 100 for number in range(20))
    found = sec.Sensitivity("weight", tuple(number / 20 for number in range(20)), 1.0, {"layer.weight": row})
    line = next(line for line in str(found).splitlines() if line.startswith("layer "))
    assert "95%" in line and line.count("%") == 8


def test_channels_are_silenced_where_they_are_read() -> None:
    """Against the cut itself: a plan without those channels, cut and evaluated."""
    model, data = network(), batches()
    found = sec.sensitivity(model, data=data, pattern="channel", fractions=[0.25, 0.5])
    graph = sec.capture(model, data[0][0])
    groups = sec.couple(graph)
    scores = sec.score(groups, model, "l1")
    assert found.sizes == {group.name: group.size for group in groups.free}
    for name, row in found.metric.items():
        for fraction, value in zip(found.fractions, row, strict=True):
            kept = {other.name: set(range(other.size)) for other in groups.free}
            kept[name] -= set(scores[name].argsort(stable=True)[: round(fraction * groups[name].size)].tolist())
            plan = sec.plan(graph, groups, {key: sorted(units) for key, units in kept.items()})
            assert value == sec.accuracy(data)(sec.cut(model, plan, data[0][0]))
    assert len({value for row in found.metric.values() for value in row}) > 1


def test_channels_have_the_published_grid_and_both_ways_to_record() -> None:
    found = sec.sensitivity(network(), data=batches(), pattern="channel", stop_at_drop=0.05)
    assert found.fractions == pytest.approx((0.3, 0.4, 0.5, 0.6, 0.7, 0.8))
    assert "channels of coupled layers silenced" in str(found)
    failing, passing = found.largest(0.05, record="first_fail"), found.largest(0.05)
    for name in found.metric:
        steps = (0.0, *found.fractions)
        if failing[name] == passing[name]:  # never failed
            assert failing[name] == pytest.approx(0.8)
        else:
            assert (passing[name], failing[name]) in list(pairwise(steps))


def test_channels_by_a_criterion_that_looks_at_data() -> None:
    model, data = network(), batches()
    found = sec.sensitivity(model, data=data, pattern="channel", importance="taylor", fractions=[0.5], only=["0"])
    groups = sec.couple(sec.capture(model, data[0][0]))
    order = sec.score(groups, model, "taylor", data=data)["0"].argsort(stable=True).tolist()
    by_hand = network()
    with torch.no_grad():
        by_hand[3].weight[:, order[:4]] = 0  # what reads them
    assert found.metric == {"0": (sec.accuracy(data)(by_hand),)}
    assert found.importance == "taylor"


def test_weights_by_an_importance_that_looks_at_data() -> None:
    model, data = network(), batches(1)
    found = sec.sensitivity(model, data=data, importance="obd", fractions=(0.5,), only=["3"])
    by_hand = network()
    mask = sec.masks(by_hand, 0.5, importance="obd", data=data, only=["3"])["3.weight"]
    by_hand.get_parameter("3.weight").data.mul_(mask)
    assert found.metric == {"3.weight": (sec.accuracy(data)(by_hand),)}
    assert found.importance == "obd"
    with pytest.raises(sec.InputError, match="'obd' needs data"):
        sec.sensitivity(model, sec.accuracy(data), importance="obd")


def test_some_layers_only() -> None:
    model, data = network(), batches()
    assert list(sec.sensitivity(model, data=data, only=["3"], fractions=[0.5]).metric) == ["3.weight"]
    assert list(sec.sensitivity(model, data=data, exclude=["3"], fractions=[0.5]).metric) == ["0.weight", "7.weight"]
    assert list(sec.sensitivity(model, data=data, pattern="channel", only=["3"], fractions=[0.5]).metric) == ["3"]
    assert list(sec.sensitivity(model, data=data, pattern="channel", exclude=["3"], fractions=[0.5]).metric) == ["0"]
    with pytest.raises(sec.UnknownNameError, match="no group of channels"):
        sec.sensitivity(model, data=data, pattern="channel", only=["30"])


def test_channel_is_a_name_among_the_patterns() -> None:
    with pytest.raises(sec.UnknownNameError, match="did you mean 'channel'"):
        sec.sensitivity(network(), data=batches(), pattern="chanel")
    with pytest.raises(sec.InputError, match="give a list"):
        sec.sensitivity(network(), data=batches(), exclude="3")


def test_stages_are_told() -> None:
    told: list[str] = []
    sec.sensitivity(network(), data=batches(), fractions=[0.5, 0.9], on_stage=told.append)
    assert told == ["baseline", "50% (1 of 2)", "90% (2 of 2)"]


def test_a_metric_of_ones_own() -> None:
    def minus_squares(outputs: Tensor, target: Tensor) -> float:
        return -float(outputs.square().sum())

    model, data = network(), batches()
    found = sec.sensitivity(model, data=data, measure=minus_squares, fractions=[0.9])
    with torch.no_grad():
        whole = sum(minus_squares(model(inputs), target) for inputs, target in data) / 40
    assert found.baseline == pytest.approx(whole)


def never(model: nn.Module) -> float:
    raise AssertionError("not to be called")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "one of `evaluate` and `data`"),
        ({"evaluate": never, "data": batches()}, "not both"),
        ({"evaluate": never, "pattern": "2:4"}, "nothing to scan"),
        ({"evaluate": never, "pattern": "channel"}, "data="),
        ({"evaluate": never, "fractions": [0.5, 0.2]}, "ascending"),
        ({"evaluate": never, "fractions": [1.0]}, "below 1"),
        ({"evaluate": never, "fractions": []}, "fractions"),
        ({"evaluate": never, "tolerance": -0.1}, "tolerance"),
        ({"evaluate": never, "stop_at_drop": float("nan")}, "stop_at_drop"),
        ({"evaluate": never, "importance": "l11"}, "l1"),
        ({"data": []}, "empty"),
        ({"data": [torch.zeros(2, 1, 8, 8)]}, "no targets"),
        ({"evaluate": never, "seed": -1}, "seed"),
    ],
)
def test_refusals(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(sec.InputError, match=says):
        sec.sensitivity(network(), **arguments)  # type: ignore[arg-type]


def test_a_metric_that_is_no_number_is_refused() -> None:
    with pytest.raises(sec.TrainError, match="finite"):
        sec.sensitivity(network(), lambda model: float("nan"))
    with pytest.raises(sec.TrainError, match="finite"):
        sec.sensitivity(network(), data=batches(), measure=lambda outputs, target: float("inf"))
    with pytest.raises(sec.InputError, match="tolerance=None"):
        curve(0.9).largest()
    with pytest.raises(sec.InputError, match="record"):
        curve(0.9).largest(0.1, record="first")
