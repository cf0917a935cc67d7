"""`package.module:attribute` finds what it names, and says what is nearest where it does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from secateurs.base.errors import InputError, SecateursError, UnknownNameError
from secateurs.base.reference import name_of, resolve


def test_names_and_things_are_inverse() -> None:
    for thing in (SecateursError, resolve, Path.home.__func__, SecateursError.__init__):  # type: ignore[attr-defined]
        name = name_of(thing)
        assert name is None or resolve(name) is thing
    assert name_of(SecateursError) == "secateurs.base.errors:SecateursError"
    assert resolve("pathlib:Path.cwd")() == Path.cwd()


def test_what_cannot_be_found_again_has_no_name() -> None:
    def local() -> None:
        pass

    class Local:
        pass

    assert [name_of(thing) for thing in (local, lambda: 3, Local, Local(), 3, None)] == [None] * 6


def test_the_current_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets_here.py").write_text("class Net: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert resolve("my_nets_here:Net").__name__ == "Net"
    with pytest.raises(UnknownNameError, match="did you mean 'Net'"):
        resolve("my_nets_here:Nett")


def test_a_module_that_fails_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken_nets.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match="cannot be imported.*ZeroDivisionError"):
        resolve("my_broken_nets:Net")
    with pytest.raises(InputError, match="cannot be imported.*ModuleNotFoundError"):
        resolve("no_such_module_here:Net")


@pytest.mark.parametrize("text", ["", ":", "a.b", "a:", ":b"])
def test_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="does not name code"):
        resolve(text)


def test_a_packed_file_in_the_place_of_code_is_told_where_to_go() -> None:
    with pytest.raises(InputError, match="unpack FILE --list"):
        resolve("net.sec")
    with pytest.raises(InputError, match=r"write package\.module:attribute\.$"):
        resolve("net")
