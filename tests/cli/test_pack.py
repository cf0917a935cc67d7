"""`secateurs pack` and `unpack`: every option arrives in the file, and the file is what Python makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import toy
from safetensors.torch import load_file, save_file

import secateurs as sec
from secateurs.cli.app import main
from secateurs.pack.coded import Scaled, Shared
from secateurs.pack.container import read
from secateurs.testing.hostile import mutant

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def beside_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)


def joined(text: str) -> str:
    """Without the spaces, for the console breaks lines, and long paths anywhere."""
    return "".join(text.split())


def packed(path: Path, *options: str) -> bytes:
    assert main(["pack", "--model", "toy:Net", "--out", str(path), *options]) == 0
    return path.read_bytes()


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ((), {}),
        (("--share", "3"), {"share": 3}),
        (("--share", "default"), {"share": {"first": 8, "second": 8, "head": 5}}),
        (("--share", "first=4, head=2", "--biases", "8"), {"share": {"first": 4, "head": 2}, "biases": 8}),
        (("--int", "5", "--data", "toy:loader"), {"integers": 5, "data": True}),
        (("--bytes", "2.5KB"), {"bytes": 2500}),
    ],
    ids=str,
)
def test_options_are_those_of_python(options: tuple[str, ...], same: dict[str, Any], tmp_path: Path) -> None:
    if "data" in same:
        same = {**same, "data": toy.loader()}
    sec.pack(toy.Net().eval(), tmp_path / "python", **same)
    assert packed(tmp_path / "shell", *options) == (tmp_path / "python").read_bytes()


def test_the_codes_are_in_the_file(tmp_path: Path) -> None:
    packed(tmp_path / "file", "--share", "2", "--biases", "6")
    found = read(tmp_path / "file")
    assert isinstance(found.coded("second.weight").content, Shared)
    bias = found.coded("head.bias").content
    assert isinstance(bias, Scaled) and bias.bits == 6


def test_a_file_of_weights_without_any_code(tmp_path: Path) -> None:
    save_file(toy.Net().state_dict(), tmp_path / "net.safetensors")
    words = ["pack", "--weights", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "file"), "--share", "3"]
    assert main(words) == 0
    back = sec.unpack(tmp_path / "file", toy.Net)
    assert isinstance(back, toy.Net) and len(back.second.weight.unique()) == 8


def test_listing_reads_the_header_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A body that is damaged is still listed, and refused as soon as it is decoded."""
    data = bytearray(packed(tmp_path / "file", "--share", "3"))
    data[-1] ^= 1
    (tmp_path / "file").write_bytes(data)
    capsys.readouterr()
    assert main(["unpack", str(tmp_path / "file"), "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["bytes"] == len(data) == sum(row["bytes"] for row in listed["rows"])
    assert {row["name"]: row["form"] for row in listed["rows"]}["second.weight"] == "shared dense"
    assert main(["unpack", str(tmp_path / "file")]) == 2
    assert main(["unpack", str(tmp_path / "file"), "--list", "--out", "x"]) == 2


def test_a_limit_is_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed(tmp_path / "file")
    assert main(["unpack", str(tmp_path / "file"), "--limit", "1MB"]) == 0
    assert main(["unpack", str(tmp_path / "file"), "--limit", "10B"]) == 2
    assert "above the limit of 10 bytes" in " ".join(capsys.readouterr().err.split())
    assert main(["unpack", str(tmp_path / "file"), "--limit", "much"]) == 2


def test_unpacked_tensors_are_those_of_the_file(tmp_path: Path) -> None:
    packed(tmp_path / "file", "--int", "4")
    out = tmp_path / "net.safetensors"
    assert main(["unpack", str(tmp_path / "file"), "--out", str(out)]) == 0
    state = sec.unpack(tmp_path / "file")
    assert isinstance(state, dict)
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(out).items())


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["tensors", "program"])
def test_tampered_files_are_refused_in_a_message(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 or 2, as Python takes or refuses them, and never a traceback; eight files of each."""
    tried = {0: 0, 2: 0}
    for number in range(200):
        found = mutant(number, kind)
        (tmp_path / "file").write_bytes(found.data)
        try:
            sec.unpack(tmp_path / "file")
            expected = 0
        except sec.ArtifactError:
            expected = 2
        if tried[expected] < 8:
            tried[expected] += 1
            code = main(["unpack", str(tmp_path / "file"), "--out", str(tmp_path / "out")])
            shown = capsys.readouterr()
            assert code == expected and "Traceback" not in shown.err, f"mutant {number} ({found.label}): {shown.err}"
    assert tried == {0: 8, 2: 8}


def test_the_end_says_how_much_smaller_and_what_was_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 0
        return " ".join(capsys.readouterr().out.split())

    file, whole = (
        str(tmp_path / "file"),
        sum(item.numel() * item.element_size() for item in toy.Net().state_dict().values()),
    )
    size = len(packed(tmp_path / "file", "--share", "3"))
    times = f"{size:,} bytes, {whole / size:.2f} times smaller than the {whole:,} bytes of its tensors"
    assert times in said("pack", "--model", "toy:Net", "--out", file, "--share", "3")
    assert "gzip alone makes" in said("pack", "--model", "toy:Net", "--out", file, "--share", "3", "--gzip")
    checked = said("unpack", file, "--model", "toy:Net")
    assert times in checked and "decoded and are what their checksums say, and toy:Net takes them." in checked
    assert "Nothing was written" in checked
    assert "Nothing was written" not in said("unpack", file, "--out", str(tmp_path / "tensors"))
    listed = said("unpack", file, "--list")
    assert "Only the header was read" in listed and "checksums say" not in listed


def test_a_folder_of_sparsify_is_not_taken_for_an_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal names the file to give instead, and so does the end of `sparsify`; that command works."""
    folder = tmp_path / "sparse"
    assert main(["sparsify", "--model", "toy:Net", "--sparsity", "0.5", "--out", str(folder)]) == 0
    weights = f"--weights {folder / 'model.safetensors'}"
    assert joined(f"secateurs pack --model toy:Net {weights}") in joined(capsys.readouterr().out)
    assert main(["pack", str(folder), "--out", str(tmp_path / "file")]) == 2
    assert joined(f"give {weights}") in joined(capsys.readouterr().err)
    assert main(["pack", "--model", "toy:Net", *weights.split(), "--out", str(tmp_path / "file")]) == 0
    assert main(["sparsify", "--model", "toy:Net", "--sparsity", "0.5"]) == 0
    assert "Nothing was written: --out FOLDER" in capsys.readouterr().out
