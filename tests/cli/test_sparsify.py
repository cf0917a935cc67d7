"""The verbs `sensitivity` and `sparsify`: tables, JSON, files, and one feeding the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateurs as sec
from secateurs.cli import main

SCAN = ["sensitivity", "--model", "toy:Net", "--data", "toy:loader"]
SPARSE = ["sparsify", "--model", "toy:Net"]
TRAINED = ["--sparsity", "0.5", "--data", "toy:loader", "--epochs", "2"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def beside_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_scan_prints_what_the_library_finds(run: Run) -> None:
    import toy

    code, out, err = run(*SCAN, "--fractions", "0.5,0.9", "--tolerance", "0.2")
    assert code == 0
    assert "baseline" in err and "90% (2 of 2)" in err
    expected = sec.sensitivity(toy.Net(), data=toy.loader(), fractions=[0.5, 0.9], tolerance=0.2)
    assert out.split("\n\n")[1].strip() in "\n\n".join(str(expected).split("\n\n"))
    code, out, err = run(*SCAN, "--fractions", "0.5,0.9", "--tolerance", "0.2", "--json")
    found = json.loads(out)
    assert err == ""
    assert found["largest"] == expected.largest()
    assert {name: tuple(row) for name, row in found["metric"].items()} == expected.metric


def test_scan_by_a_function_and_of_channels(run: Run, tmp_path: Path) -> None:
    import toy

    words = ["sensitivity", "--model", "toy:Net", "--evaluate", "toy:bias", "--fractions", "0.5", "--only", "head"]
    found = json.loads(run(*words, "--json")[1])
    assert found["metric"] == {"head.weight": [pytest.approx(sec.sensitivity(
        toy.Net(), toy.bias, fractions=[0.5], only=["head"]).metric["head.weight"][0])]}  # fmt: skip
    table = tmp_path / "table.json"
    code, out, _ = run(*SCAN, "--pattern", "channel", "--record", "first_fail", "--out", table)
    assert code == 0 and "channels" in out
    assert "a guide to `secateurs prune`" in " ".join(out.split()) and "sparsify --targets" not in out


def test_scan_writes_a_table_that_sparsify_takes_and_curves(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    table, page = tmp_path / "table.json", tmp_path / "curves.html"
    code, out, _ = run(*SCAN, "--pattern", "rows(2)", "--tolerance", "0.5", "--out", table, "--figure", page)
    assert code == 0
    assert "Curves in" in out and "secateurs sparsify --targets" in " ".join(out.split())
    assert "plotly" in page.read_text()
    found = sec.Sensitivity.from_json(table.read_text())
    code, out, _ = run(*SPARSE, "--targets", table, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["asked"]["pattern"] == "rows(2)"
    assert report["asked"]["sparsity"] == found.targets(0.5)
    assert {layer["name"] for layer in report["layers"]} == set(found.targets())


def test_scan_goes_on_after_a_crash(run: Run, tmp_path: Path) -> None:
    words = [*SCAN, "--fractions", "0.5,0.9", "--folder", tmp_path, "--json"]
    first = run(*words)[1]
    assert (tmp_path / "sensitivity.jsonl").read_text().count("\n") > 3
    assert run(*words)[1] == first


def test_sparse_weights_have_the_original_s_keys_and_plus_zero(run: Run, tmp_path: Path) -> None:
    import toy

    code, out, _ = run(*SPARSE, "--sparsity", "0.75", "--exclude", "head", "--out", tmp_path / "s")
    assert code == 0
    state, dense = weights_of(tmp_path / "s"), toy.Net().state_dict()
    assert set(state) == set(dense)
    zeros = {name: tensor == 0 for name, tensor in state.items()}
    assert int(zeros["first.weight"].sum()) == 108 and int(zeros["second.weight"].sum()) == 2592
    assert not bool(zeros["head.weight"].any())
    for name, tensor in state.items():
        assert torch.equal(torch.where(zeros[name], dense[name], tensor), dense[name])
        assert not bool(torch.signbit(tensor[zeros[name]]).any())
    report = json.loads((tmp_path / "s" / "sparsity.json").read_text())
    zeros_in = [layer["name"] for layer in report["layers"]]
    assert [(layer["name"], layer["kept"]) for layer in report["layers"]] == [
        ("first.weight", 36),
        ("second.weight", 864),
    ]
    assert report["kept"] == 900 and report["weights"] == 3600
    assert "75.0% of 3,600 weights in 2 layers are zero" in out
    whole = {item["name"]: item["kind"] for item in report["whole"]}
    assert whole["head.weight"] == "weight" and set(whole) == set(dict(toy.Net().named_parameters())) - set(zeros_in)
    size = toy.Net().head.weight.numel()
    assert f"Left whole: {size:,} parameters of layers (head: excluded" in " ".join(out.split())
    assert "no network faster by themselves" in " ".join(out.split())
    assert f"{report['bytes']['packed']:,}" in out and f"{report['bytes']['gzip_packed']:,}" in out


def test_values_too_small_to_count_are_zeros_in_what_is_written(run: Run, tmp_path: Path) -> None:
    import toy

    state = toy.Net().state_dict()
    state["second.weight"][0] = 1e-40
    state["head.bias"][:] = torch.tensor([-0.0, -1e-39, 1e-37])
    save_file(state, tmp_path / "net.safetensors")
    words = [*SPARSE, "--weights", tmp_path / "net.safetensors"]
    code, _, _ = run(*words, "--sparsity", "0", "--out", tmp_path / "s")
    found = weights_of(tmp_path / "s")
    assert code == 0 and not bool(found["second.weight"][0].any())
    assert found["head.bias"].tolist() == [0, 0, pytest.approx(1e-37)]
    assert not bool(torch.signbit(found["head.bias"]).any())
    report = json.loads((tmp_path / "s" / "sparsity.json").read_text())
    assert {layer["name"]: layer["kept"] for layer in report["layers"]}["second.weight"] == 23 * 144


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--importance", "obd", "--data", "toy:loader"], {"importance": "obd"}),
        (["--importance", "taylor", "--data", "toy:loader"], {"importance": "taylor"}),
        (
            ["--importance", "obd", "--data", "toy:loader", "--option", "diagonal=gauss_newton"],
            {"importance": "obd", "options": {"diagonal": "gauss_newton"}},
        ),
        (["--importance", "random", "--seed", "3"], {"importance": "random", "seed": 3}),
    ],
)
def test_what_is_small_may_be_what_the_data_says(
    run: Run, tmp_path: Path, words: list[str], given: dict[str, Any]
) -> None:
    import toy

    code, _, err = run(*SPARSE, "--sparsity", "0.7", *words, "--out", tmp_path / "s", "--json")
    assert (code, err) == (0, "")
    if "--data" in words:
        given = {**given, "data": toy.loader()}
    state, masks = weights_of(tmp_path / "s"), sec.masks(toy.Net(), 0.7, **given)
    assert all(torch.equal(state[name] != 0, mask) for name, mask in masks.items())
    asked = json.loads((tmp_path / "s" / "sparsity.json").read_text())["asked"]
    assert (asked["importance"], asked["options"]) == (given["importance"], given.get("options", {}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--importance", "obd"], "'obd' needs data"),
        (["--importance", "apoz", "--data", "toy:loader"], "scores whole units"),
        (["--importance", "l1", "--data", "toy:loader"], "--data without --epochs"),
        (["--option", "diagonal=fisher"], "has no option 'diagonal'"),
    ],
)
def test_importances_that_cannot_be_used(run: Run, words: list[str], message: str) -> None:
    code, _, err = run(*SPARSE, "--sparsity", "0.7", *words)
    assert code == 2 and message in " ".join(err.split())


def test_sizes_are_those_of_gzip_and_of_pack(run: Run, tmp_path: Path) -> None:
    import toy

    out = run(*SPARSE, "--sparsity", "0.9", "--out", tmp_path / "s", "--json")[1]
    sizes = json.loads(out)["bytes"]
    pruned = toy.Net()
    pruned.load_state_dict(weights_of(tmp_path / "s"))
    ledger = sec.pack(pruned, tmp_path / "m.sec", gzip=True, original=toy.Net())
    assert sizes["packed"] == ledger.bytes == (tmp_path / "m.sec").stat().st_size
    assert ledger.baseline is not None
    assert (sizes["gzip_original"], sizes["gzip_packed"]) == (
        ledger.baseline.gzip_original,
        ledger.baseline.gzip_packed,
    )
    assert sizes["rate"] == pytest.approx(1 - sizes["gzip_packed"] / sizes["gzip_original"])


@pytest.mark.parametrize("schedule", ["one-shot", "gradual", "iterative"])
def test_training_moves_what_is_kept_and_nothing_else(schedule: str, run: Run, tmp_path: Path) -> None:
    import toy

    words = [*SPARSE, "--sparsity", "0.5", "--data", "toy:loader", "--epochs", "2", "--lr", "0.001"]
    words += ["--evaluate", "toy:bias", "--schedule", schedule]
    code, out, _ = run(*words, "--out", str(tmp_path / "s"), "--json")
    assert code == 0
    report, state, dense = json.loads(out), weights_of(tmp_path / "s"), toy.Net().state_dict()
    assert list(report["accuracy"]) == ["original", *(["sparse"] if schedule == "one-shot" else []), "fine-tuned"]
    assert [layer["kept"] for layer in report["layers"]] == [72, 1728, 36]
    assert not torch.equal(state["second.weight"][state["second.weight"] != 0],
                           dense["second.weight"][state["second.weight"] != 0])  # fmt: skip
    if schedule == "one-shot":
        masks = sec.masks(toy.Net(), 0.5)
        assert all(bool((state[name][~mask] == 0).all()) for name, mask in masks.items())


@pytest.mark.parametrize("regrow", ["random", "gradient"])
def test_regrowth_moves_zeros_and_keeps_their_count(regrow: str, run: Run, tmp_path: Path) -> None:
    import toy

    code, out, _ = run(*SPARSE, *TRAINED, "--lr", "0.001", "--regrow", regrow, "--out", str(tmp_path / "s"), "--json")
    assert code == 0
    state, masks = weights_of(tmp_path / "s"), sec.masks(toy.Net(), 0.5)
    for layer, mask in zip(json.loads(out)["layers"], masks.values(), strict=True):
        come_back = layer["kept"] / int(mask.sum())  # one at zero that gets no gradient stays there
        assert come_back == 1 if regrow == "gradient" else 0.9 < come_back <= 1
    moved = [bool((state[name][~mask] != 0).any()) for name, mask in masks.items()]
    assert any(moved)


def test_patterns_scopes_and_distributions_arrive(run: Run, tmp_path: Path) -> None:
    import toy

    def kept(*options: str) -> list[int]:
        return [layer["kept"] for layer in json.loads(run(*SPARSE, *options, "--json")[1])["layers"]]

    def expected(*args: Any, **options: Any) -> list[int]:
        return [int(mask.sum()) for mask in sec.masks(toy.Net(), *args, **options).values()]

    assert kept("--pattern", "2:4") == expected(pattern="2:4")
    assert kept("--sparsity", "0.5", "--scope", "global") == expected(0.5, scope="global")
    assert kept("--sparsity", "0.5", "--distribution", "erk") == expected(0.5, distribution="erk")
    assert kept("--sparsity", "0.5", "--pattern", "filter", "--importance", "l2") == expected(
        0.5, pattern="filter", importance="l2"
    )


def test_a_folder_that_holds_something_else_is_refused_before_the_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    code, _, err = run(*SPARSE, "--sparsity", "0.5", "--out", tmp_path)
    assert code == 2 and "mine.txt" in err and "build" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    code, _, _ = run(*SPARSE, "--sparsity", "0.5", "--out", tmp_path / "s")
    assert code == 0 and run(*SPARSE, "--sparsity", "0.6", "--out", tmp_path / "s")[0] == 0


def test_the_report_says_how_it_was_made(run: Run, tmp_path: Path) -> None:
    """Everything that decides the result, and MACs of one image: of the data's first row, or of --input."""
    import toy

    words = [*SPARSE, *TRAINED, "--lr", "0.002", "--l2", "5e-4", "--seed", "3", "--regrow", "random"]
    assert run(*words, "--out", tmp_path / "s")[0] == 0
    report = json.loads((tmp_path / "s" / "sparsity.json").read_text())
    assert (report["seed"], report["data"], report["model"]) == (3, "toy:loader", "toy:Net")
    made = report["training"]
    assert (made["zeros"], made["regrow"], made["epochs"], made["lr"]) == ("one-shot", "random", 2, 0.002)
    assert (made["weight_decay"], made["penalty"], made["seed"], made["optimizer"]) == (5e-4, None, 3, "sgd")
    again = sec.Sparsity(0.5, schedule=sec.Constant(0, "75%", "2%"), update=sec.RandomRegrowth("75%"))
    assert sec.Sparsity.from_plain(made["sparsity"]) == again
    sparse = toy.Net().eval()
    sparse.load_state_dict(weights_of(tmp_path / "s"))
    counted = sec.cost.effective_macs(sparse, torch.zeros(1, 1, 6, 6))
    assert report["macs"] == counted.total.to_json() and report["macs"]["speed_up"] > 1.9
    assert [layer["macs"] for layer in report["layers"]] == [
        counted.weights[name].to_json() for name in ("first.weight", "second.weight", "head.weight")
    ]
    assert report["compression"] == report["parameters"] / report["nonzero"]


