"""The tables say what the data says: no number is lost, and what was refused is not called a success."""

from __future__ import annotations

from typing import Any

import pytest

from secateurs.report.tables import ROWS, as_text, bar, frozen_table, inspect_tables, layer_table, result_tables


def report(**changes: Any) -> dict[str, Any]:
    return {
        "budget": "macs <= 50% of the original",
        "met": True,
        "form": "native",
        "proof": {"worst": 2e-16, "tolerance": 1e-9, "dtype": "float64", "nodes": 12, "macs": 480, "exact": True},
        "cost": {"macs": [1000, 480], "params": [200, 90], "bytes": [800, 360], "peak_memory": [64, 32]},
        "measured": None,
        "accuracy": {},
        "layers": [{"name": "stem", "before": 16, "after": 8, "why": "kept the best 8"}],
        "frozen": [],
        "reproduce": {"seed": 3, "criterion": "l1"},
        **changes,
    }


def test_numbers_appear_with_their_units() -> None:
    text = as_text(result_tables(report()))
    for part in (
        "1,000",
        "480",
        "48.0%",
        "multiply-accumulates",
        "Budget met",
        "seed 3",
        "stem",
        "50%",
        "2.0e-16",
        "12 operator calls",
    ):
        assert part in text


def test_a_missed_budget_is_not_called_met() -> None:
    text = as_text(result_tables(report(met=False)))
    assert "Budget NOT met" in text
    assert "Budget met" not in text


def test_accuracy_differences_are_to_the_original() -> None:
    text = as_text(result_tables(report(accuracy={"original": 0.9, "cut": 0.5, "fine-tuned": 0.91})))
    assert "-0.4000" in text
    assert "+0.0100" in text


def test_a_measurement_shows_its_verdict() -> None:
    measured = {
        "device": "onnxruntime",
        "before_seconds": 2e-3,
        "after_seconds": 1.9e-3,
        "verdict": "no measurable difference",
    }
    text = as_text(result_tables(report(measured=measured)))
    assert "2 ms" in text
    assert "no measurable difference" in text


def test_long_tables_are_cut_and_say_so() -> None:
    layers = [{"name": f"layer{index}", "before": 9, "after": 3, "why": ""} for index in range(ROWS + 5)]
    text = as_text([layer_table(layers)])
    assert "... and 5 more" in text
    assert f"layer{ROWS}" not in text


def test_nothing_removed_is_said() -> None:
    assert as_text([layer_table([{"name": "a", "before": 4, "after": 4, "why": ""}])]) == "Nothing was removed."


def test_frozen_groups_with_one_reason_share_a_row() -> None:
    frozen = [{"name": name, "size": 4, "why": "the model returns it"} for name in ("a", "b", "c")]
    text = as_text([frozen_table([*frozen, {"name": "d", "size": 7, "why": "softmax over it"}])])
    assert text.count("the model returns it") == 1
    assert "a and 2 more" in text
    assert "12" in text
    assert "softmax over it" in text


def test_markup_in_names_is_printed_as_it_is() -> None:
    text = as_text([frozen_table([{"name": "[bold]a[/]", "size": 4, "why": "[red]why"}])])
    assert "[bold]a[/]" in text
    assert "[red]why" in text


@pytest.mark.parametrize(("share", "full"), [(0.0, 0), (0.5, 5), (1.0, 10), (1.7, 10), (-1.0, 0)])
def test_bars_stay_inside(share: float, full: int) -> None:
    assert bar(share).count("█") == full
    assert len(bar(share)) == 10


def test_inspect_shows_work_and_groups() -> None:
    group = {
        "name": "stem",
        "size": 16,
        "width": 4,
        "members": ["a[0]", "b[1]"],
        "frozen": None,
        "inexact_because": None,
    }
    data = {
        "model": "nets:Net",
        "totals": {"macs": 100, "params": 10, "bytes": 40, "peak_memory": 8},
        "layers": [{"name": "stem", "macs": 75, "params": 10}, {"name": "pool", "macs": 0, "params": 0}],
        "groups": [group, {**group, "name": "head", "frozen": "the model returns it"}],
        "notes": ["one run was recorded"],
    }
    text = as_text(inspect_tables(data))
    for part in ("75.0%", "stem", "head", "the model returns it", "Note: one run was recorded"):
        assert part in text
    assert "pool" not in text
