"""What measurements say about themselves and each other, from samples made up for the purpose."""

import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from secateurs.base.errors import InputError, UnknownNameError
from secateurs.device import Environment, Measurement, Measurements

MACHINE = Environment("Tester 3000", 8, "", "Linux", "3.11", "2.13", "PyTorch 2.13 eager", 0.25)


def measured(name: str, middle: float, *, seed: int = 0, started: str = "then", noise: float = 0.01) -> Measurement:
    samples = middle * np.exp(np.random.default_rng(seed).normal(0, noise, 30))
    return Measurement(name, "torch", tuple(samples.tolist()), 4, 1, 5, 0, started, MACHINE)


def test_statistics_by_value() -> None:
    ten = replace(measured("net", 1.0), samples=(10.0, 1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0))
    assert ten.median == 5.5
    assert ten.quartiles == (3.25, 7.75)
    assert ten.iqr == 4.5
    assert (ten.interval.low, ten.interval.high) == (2.0, 9.0)
    assert ten.rounds == 10


def test_printing_explains_itself_with_units() -> None:
    text = str(replace(measured("net", 1.0), samples=tuple(0.010 + 0.001 * i for i in range(9))))
    assert text == (
        "net on torch: median 14 ms (95 % interval 11 ms to 17 ms), interquartile range 4 ms, 9 rounds of 4 runs, "
        "1 thread; PyTorch 2.13 eager on Tester 3000, 8 cores, load 0.25"
    )


def test_verdict_faster_slower_and_none() -> None:
    small, large = measured("small", 0.005, seed=1), measured("large", 0.010, seed=2)
    assert small.against(large).speedup == pytest.approx(2, rel=0.01)
    assert small.against(large).verdict.startswith(("2.0", "1.99"))
    assert "x faster (95 % interval" in small.against(large).verdict
    slower = large.against(small)
    assert slower.speedup == pytest.approx(0.5, rel=0.01)
    assert "x slower (95 % interval" in slower.verdict
    assert slower.verdict.startswith(("2.0", "1.99"))
    twin = measured("twin", 0.010, seed=3)
    assert twin.against(large).verdict.startswith("no measurable difference (ratio ")
    assert small.differs_from(large)
    assert large.differs_from(small)
    assert not twin.differs_from(large)
    assert not large.differs_from(large)


def test_slower_states_its_interval_the_right_way_round() -> None:
    slow = replace(measured("slow", 1.0), samples=(1.2, 1.3, 1.2, 1.25, 1.2, 1.1))
    base = replace(slow, name="base", samples=(1.0,) * 6)
    assert slow.against(base).verdict == "1.20x slower (95 % interval 1.10 to 1.30)"


def test_a_sure_but_tiny_difference_is_not_called_a_gain() -> None:
    base = measured("base", 0.010)
    other = replace(base, name="other", samples=tuple(sample / 1.004 for sample in base.samples))
    verdict = other.against(base).verdict
    assert verdict == (
        "no measurable difference (ratio 1.0040, 95 % interval 1.0040 to 1.0040; "
        "two copies of one model can differ by 1 %)"
    )
    assert not other.differs_from(base)


def test_separate_runs_are_not_paired_and_say_so() -> None:
    monday, tuesday = measured("a", 0.010, started="Monday"), measured("b", 0.005, seed=1, started="Tuesday")
    assert not tuesday.against(monday).paired
    assert "measured apart" in tuesday.against(monday).verdict
    assert tuesday.differs_from(monday)
    assert measured("b", 0.005, seed=1).against(measured("a", 0.010)).paired


def test_json_round_trip_and_derived_numbers() -> None:
    one = measured("one", 0.002)
    data = json.loads(json.dumps(one.to_dict()))
    assert Measurement.from_dict(data) == one
    assert data["unit"] == "s"
    assert data["median"] == one.median
    both = json.loads(json.dumps(one.against(measured("two", 0.004, seed=5)).to_dict()))
    assert both["speedup"] == pytest.approx(2, rel=0.01)
    assert both["differs"] is True
    assert both["baseline"]["name"] == "two"


@pytest.mark.parametrize("data", [{}, {"name": "x"}, {**measured("x", 1.0).to_dict(), "samples": "fast"}])
def test_other_data_is_refused(data: dict) -> None:
    with pytest.raises(InputError, match="not a measurement"):
        Measurement.from_dict(data)


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        measured("x", 1.0).threads = 4  # type: ignore[misc]


def test_several_by_name() -> None:
    before, after = measured("before", 0.010), measured("after", 0.005, seed=1)
    both = Measurements((before, after))
    assert list(both) == ["before", "after"]
    assert both["after"] is after
    assert both.comparison("after", "before").speedup == pytest.approx(2, rel=0.01)
    assert "before: median" in str(both)
    assert "x faster" in str(both).splitlines()[2]
    assert set(json.loads(json.dumps(both.to_dict()))) == {"before", "after"}
    with pytest.raises(UnknownNameError, match="'before'"):
        both["befor"]