def test_macs_of_given_shapes_or_none(run: Run) -> None:
    report = json.loads(run(*SPARSE, "--sparsity", "0.5", "--json")[1])
    assert (report["macs"], report["training"]) == (None, None)
    assert all(layer["macs"] is None for layer in report["layers"])
    code, out, _ = run(*SPARSE, "--sparsity", "0.5", "--input", "1x1x6x6")
    dense = 36 * (9 * 16 + 9 * 16 * 24) + 72
    assert code == 0 and f"{dense:,} MACs {dense // 2:,} are by weights" in " ".join(out.split())
    code, out, err = run(*SPARSE, "--sparsity", "0.5", "--input", "1x2x6x6")
    assert code == 2 and "pack" not in err


def test_l1_and_l2_arrive_in_the_training(run: Run, tmp_path: Path) -> None:
    import toy

    for words, more in (
        (["--l2", "0.1"], {"weight_decay": 0.1}),
        (["--l1", "0.001"], {"penalty": sec.Penalty(kind="l1", strength=0.001)}),
    ):
        assert run(*SPARSE, *TRAINED, "--lr", "0.001", *words, "--out", tmp_path / "s")[0] == 0
        model = toy.Net().eval()
        sec.sparsify(model, 0.5).detach()
        held = sec.Sparsity(hold_zeros=True)
        config = sec.FineTune(epochs=2, lr=0.001, sparsity=held, progress=False, **more)
        expected = sec.finetune(model, toy.loader(), config).model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(tmp_path / "s").items())
    code, _, err = run(*SPARSE, "--sparsity", "0.5", "--l1", "0.1")
    assert code == 2 and "--l1 without --epochs" in " ".join(err.split())


