"""Every key of a recipe has its option of `secateurs prune`, which arrives where the key does."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import secateurs as sec
import secateurs.cli.prune as verb
from secateurs import recipe
from secateurs.cli import main
from secateurs.cli.app import app
from secateurs.recipe import Recipe

NAMED_OTHERWISE = {"inputs": "input", "finetune": "epochs", "options": "option"}
WITHOUT = {"version": "options are of this version", "from_python": "options name everything"}

HALF = ["prune", "--model", "toy:Net", "--input", "1x1x6x6", "--budget", "macs=0.5"]


@pytest.fixture(autouse=True)
def beside_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)


def test_every_recipe_key_has_an_option_with_the_same_default() -> None:
    options = signature(verb.prune).parameters
    for key, field in Recipe.model_fields.items():
        if key in WITHOUT:
            continue
        default = options[NAMED_OTHERWISE.get(key, key)].default
        if key != "budget":  # required; an empty one is refused
            assert (default or None) == (field.default or None), key


ARRIVES = [
    ("--criterion", "l2", {"criterion": "l2"}),
    ("--equalization", "max", {"equalization": "max"}),
    ("--normalizer", "max", {"normalizer": "max"}),
    ("--criterion=apoz", "--option=eps=0.01", {"criterion": "apoz", "options": {"eps": 0.01}, "data": "toy:loader"}),
    ("--loss", "mse", {"loss": "mse"}),
    ("--loss", "toy:half", {"loss": "toy:half"}),
    ("--score-batches", "2", {"score_batches": 2}),
    ("--bias", "propagate", {"bias": "propagate"}),
    ("--bias=propagate", "--padding=mean", {"bias": "propagate", "padding": "mean"}),
    ("--search", "uniform", {"search": "uniform"}),
    ("--granularity", "4", {"granularity": 4}),
    ("--min-channels", "3", {"min_channels": 3}),
    ("--floor", "0.25", {"floor": 0.25}),
    ("--exclude", "second", {"exclude": ["second"]}),
    ("--unit", "head_dim", {"unit": "head_dim"}),
    ("--elementwise", "keep", {"elementwise": "keep"}),
    ("--data", "toy:loader", {"data": "toy:loader"}),
    ("--evaluate", "toy:bias", {"evaluate": "toy:bias"}),
    ("--seed", "5", {"seed": 5}),
    ("--data=toy:loader", "--reconstruct=2", {"data": "toy:loader", "reconstruct": 2}),
    ("--data=toy:loader", "--recalibrate=3", {"data": "toy:loader", "recalibrate": 3}),
]


@pytest.mark.parametrize(("option", "text", "keys"), ARRIVES, ids=[f"{item[0]}-{item[1]}" for item in ARRIVES])
def test_an_option_arrives_in_the_recipe_of_the_artifact(
    option: str, text: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    more = ["--data", keys["data"]] if "data" in keys and "data" not in option else []
    assert main([*HALF, option, text, *more, "--json", "--out", str(tmp_path / "cut")]) == 0
    without = recipe.make(model="toy:Net", inputs=("1x1x6x6",), budget={"macs": 0.5}).plain()
    assert recipe.load(tmp_path / "cut" / "recipe.yaml").plain() == {**without, **keys}


def _widths(folder: Path, *options: str) -> tuple[int, int]:
    import toy

    assert main([*HALF[:-1], "macs=0.4", *options, "--json", "--out", str(folder / "cut")]) in (0, 1)
    net = sec.load(folder / "cut", build=toy.Net)
    return net.first.out_channels, net.second.out_channels


def test_a_floor_and_a_least_width_hold(tmp_path: Path) -> None:
    assert _widths(tmp_path) == (8, 18)
    assert _widths(tmp_path, "--floor", "0.55")[0] == 9
    assert _widths(tmp_path, "--min-channels", "11")[0] == 11


def test_every_option_of_every_verb_says_what_it_is_for() -> None:
    import typer.main

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(verbs) == {
        "criteria", "demo", "inspect", "prune", "sensitivity", "sparsify", "export", "measure", "pack", "unpack", "list"
    }  # fmt: skip
    for name, command in verbs.items():
        assert command.help, name
        for option in command.params:
            assert getattr(option, "help", None), f"{name} {option.name}"
