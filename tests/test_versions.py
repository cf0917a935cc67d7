"""The pinned versions satisfy the published ranges, and the pins name no place to download from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from secateurs._version import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.!]+)")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, Version]:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    matches = [PIN.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {canonical(match["name"]): Version(match["version"]) for match in matches if match}


def requirements() -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [requirement for text in texts if (requirement := Requirement(text)).name != "secateurs"]


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    pinned = pins()
    wrong = [
        str(requirement)
        for requirement in requirements()
        if canonical(requirement.name) not in pinned or pinned[canonical(requirement.name)] not in requirement.specifier
    ]
    assert wrong == []


def test_torch_has_a_closed_range() -> None:
    torch = next(requirement for requirement in requirements() if requirement.name == "torch")
    assert {specifier.operator for specifier in torch.specifier} == {">=", "<"}


def test_the_changelog_starts_with_what_is_next_or_this_version() -> None:
    assert str(Version(__version__)) == __version__
    headings = re.findall(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in {"Unreleased", __version__}
