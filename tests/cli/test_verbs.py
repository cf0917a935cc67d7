"""Every verb: what it prints, its JSON, its exit code; a refusal is one clean message."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import secateurs as sec
from secateurs.cli import main
from secateurs.names import families, spelled
from secateurs.sparsity import parse_pattern

INPUT = ["--input", "1x1x6x6"]
HALF = ["prune", "--model", "toy:Net", *INPUT, "--budget", "macs=0.5"]


@pytest.fixture(autouse=True)
def beside_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command: exit code, standard output, standard error."""

    def command(*words: str) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def artifact(run: Run, tmp_path: Path) -> Path:
    code, _, err = run(*HALF, "--out", tmp_path / "cut")
    assert code == 0, err
    return tmp_path / "cut"


def parsed(text: str) -> Any:
    return json.loads(text)


def test_inspect_prints_groups_reasons_and_macs(run: Run) -> None:
    code, out, _ = run("inspect", "--model", "toy:Net", *INPUT)
    assert code == 0
    assert "5,184 " in out  # 1 * 16 * 9 * 36 for the first convolution
    assert "124,416" in out  # 16 * 24 * 9 * 36 for the second
    assert "stayed whole" in out and "the model returns it" in out


def test_inspect_json_counts_what_count_counts(run: Run) -> None:
    import toy

    code, out, _ = run("inspect", "--model", "toy:Net", *INPUT, "--json")
    data = parsed(out)
    assert code == 0
    assert data["totals"]["macs"] == 5_184 + 124_416 + 24 * 3
    assert data["totals"]["params"] == sum(parameter.numel() for parameter in toy.Net().parameters())
    assert {group["size"] for group in data["groups"] if group["frozen"] is None} == {16, 24}
    assert all(group["frozen"] for group in data["groups"] if group["size"] in (1, 3))


def test_inspect_exclude_freezes(run: Run) -> None:
    _, out, _ = run("inspect", "--model", "toy:Net", *INPUT, "--exclude", "second", "--json")
    assert {group["size"] for group in parsed(out)["groups"] if group["frozen"] is None} == {16}


def test_prune_writes_an_artifact_that_loads(artifact: Path) -> None:
    import torch
    import toy

    loaded = sec.load(artifact, build=toy.Net)
    macs = sec.count(loaded, torch.zeros(1, 1, 6, 6)).macs
    assert macs <= (5_184 + 124_416 + 24 * 3) / 2


def test_prune_tells_the_story_and_json_tells_the_same(run: Run) -> None:
    code, out, err = run(*HALF)
    assert code == 0
    assert "Budget met" in out and "Reproduce" in out
    assert "capture" in err and "capture" not in out
    code, out, err = run(*HALF, "--json", "--granularity", "4")
    data = parsed(out)
    assert (code, err) == (0, "")
    assert data["met"] is True
    assert all(layer["after"] % 4 == 0 for layer in data["layers"] if layer["after"] < layer["before"])


def test_prune_from_a_recipe_equals_prune_from_options(run: Run, tmp_path: Path) -> None:
    (tmp_path / "half.yaml").write_text("version: 1\nmodel: toy:Net\ninputs: [1x1x6x6]\nbudget: {macs: 0.5}\n")
    _, from_options, _ = run(*HALF, "--json")
    _, from_recipe, _ = run("prune", "--recipe", tmp_path / "half.yaml", "--json")
    assert parsed(from_recipe)["layers"] == parsed(from_options)["layers"]


