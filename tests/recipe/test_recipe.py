"""A recipe says exactly what it says: round trips are equal, and everything else is refused with its line."""

from inspect import signature

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateurs import recipe
from secateurs.base.errors import RecipeError
from secateurs.choose.budget import Budget
from secateurs.prune import prune
from secateurs.train.config import FineTune
from secateurs.train.distill import Distill

WHOLE = """\
version: 1
model: nets.resnet:resnet56
weights: resnet56.safetensors
inputs: [1x3x32x32, mask=1x16:bool, ids=1x16:int64:100]
budget: {macs: 0.5, params: 100000}
criterion: l2
granularity: 8
exclude: ["stem.*", head]
data: nets.data:loader
evaluate: nets.data:Scores.accuracy
finetune:
  epochs: 5
  lr: 0.1
  loss: nets.losses:focal
  milestones: [0.3, 0.6]
  distil: {alpha: 0.9}
device: onnxruntime
seed: 7
"""
SHORT = "version: 1\nbudget: {macs: 0.5}\n"


def test_every_key_arrives() -> None:
    read = recipe.read(WHOLE)
    assert read.budget == Budget(macs=0.5, params=100_000)
    assert read.inputs == ("1x3x32x32", "mask=1x16:bool", "ids=1x16:int64:100")
    assert read.exclude == ("stem.*", "head")
    assert read.finetune is not None
    assert read.finetune.milestones == (0.3, 0.6)
    assert read.finetune.distil == Distill(alpha=0.9)
    assert read.finetune.loss == recipe.NamedLoss("nets.losses:focal")
    assert (read.criterion, read.granularity, read.device, read.seed) == ("l2", 8, "onnxruntime", 7)


@pytest.mark.parametrize("text", [WHOLE, SHORT])
def test_dump_and_load_give_an_equal_recipe(text: str) -> None:
    read = recipe.read(text)
    assert recipe.read(read.to_yaml()) == read


@given(
    macs=st.none() | st.floats(0.01, 1.0) | st.integers(2, 10**9),
    params=st.floats(0.01, 1.0) | st.integers(2, 10**9),
    granularity=st.integers(1, 64),
    floor=st.floats(0, 1),
    exclude=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=3),
    epochs=st.none() | st.integers(0, 99),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_recipe_survives_the_round_trip(
    macs: float | None,
    params: float,
    granularity: int,
    floor: float,
    exclude: list[str],
    epochs: int | None,
    seed: int,
) -> None:
    made = recipe.make(
        budget=Budget(macs=macs, params=params),
        granularity=granularity,
        floor=floor,
        exclude=tuple(exclude),
        finetune=None if epochs is None else FineTune(epochs=epochs),
        seed=seed,
    )
    assert recipe.read(made.to_yaml()) == made


@pytest.mark.parametrize(
    ("text", "line", "nearest"),
    [
        (SHORT + "budgett: 3\n", 3, "did you mean 'budget'"),
        (SHORT + "granulrity: 3\n", 3, "did you mean 'granularity'"),
        (SHORT.replace("macs", "mac"), 2, "did you mean 'macs'"),
        (SHORT + "finetune:\n  epoch: 3\n", 4, "did you mean 'epochs'"),
        (SHORT + "finetune:\n  distil:\n    alpa: 3\n", 5, "did you mean 'alpha'"),
        (SHORT + "zzzzzz: 3\n", 3, "remove it"),
    ],
)
def test_unknown_key_is_refused_with_line_and_nearest_name(text: str, line: int, nearest: str) -> None:
    with pytest.raises(RecipeError, match=f"There is no recipe key.*line {line}.*{nearest}"):
        recipe.read(text, "my.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "A recipe is a mapping"),
        ("[1, 2]", "A recipe is a mapping"),
        ("version: 1\n", "has no 'budget'"),
        ("budget: {macs: 0.5}\n", "has no 'version'"),
        ("version: 2\nbudget: {macs: 0.5}\n", "'version'.*line 1.*should be 1"),
        (SHORT.replace("0.5", "-1"), "'budget'.*line 2.*is not a limit"),
        (SHORT.replace("0.5", "half"), "'budget'.*line 2.*is not a limit"),
        (SHORT.replace("{macs: 0.5}", "{}"), "budget is empty"),
        (SHORT + "granularity: 0\n", "'granularity'.*line 3.*greater than or equal to 1"),
        (SHORT + "granularity: 2.5\n", "'granularity'.*line 3.*valid integer"),
        (SHORT + "seed: -1\n", "'seed'.*line 3.*is not a seed"),
        (SHORT + "seed: 1\nseed: 2\n", "Key 'seed' is given twice.*line 4.*first on line 3"),
        (SHORT + "model: nets.resnet\n", "'model'.*line 3.*package.module:attribute"),
        (SHORT + "inputs:\n  - 1x3x32x32\n  - 1x3y2\n", "'inputs.1'.*line 5.*is not an input"),
        (SHORT + "inputs: [1x4:floot32]\n", "did you mean 'float32'"),
        (SHORT + "inputs: 1x4\n", r"'inputs'.*line 3.*write \[1x4\]"),
        (SHORT + "finetune: 3\n", "'finetune'.*line 3.*not a mapping"),
        (SHORT + "finetune: {epochs: -1}\n", r"FineTune\(epochs=-1\) cannot be used"),
        (SHORT + "finetune: {loss: cross}\n", "did you mean 'cross_entropy'"),
        (SHORT + "a: [\n", "not valid YAML"),
        (SHORT + "exclude: &x [a]\nmodel: *x\n", "no aliases"),
        (SHORT + "data: !!python/object/apply:os.getcwd []\n", "not valid YAML.*line 3"),
        (SHORT + "weights: 2026-01-01\n", "text, finite numbers"),
        (SHORT.replace("0.5", ".nan"), "text, finite numbers"),
    ],
)
def test_bad_recipe_has_its_own_message(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.read(text)


def test_missing_file_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.load(tmp_path / "bytes.yaml")


def test_a_named_loss_is_imported_when_called() -> None:
    lost = recipe.NamedLoss("secateurs.base.loss:no_such_loss")
    with pytest.raises(Exception, match="has no 'no_such_loss'"):
        lost(1, 2)
    import torch

    same = recipe.NamedLoss("secateurs.base.loss:mse")(torch.ones(3), torch.zeros(3))
    assert float(same) == 1.0


def test_every_argument_of_prune_is_a_recipe_key_with_the_same_default() -> None:
    arguments = dict(signature(prune).parameters)
    of_python = {"model", "example_inputs", "kwargs"}  # `model` and `inputs` in a recipe
    of_the_run = {"folder", "on_stage"}  # where and how to tell, not what to do
    assert set(arguments) - of_python - of_the_run == set(recipe.Recipe.model_fields) - {
        "version",
        "from_python",
        "model",
        "weights",
        "inputs",
    }
    for name, field in recipe.Recipe.model_fields.items():
        if name in arguments and name not in of_python and not field.is_required():
            assert field.default == arguments[name].default, name
