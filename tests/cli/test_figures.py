"""`secateurs inspect --figures`: what it writes and lists, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateurs.cli import main

NET = ["inspect", "--model", "toy:Net", "--input", "2x1x6x6"]
WEIGHTS = ["first-filters", "first-dead", "second-dead", "scores"]
WITH_DATA = ["first-filters", "first-maps", "first-dead", "first-apoz", "second-maps", "second-dead", "second-apoz"]


@pytest.fixture(autouse=True)
def beside_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly")
    monkeypatch.chdir(Path(__file__).parent)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], WEIGHTS),
        (["--data", "toy:loader"], [*WITH_DATA, "scores"]),
        (["--layer", "head", "--data", "toy:loader", "--criterion", "mean_activation"], ["head-dead", "scores"]),
    ],
)
def test_the_page_and_its_pictures_are_listed(
    words: list[str], names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "figures.html"
    assert main([*NET, "--figures", str(page.parent), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == {"file": str(page), "pictures": names}
    text = page.read_text()
    assert [name for name in names if f"id='{name}-plot'" in text] == names
    assert [path.name for path in page.parent.iterdir()] == ["figures.html"]


def test_the_table_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NET, "--figures", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"figures.html: {', '.join(WEIGHTS)}" in shown


@pytest.mark.medium
def test_an_artifact_adds_its_channels_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = str(tmp_path / "made")
    assert main(["prune", *NET[1:], "--budget", "macs=0.7", "--out", made]) == 0
    assert main([*NET, "--figures", str(tmp_path), "--plan", made]) == 0
    assert "scores, widths" in " ".join(capsys.readouterr().out.split())
    assert "id='widths-plot'" in (tmp_path / "figures.html").read_text()
    other = [*NET[:-1], "2x1x8x8"]
    assert main([*other, "--figures", str(tmp_path / "other"), "--plan", made]) == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--plan", "made"], "--plan without --figures"),
        (["--data", "toy:loader"], "--data without --figures"),
        (["--layer", "first"], "--layer without --figures"),
        (["--figures", "there", "--layer", "frist"], "did you mean 'first'"),
        (["--figures", "there", "--criterion", "apoz"], "needs data"),
        (["--figures", "there", "--data", "toy:number"], "cannot be iterated"),
    ],
)
def test_what_is_refused(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NET, *words]) == 2
    assert why in " ".join(capsys.readouterr().err.split())
    assert not Path("there").exists()
