"""A recipe that was made from Python says so, asks for what it cannot name, and then gives the same cut again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import secateurs as sec
from secateurs import recipe
from secateurs.cli import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def beside_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `prune` with a recipe: exit code, standard error without line breaks."""

    def command(*words: object) -> tuple[int, str]:
        code = main(["prune", *(str(word) for word in words)])
        return code, " ".join(capsys.readouterr().err.split())

    return command


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """An artifact from Python: weights that the class does not have by itself, a loader object, a nameless metric."""
    import toy

    net = toy.Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()).reshape(parameter.shape))
    save_file(net.state_dict(), tmp_path / "mine.safetensors")
    result = sec.prune(
        net.eval(),
        torch.zeros(1, 1, 6, 6),
        budget=sec.Budget(macs=0.5),
        data=toy.loader(),
        evaluate=lambda model: toy.bias(model),
    )
    return sec.save(result, tmp_path / "made")


GIVEN = ["--model", "toy:Net", "--data", "toy:loader", "--evaluate", "toy:bias"]


def test_such_a_recipe_is_refused_with_what_to_give(run: Run, made: Path) -> None:
    code, message = run("--recipe", made / "recipe.yaml")
    assert code == 2
    assert "made from Python" in message and "model was toy:Net" in message and "data was builtins:list" in message
    assert all(flag in message for flag in ("--model", "--weights", "--data", "--evaluate"))
    assert "--input" not in message
    code, message = run("--recipe", made / "recipe.yaml", "--model", "toy:Net", "--data", "toy:loader")
    assert code == 2
    assert "--evaluate" in message and "--data" not in message and "--model" not in message


def test_other_weights_are_refused(run: Run, made: Path) -> None:
    code, message = run("--recipe", made / "recipe.yaml", *GIVEN)
    assert code == 2
    assert "does not have the weights that this recipe was made with" in message and "--weights" in message


def test_what_was_given_gives_the_same_cut_again(run: Run, made: Path, tmp_path: Path) -> None:
    weights = ["--weights", tmp_path / "mine.safetensors"]
    code, message = run("--recipe", made / "recipe.yaml", *GIVEN, *weights, "--out", tmp_path / "again")
    assert code == 0, message
    for name in ("plan.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()
    whole = recipe.load(tmp_path / "again" / "recipe.yaml")
    assert whole.from_python is None
    assert (whole.model, whole.weights) == ("toy:Net", str(tmp_path / "mine.safetensors"))
    code, message = run("--recipe", tmp_path / "again" / "recipe.yaml", "--out", tmp_path / "third")
    assert code == 0, message
    assert (tmp_path / "third" / "plan.json").read_bytes() == (made / "plan.json").read_bytes()


def test_names_written_into_the_recipe_do_as_well(run: Run, made: Path, tmp_path: Path) -> None:
    names = f"model: toy:Net\nweights: {tmp_path / 'mine.safetensors'}\ndata: toy:loader\nevaluate: toy:bias\n"
    whole = tmp_path / "whole.yaml"
    whole.write_text((made / "recipe.yaml").read_text() + names)
    code, message = run("--recipe", whole, "--out", tmp_path / "again")
    assert code == 0, message
    assert (tmp_path / "again" / "plan.json").read_bytes() == (made / "plan.json").read_bytes()
    code, message = run("--recipe", whole, "--model", "toy:Net")
    assert code == 2
    assert "beside --recipe: --model, which the recipe does not leave open" in message


def test_a_recipe_without_a_model_takes_one_and_nothing_else(run: Run, tmp_path: Path) -> None:
    (tmp_path / "open.yaml").write_text("version: 1\ninputs: [1x1x6x6]\nbudget: {macs: 0.5}\n")
    assert run("--recipe", tmp_path / "open.yaml", "--model", "toy:Net")[0] == 0
    code, message = run("--recipe", tmp_path / "open.yaml", "--model", "toy:Net", "--data", "toy:loader")
    assert code == 2
    assert "--data, which the recipe does not leave open" in message


def test_a_recipe_from_python_survives_the_round_trip(made: Path) -> None:
    read = recipe.load(made / "recipe.yaml")
    assert read.unnamed == ("model", "data", "evaluate")
    assert recipe.read(read.to_yaml()) == read
    with pytest.raises(sec.RecipeError, match=r"no recipe key 'from_python\.wieghts'.*did you mean 'weights'"):
        recipe.read((made / "recipe.yaml").read_text().replace("  weights:", "  wieghts:"))
