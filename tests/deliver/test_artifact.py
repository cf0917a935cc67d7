"""The artifact: what is loaded is what was saved, bit for bit, or it is refused with what, where, evidence and next."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from secateurs import recipe
from secateurs.base.errors import ArtifactError, InputError
from secateurs.base.files import WriteError
from secateurs.deliver.artifact import load, read_plan, read_report, save, stored_inputs
from secateurs.deliver.manifest import NAME, REQUIRED, sha256
from secateurs.report.result import Result


class Net(nn.Module):
    """A residual block, a concat and a head; `width` and `act` are what a caller may get wrong."""

    def __init__(self, width: int = 16, act: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.side = nn.Conv2d(width, 8, 1)
        self.head = nn.Linear(width + 8, 5)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.stem(x)))
        y = torch.cat([y + self.body(y), self.side(y)], 1)
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


class OtherNames(Net):
    """The same computation with one layer under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.flank = self.side
        del self.side

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.stem(x)))
        y = torch.cat([y + self.body(y), self.flank(y)], 1)
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def trained() -> Net:
    """A network whose every tensor is unlike a fresh one's."""
    torch.manual_seed(3)
    net = Net()
    net.train()
    for _ in range(3):
        net(torch.randn(4, 3, 8, 8))
    return net.eval()


@pytest.fixture(scope="module")
def result() -> Result:
    return sec.prune(trained(), IMAGE, budget=sec.Budget(macs=0.5))


@pytest.fixture(scope="module")
def other() -> Result:
    """Another result for the same place."""
    return sec.prune(trained(), IMAGE, budget=sec.Budget(macs=0.8))


@pytest.fixture
def folder(result: Result, tmp_path: Path) -> Path:
    return save(result, tmp_path / "artifact")


def test_loaded_model_is_bit_equal(result: Result, folder: Path) -> None:
    loaded = load(folder, build=Net)
    assert type(loaded) is Net
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), result.model.eval()(IMAGE))
    saved = result.model.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.state_dict().items())
    assert sec.count(loaded, IMAGE).macs == result.after.macs


def test_the_folder_says_everything(result: Result, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([*REQUIRED, NAME])
    assert read_plan(folder) == result.plan
    assert read_report(folder)["cost"]["macs"] == [result.before.macs, result.after.macs]
    asked = recipe.load(folder / "recipe.yaml")
    assert asked.budget == sec.Budget(macs=0.5)
    assert asked.inputs == ("2x3x8x8",)
    args, kwargs = stored_inputs(folder)
    assert [tuple(item.shape) for item in args] == [(2, 3, 8, 8)]
    assert kwargs == {}


def test_saving_again_replaces_and_saving_over_strangers_is_refused(
    result: Result, folder: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save(result, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    strangers = tmp_path / "home"
    strangers.mkdir()
    (strangers / "thesis.txt").write_text("mine")
    with pytest.raises(WriteError, match=r"thesis\.txt"):
        save(result, strangers)
    assert [path.name for path in strangers.iterdir()] == ["thesis.txt"]


def test_weights_of_the_built_model_do_not_matter_and_its_random_state_is_restored(
    result: Result, folder: Path
) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    one, other = load(folder, build=Net), load(folder, build=trained)
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():
        assert torch.equal(one(IMAGE), other(IMAGE))


def test_a_cut_model_can_be_cut_saved_and_loaded_again(result: Result, folder: Path, tmp_path: Path) -> None:
    second = sec.prune(load(folder, build=Net), IMAGE, budget=sec.Budget(macs=0.6))
    save(second, tmp_path / "second")
    loaded = load(tmp_path / "second", build=lambda: load(folder, build=Net))
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), second.model.eval()(IMAGE))
    with pytest.raises(ArtifactError, match="`stem.weight` was saved as"):
        load(tmp_path / "second", build=Net)


@pytest.mark.parametrize(
    ("build", "evidence"),
    [
        (lambda: Net(width=24), "`stem.weight` was saved as 16x3x3x3 float32 and is now 24x3x3x3 float32"),
        (lambda: Net(act=torch.tanh), "operator call .*relu.* is now .*tanh"),
        (OtherNames, "`side.weight` was saved as 8x16x1x1 float32 and the class has no such tensor"),
        (lambda: Net().double(), "`stem.weight` was saved as 16x3x3x3 float32 and is now 16x3x3x3 float64"),
    ],
)
def test_another_class_is_refused_naming_the_first_difference(
    folder: Path, build: Callable[[], nn.Module], evidence: str
) -> None:
    with pytest.raises(ArtifactError, match=f"does not fit the saved plan.*{evidence}.*Next:"):
        load(folder, build=build)


class Forked(Net):
    """Its path depends on its input's values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 1e4 else x.relu())


def test_a_recorded_run_asks_for_the_inputs_of_the_cut(tmp_path: Path) -> None:
    torch.manual_seed(3)
    bright = IMAGE + 100
    result = sec.prune(Forked().eval(), bright, budget=sec.Budget(macs=0.5))
    assert result.graph.how == "recorded"
    folder = save(result, tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="Next: pass the example inputs"):
        load(folder, build=Forked)
    with torch.no_grad():
        assert torch.equal(load(folder, Forked, bright)(bright), result.model.eval()(bright))


def test_what_is_not_a_factory_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="needs the class.*build=MyNet"):
        load(folder)
    with pytest.raises(InputError, match="returned a `int`"):
        load(folder, build=lambda: 3)  # type: ignore[arg-type, return-value]


@pytest.fixture(scope="module")
def program(result: Result) -> Result:
    """The same cut as a program: what is saved when the user's classes cannot take the smaller tensors."""
    made = sec.cut_detailed(result.original, result.plan, IMAGE, form="graph")
    assert made.form == "graph"
    return replace(result, model=made.model, form="graph")


def test_a_graph_form_loads_without_the_class(program: Result, tmp_path: Path) -> None:
    folder = save(program, tmp_path / "artifact")
    loaded = load(folder)
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), program.model.eval()(IMAGE))
        assert torch.equal(loaded(IMAGE[:1]), program.model(IMAGE[:1]))
    assert save(replace(program, model=loaded), tmp_path / "again")
    for name in ("model.safetensors", "graph.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"format": 1, "values": [], "leaves": [], "inputs": [], "nodes": [["os.system.x", [], {}, [], false, ""]]}',
    ],
)
def test_a_forged_program_is_refused(program: Result, tmp_path: Path, content: bytes) -> None:
    folder = save(program, tmp_path / "artifact")
    relisted(folder, "graph.json", content)
    with pytest.raises(ArtifactError, match="cannot be used"):
        load(folder)


