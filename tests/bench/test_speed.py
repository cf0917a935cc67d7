"""The speed benchmark: its arithmetic against numbers worked out by hand, its worker on a tiny network."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from benchmarks import speed_results as results
from benchmarks import speed_trial as trial
from benchmarks.speed_models import GROWTH, deep, square, wide


def round_of(ours: float, peer: float) -> dict[str, Any]:
    """One round in which the stages of a side share its seconds evenly; the wall clock ran twice as long."""

    def shared(seconds: float, stages: tuple[str, ...]) -> dict[str, list[float]]:
        return {stage: [2 * seconds / len(stages), seconds / len(stages)] for stage in stages}

    return {"ours": shared(ours, trial.STAGES) | shared(1.0, results.PROOF), "peer": shared(peer, trial.PEER_STAGES)}


def race_of(name: str, *pairs: tuple[float, float]) -> dict[str, Any]:
    facts = {"params_left": 0.3, "runs": ""}
    return {"model": name, "rounds": [round_of(*pair) for pair in pairs], "ours": facts, "peer": facts}


def summary_of(*races: dict[str, Any]) -> dict[str, Any]:
    return results.summary({"race": {race["model"]: race for race in races}})


def test_a_ratio_is_the_median_of_rounds_and_leaves_the_proof_out():
    facts = summary_of(race_of("vgg16_bn", (1.0, 4.0), (2.0, 6.0), (1.0, 9.0)))["ratios"]["vgg16_bn"]
    assert (facts["least"], facts["ratio"], facts["most"]) == (3.0, 4.0, 9.0)
    assert facts["ratio_wall"] == 4.0
    assert facts["proof_s"] == pytest.approx(1.0)


def test_bars_are_missed_where_they_should_be():
    races = [race_of("vgg16_bn", (1.0, 4.9)), race_of("densenet201", (1.0, 5.1)), race_of("resnet50", (1.0, 0.4))]
    bars = summary_of(*races)["bars"]
    met = {name: bar["met"] for name, bar in bars.items()}
    assert met == {
        "faster in geometric mean": True,
        "none more than 2x slower (resnet50)": False,
        "5x faster on densenet201": True,
        "5x faster on vgg16_bn": False,
    }
    assert bars["faster in geometric mean"]["found"] == pytest.approx((4.9 * 5.1 * 0.4) ** (1 / 3), abs=1e-3)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found_in_its_tail(power: float):
    points = [(size, 3e-4 * size**power) for size in (100.0, 300.0, 1000.0)]
    assert results.exponent([(10.0, 5.0), *points]) == pytest.approx(power, abs=1e-9)


def test_a_stage_inside_another_is_counted_once():
    clock = trial.Clock()
    with clock.time("cut"):
        time.sleep(0.02)
        with clock.time("check"):
            time.sleep(0.05)
    whole = clock.seconds["cut"][results.WALL]
    clock.move("check", out_of="cut")
    assert 0.02 <= clock.seconds["cut"][results.WALL] < whole - 0.049


@pytest.mark.parametrize("make", GROWTH.values(), ids=GROWTH)
def test_the_growing_networks_are_cut_to_half_their_channels(make: Any):
    case = make(24)
    seconds, facts = trial.ours(case, case.build())
    assert set(seconds) == {*trial.STAGES, *results.PROOF}
    assert min(cpu for _, cpu in seconds.values()) >= 0 and seconds["check"][results.CPU] > 0
    assert facts["form"] == "native" and 0.2 < facts["params_left"] < 0.6


def test_networks_grow_as_they_say():
    def weights(case: Any) -> int:
        return sum(item.numel() for item in case.build().parameters())

    assert weights(deep(40)) - weights(deep(20)) == 20 * (16 * 16 * 9 + 16 + 32)
    assert weights(wide(80)) - weights(wide(40)) == 40 * 4 * (17 + 16 + 2)
    assert weights(square(64)) - 64 * 64 - (weights(square(32)) - 32 * 32) == 32 * (3 + 1 + 2 + 1 + 10)


def test_the_peer_leaves_the_model_and_the_output_layer_alone():
    pytest.importorskip("torch_pruning")
    case = deep(3)
    model = case.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seconds, facts = trial.peer(case, model)
    assert set(seconds) == set(trial.PEER_STAGES) and facts["runs"] == ""
    assert facts["params_left"] == pytest.approx(trial.ours(case, model)[1]["params_left"], abs=0.02)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tables_and_lines_hold_what_was_measured():
    race_of_three = race_of("resnet50", (1.0, 2.0), (1.0, 3.0), (1.0, 4.0))
    found = {"race": {"resnet50": race_of_three}}
    race, bars = results.tables(found, results.summary(found))
    assert list(race.columns[0].cells) == ["resnet50", "geometric mean"]
    assert next(iter(race.columns[8].cells)) == "3.00"
    assert list(bars.columns[3].cells) == ["met", "met"]
    assert "ratio 3.00 (2.00 to 4.00)" in results.line(race_of_three)
    stopped = {"model": "swin_t", "ended": False, "limit": 120, "why": "out of time"}
    assert results.line(stopped) == "swin_t           peer: no end in 120 s"