def test_max_drop_decides_the_exit_code(run: Run) -> None:
    words = [*SPARSE, "--sparsity", "0.9", "--evaluate", "toy:bias"]
    code, out, _ = run(*words, "--max-drop", "100")
    assert code == 0 and "within 100" in out and "NOT" not in out
    code, out, _ = run(*words, "--max-drop", "0.1")
    assert code == 1 and "NOT within 0.1" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sparsity", "1.5"], "below 1"),
        ([], "give `sparsity`"),
        (["--sparsity", "0.5", "--pattern", "2:4"], "fixes it"),
        (["--sparsity", "0.5", "--tolerance", "0.1"], "--tolerance without --targets"),
        (["--sparsity", "0.5", "--epochs", "1"], "no data"),
        (["--sparsity", "0.5", "--lr", "0.1"], "--lr without --epochs"),
        (["--sparsity", "0.5", "--max-drop", "0.1"], "--max-drop without --evaluate"),
        (["--sparsity", "0.5", "--schedule", "sudden"], "--schedule without --epochs"),
        ([*TRAINED, "--schedule", "sudden"], "one of one-shot, gradual, iterative"),
        ([*TRAINED, "--regrow", "all"], "one of random, gradient"),
        ([*TRAINED, "--regrow", "random", "--schedule", "gradual"], "their count stays"),
        ([*TRAINED, "--regrow", "random", "--pattern", "filter"], "single weights"),
        (["--sparsity", "0.5", "--regrow", "random"], "--regrow without --epochs"),
        (["--sparsity", "0.5", "--pattern", "rows"], "rows"),
        (["--targets", "none.json"], "no file"),
    ],
)
def test_refusals(words: list[str], says: str, run: Run) -> None:
    code, _, err = run(*SPARSE, *words)
    assert code == 2
    assert says in " ".join(err.split())


def test_a_table_that_does_not_fit_is_refused(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "table.json"

    def stored(pattern: str, **metric: tuple[float, ...]) -> None:
        rows = {f"{name}.weight": row for name, row in metric.items()}
        table.write_text(sec.Sensitivity(pattern, (0.5,), 0.9, rows, tolerance=0.05).to_json())

    stored("weight", first=(0.9,))
    assert run(*SPARSE, "--targets", table)[0] == 0
    for words in (["--sparsity", "0.5"], ["--pattern", "filter"]):
        assert run(*SPARSE, "--targets", table, *words)[0] == 2
    stored("weight", first=(0.1,))
    code, _, err = run(*SPARSE, "--targets", table)
    assert code == 2 and "No layer bears" in err
    assert run(*SPARSE, "--targets", table, "--tolerance", "0.9")[0] == 0
    stored("channel", first=(0.9,))
    assert run(*SPARSE, "--targets", table)[0] == 2
    table.write_text("{}")
    code, _, err = run(*SPARSE, "--targets", table)
    assert code == 2 and "not a sensitivity table" in err
    code, _, err = run(*SCAN, "--fractions", "0.5,much")
    assert code == 2 and "no list of numbers" in err
