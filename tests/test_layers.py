"""A room imports only from rooms above it: read from the source, also inside functions and `if TYPE_CHECKING`."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "secateurs"
ROOMS = (
    "base",
    "capture",
    "couple",
    "score",
    "cost",
    "device",
    "choose",
    "cut",
    "sparsity",
    "train",
    "pack",
    "kernels",
    "deliver",
    "report",
    "names",
    "prune",
    "recipe",
    "cli",
    "testing",
)
GUESTS = {"cli", "testing"}
"""Rooms that use the package by its public names, `import secateurs as sec`, and do not know each other."""

ABOVE_ALL = {"__init__", "__main__", "_version"}
"""The front door, which may import every room, and the version, which imports nothing."""


def imported(source: str, module: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that `module` (a path below the package's parent) imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module[: len(module) - node.level] if node.level else ()
            start = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def trespasses(package: Path) -> list[str]:
    """Every import of a later room, between the last two, or of the front door from a room that it stands on."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = (package.name, *path.relative_to(package).with_suffix("").parts)
        room = module[1]
        if room not in ROOMS:
            continue
        for line, name in imported(path.read_text(), module):
            top, _, rest = name.partition(".")
            if top == package.name and not allowed(room, rest.split(".")[0]):
                found.append(f"{path.relative_to(package)}:{line} imports {name}")
    return found


def allowed(room: str, target: str) -> bool:
    if target in {room, "_version", "__version__"}:
        return True
    if target not in ROOMS:
        return room in GUESTS
    return ROOMS.index(target) < ROOMS.index(room) and not {room, target} <= GUESTS


def test_no_room_imports_a_later_one() -> None:
    assert trespasses(PACKAGE) == []


def test_every_room_is_on_the_list() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - set(ROOMS) - ABOVE_ALL == set()


def test_the_import_contracts_name_the_same_order() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(contract for contract in settings["contracts"] if contract["id"] == "rooms")["layers"]
    highest_first = [name.strip(" ()") for layer in layers for name in layer.split("|")]
    assert {*highest_first[:2]} == {*ROOMS[-2:]}
    assert highest_first[2:] == list(reversed(ROOMS[:-2]))


@pytest.mark.parametrize(
    "statement",
    [
        "import secateurs.cut",
        "from secateurs import cut",
        "from secateurs.cut.slice import cut",
        "from ..cut import slice",
        "from .. import cut",
        "import secateurs",
        "from secateurs import capture_everything",
        "def later():\n    from secateurs.cut import slice",
    ],
)
def test_a_trespass_is_seen(tmp_path: Path, statement: str) -> None:
    room = tmp_path / "secateurs" / "score"
    room.mkdir(parents=True)
    (room / "l1.py").write_text(f"from secateurs.base import errors\nfrom . import l2\n{statement}\n")
    found = trespasses(tmp_path / "secateurs")
    assert len(found) == 1
    assert found[0].startswith(f"score/l1.py:{statement.count(chr(10)) + 3} imports secateurs")


@pytest.mark.parametrize("statement", ["import secateurs.base.errors", "from ..couple import group", "import torch"])
def test_an_import_from_above_is_fine(tmp_path: Path, statement: str) -> None:
    room = tmp_path / "secateurs" / "score"
    room.mkdir(parents=True)
    (room / "l1.py").write_text(f"{statement}\n")
    assert trespasses(tmp_path / "secateurs") == []


@pytest.mark.parametrize(
    ("room", "statement", "fine"),
    [
        ("cli", "import secateurs as sec", True),
        ("testing", "from secateurs import prune", True),
        ("prune", "from secateurs import cut_detailed", False),
        ("cli", "from secateurs.testing import oracle", False),
        ("testing", "import secateurs.cli", False),
    ],
)
def test_guests_use_the_front_door_and_not_each_other(tmp_path: Path, room: str, statement: str, fine: bool) -> None:
    (tmp_path / "secateurs").mkdir()
    (tmp_path / "secateurs" / f"{room}.py").write_text(f"{statement}\n")
    assert (trespasses(tmp_path / "secateurs") == []) is fine