def test_a_program_with_other_tensors_is_refused(program: Result, tmp_path: Path) -> None:
    folder = save(program, tmp_path / "artifact")
    text = json.loads((folder / "graph.json").read_text())
    text["leaves"][0][0] = "nobody.weight"
    relisted(folder, "graph.json", json.dumps(text).encode())
    with pytest.raises(ArtifactError, match=r"nobody\.weight"):
        load(folder)


def edited(folder: Path, **changes: object) -> None:
    """Writes other values into the manifest."""
    manifest = json.loads((folder / NAME).read_text())
    manifest.update(changes)
    (folder / NAME).write_text(json.dumps(manifest))


def relisted(folder: Path, name: str, text: bytes) -> None:
    """Replaces a file and makes the manifest agree with it, as a careful forger would."""
    (folder / name).write_bytes(text)
    manifest = json.loads((folder / NAME).read_text())
    manifest["files"][name] = {"bytes": len(text), "sha256": sha256(folder / name)}
    (folder / NAME).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", [*REQUIRED, NAME])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete", "grow"])
def test_any_damage_to_any_file_is_refused(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "delete":
        path.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :]
        path.write_bytes({"truncate": content[:middle], "flip": flipped, "empty": b"", "grow": content + b"}"}[damage])
    with pytest.raises(ArtifactError, match="Where: .*Evidence: .*Next: "):
        load(folder, build=Net)


@pytest.mark.parametrize("outside", ["../secret", "/etc/passwd", "..", "a/b", "..\\x", "", "notes.txt"])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(folder: Path, outside: str) -> None:
    (folder.parent / "secret").write_text("x")
    manifest = json.loads((folder / NAME).read_text())
    manifest["files"][outside] = {"bytes": 1, "sha256": "0"}
    edited(folder, files=manifest["files"])
    with pytest.raises(ArtifactError, match="names a file it must not name"):
        load(folder, build=Net)


def test_a_link_in_place_of_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "plan.json", tmp_path / "elsewhere.json")
    (folder / "plan.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ArtifactError, match="it is a link"):
        load(folder, build=Net)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format that this version does not know.*it says format 2"),
        ({"format": None}, "format that this version does not know"),
        ({"kind": "other"}, "not a Secateurs artifact"),
        ({"form": "pickle"}, "damaged"),
        ({"form": "graph"}, r"lists no `graph\.json`"),
        ({"files": []}, "damaged"),
        ({"files": {}}, "incomplete|lists no"),
        ({"files": {"plan.json": 3}}, "damaged"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    edited(folder, **changes)
    with pytest.raises(ArtifactError, match=message):
        load(folder, build=Net)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", b"{}"),
        ("plan.json", b"[" * 100_000),
        ("plan.json", b"\xff\xfe"),
        ("report.json", b"[]"),
        ("report.json", b"{}"),
        ("report.json", b'{"again": {"inputs": {"tensor": [[1], "code", 0]}, "signature": {}}}'),
        ("report.json", b'{"again": {"inputs": 7, "signature": {}}}'),
        ("model.safetensors", b"\xff" * 64),
        ("model.safetensors", (1 << 62).to_bytes(8, "little") + b"{}"),
    ],
)
def test_forged_content_with_a_matching_checksum_is_refused(folder: Path, name: str, content: bytes) -> None:
    relisted(folder, name, content)
    with pytest.raises(ArtifactError):
        load(folder, build=Net)


def test_a_forged_plan_cannot_make_a_wrong_model(folder: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    leaf, dims = next((leaf, dims) for leaf, dims in plan["removed"].items() if any(dims.values()))
    dim = next(dim for dim in dims if dims[dim])
    for forged in ([10**6], [-1], [], dims[dim][:-1]):
        changed = {**plan, "removed": {**plan["removed"], leaf: {**dims, dim: forged}}}
        relisted(folder, "plan.json", json.dumps(changed).encode())
        with pytest.raises(ArtifactError):
            load(folder, build=Net)


def test_folders_that_are_no_artifacts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        load(tmp_path / "nowhere", build=Net)
    with pytest.raises(ArtifactError, match=r"no `manifest\.json`"):
        load(tmp_path, build=Net)
    (tmp_path / NAME).write_bytes(b" " * 2_000_000)
    with pytest.raises(ArtifactError, match="2,000,000 bytes"):
        load(tmp_path, build=Net)


@contextmanager
def a_disk_that_fills(limit: int) -> Iterator[None]:
    """The operating system refuses every write past `limit` bytes of a file, as on a full disk."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old_limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)


@pytest.mark.parametrize("limit", [0, 500, 5000])
def test_a_full_disk_leaves_the_old_artifact(folder: Path, other: Result, limit: int) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with a_disk_that_fills(limit), pytest.raises(WriteError, match="could not be written"):
        save(other, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    load(folder, build=Net)