def test_the_recipe_in_an_artifact_gives_the_same_cut_again(run: Run, artifact: Path, tmp_path: Path) -> None:
    code, _, err = run("prune", "--recipe", artifact / "recipe.yaml", "--out", tmp_path / "again")
    assert code == 0, err
    for name in ("plan.json", "model.safetensors", "recipe.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (artifact / name).read_bytes()


def test_prune_with_weights_data_and_metric(run: Run, tmp_path: Path) -> None:
    import toy

    net = toy.Net()
    save_file({name: tensor + 1 for name, tensor in net.state_dict().items()}, tmp_path / "w.safetensors")
    code, out, err = run(
        *HALF, "--weights", tmp_path / "w.safetensors", "--data", "toy:loader", "--evaluate", "toy:bias", "--json"
    )
    assert code == 0, err
    accuracy = parsed(out)["accuracy"]
    assert list(accuracy) == ["original", "cut", "recalibrated"]
    assert accuracy["original"] != toy.bias(net)


@pytest.mark.medium
def test_export_and_measure_an_artifact(run: Run, artifact: Path, tmp_path: Path) -> None:
    import onnxruntime

    code, out, err = run("export", artifact, "--model", "toy:Net", "--out", tmp_path / "m.onnx", "--json")
    assert code == 0, err
    assert parsed(out)["bytes"] == (tmp_path / "m.onnx").stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [1, 6, 6]
    code, out, err = run("measure", artifact, "--model", "toy:Net", "--device", "torch", "--rounds", "6", "--json")
    assert code == 0, err
    assert parsed(out)["speedup"] > 0
    code, out, _ = run("measure", "--model", "toy:Net", *INPUT, "--device", "torch", "--rounds", "6")
    assert code == 0
    assert "median" in out


def test_list_knows_every_kind(run: Run) -> None:
    code, out, _ = run("list", "--json")
    names = parsed(out)
    assert code == 0
    assert {"l1", "l2", "random"} <= set(names["criteria"])
    assert {"torch", "onnxruntime"} <= set(names["devices"])
    assert {"global", "uniform"} <= set(names["searches"])
    code, out, _ = run("list", "criteria")
    assert "l1" in out and "onnxruntime" not in out


def test_list_ops_is_flat_as_json_and_by_family_on_the_screen(run: Run) -> None:
    _, out, _ = run("list", "ops", "--json")
    assert parsed(out) == {"ops": sec.list("ops")}
    by_family = families()
    assert sorted(name for items in by_family.values() for name in items) == sec.list("ops")
    assert "aten.conv2d" in by_family["convolution"] and "aten.relu" in by_family["elementwise"]
    code, out, _ = run("list", "ops")
    assert code == 0
    assert {name.removeprefix("aten.") for name in sec.list("ops")} <= set(out.split())
    code, out, _ = run("list")
    assert code == 0 and len(out.splitlines()) < 16  # all kinds: a screen
    assert f"{len(sec.list('ops'))} operators" in out


REFUSALS = [
    (["prune", *INPUT, "--budget", "macs=0.5"], "names no model"),
    (["prune", "--model", "toy:Net", *INPUT], "budget is empty"),
    ([*HALF[:-1], "mac=0.5"], "'mac=0.5' is not a limit"),
    ([*HALF[:-1], "macs=half"], "'macs=half' is not a limit"),
    ([*HALF[:-1], "macs=inf"], "'macs=inf' is not a limit"),
    ([*HALF[:-1], "macs=1e999"], "is not a limit"),
    ([*HALF[:-1], "macs=0.0001"], "Refused"),
    (["prune", "--model", "toy:Net", "--budget", "macs=0.5"], "input is not given"),
    ([*HALF, "--criterion", "l3"], "did you mean"),
    ([*HALF, "--search", "globl"], "did you mean 'global'"),
    ([*HALF, "--device", "onnx"], "did you mean"),
    ([*HALF, "--weights", "none.safetensors"], "no file `none.safetensors`"),
    ([*HALF, "--data", "toy:number"], "cannot be iterated"),
    ([*HALF, "--evaluate", "toy:number"], "not a function"),
    ([*HALF, "--epochs", "2"], "needs data"),
    ([*HALF, "--lr", "0.1"], "--lr without --epochs"),
    ([*HALF, "--checkpoints", "x"], "--checkpoints without --epochs"),
    ([*HALF, "--budget", "macs=0.2"], "limits macs twice"),
    (["prune", "--model", "toy.Net", *INPUT, "--budget", "macs=0.5"], "write package.module:attribute"),
    (["inspect", "--model", "toy:Net", "--input", "0x1x6x6"], "without elements"),
    (["measure", "nowhere", "--weights", "x.safetensors"], "holds its own weights"),
    ([*HALF, "--recipe", "none.yaml"], "Both a recipe and a request"),
    (["prune", "--recipe", "none.yaml", "--criterion", "l1"], "beside --recipe: --criterion"),
    (["prune", "--recipe", "none.yaml"], "cannot be read"),
    (["inspect", "--model", "toy:Nets", *INPUT], "did you mean 'Net'"),
    (["inspect", "--model", "toys:Net", *INPUT], "cannot be imported"),
    (["inspect", "--model", "toy", *INPUT], "does not name code"),
    (["inspect", "--model", "toy:broken", *INPUT], "no weights here"),
    (["inspect", "--model", "toy:loader", *INPUT], "it gave a list"),
    (["inspect", "--model", "toy:Net", "--input", "1x3x6x6"], "Refused"),
    (["prune", "--model", "toy:frozen", *INPUT, "--budget", "macs=0.5"], "Refused"),
    (["export", "--out", "x.onnx"], "No model is named"),
    (["export", "nowhere", "--out", "x.onnx"], "not a Secateurs artifact"),
    (["measure", "--model", "toy:Net", *INPUT, "--device", "gpu9"], "no device named 'gpu9'"),
    (["pack", "--out", "x.sec"], "Nothing to pack is named"),
    (["pack", "nowhere", "--weights", "x", "--out", "x.sec"], "holds its own weights"),
    (["pack", "--model", "toy:Net", "--out", "x.sec", "--share", "five"], "--share 'five' is no number of bits"),
    (["pack", "--model", "toy:Net", "--out", "x.sec", "--share", "5", "--int", "8"], "not by share and integers"),
    (["pack", "--model", "toy:Net", "--out", "x.sec", "--bytes", "1KB"], "smallest codes make one of"),
    (["pack", "--model", "toy:Net", "--out", "x.sec", "--bytes", "1 apple"], "is not a number of bytes"),
    (["pack", "--model", "toy:Net", "--out", "x.sec", "--int", "frist=8"], "No weight is named 'frist'"),
    (["unpack", "none.sec"], "no file `none.sec`"),
    (["unpack", "toy.py"], "not a sound packed model"),
    (["list", "criterions"], "did you mean 'criteria'"),
]


@pytest.mark.parametrize(("words", "message"), REFUSALS, ids=[" ".join(words)[-50:] for words, _ in REFUSALS])
def test_refusals_exit_2_with_one_clean_message(run: Run, words: list[str], message: str) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""


def test_refusal_as_json_and_with_debug(run: Run) -> None:
    code, out, _ = run("prune", "--model", "toy:Net", "--json")
    assert code == 2
    assert parsed(out)["kind"] == "BudgetError"
    code, _, err = run("prune", "--model", "toy:Net", "--debug")
    assert code == 2
    assert "Traceback" in err and "budget is empty" in err


def test_an_error_of_the_users_own_keeps_its_traceback_and_is_not_budget_not_met(run: Run) -> None:
    code, out, err = run(*HALF, "--evaluate", "toy:broken")
    assert code == 3
    assert "Traceback" in err and "takes 0 positional arguments" in err
    assert out == ""


def test_a_cut_that_rounding_leaves_over_the_budget_exits_1(run: Run) -> None:
    words = ["prune", "--model", "toy:Net", *INPUT, "--budget", "channels=0.3", "--granularity", "16"]
    code, out, _ = run(*words)
    assert code == 1
    assert "Budget NOT met: channels <= 30% of the original; " in out and "keeps 16 of 24" in " ".join(out.split())
    code, out, _ = run(*words, "--json")
    assert code == 1
    assert parsed(out)["met"] is False and parsed(out)["over"]


def test_wrong_options_exit_2(run: Run) -> None:
    code, _, err = run("prune", "--modle", "toy:Net")
    assert code == 2
    assert "--model" in err
    assert run("proon")[0] == 2


@pytest.mark.medium
def test_output_that_nobody_reads_is_not_a_budget_that_is_not_met() -> None:
    command = [sys.executable, "-m", "secateurs.cli", "list", "ops"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=120) == 141
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.medium
def test_version_and_the_command_itself() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "secateurs.cli", "--version"], capture_output=True, text=True, check=True, timeout=120
    )
    assert shown.stdout.strip() == f"secateurs {sec.__version__}"


def test_a_place_that_cannot_take_the_artifact_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    code, out, err = run(*HALF, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "would be lost" in err and "capture" not in err


def test_list_patterns_shows_how_each_is_written(run: Run) -> None:
    code, out, _ = run("list", "patterns")
    assert code == 0
    assert {"rows(4)", "simd(8)", "block(4,4)", "2:4", "strided(*,2)", "weight"} <= set(out.split())
    assert all(sec.masks(torch.nn.Conv2d(8, 8, 3), share(text), pattern=text) for text in spelled())
    assert parsed(run("list", "patterns", "--json")[1]) == {"patterns": sec.list("patterns")}


def share(text: str) -> float | None:
    return None if parse_pattern(text).decides else 0.5
