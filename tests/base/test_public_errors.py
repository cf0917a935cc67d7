"""Whatever Secateurs raises on purpose can be caught by a public name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import secateurs as sec


def _below(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _below(child)


def test_every_error_class_of_the_package_is_public() -> None:
    for module in pkgutil.walk_packages(sec.__path__, "secateurs."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = {kind for kind in _below(sec.SecateursError) if kind.__module__.startswith("secateurs.")}
    assert len(ours) > 10
    for kind in ours:
        assert kind.__name__ in sec.__all__
        assert getattr(sec, kind.__name__) is kind


def test_every_public_name_is_there() -> None:
    assert all(hasattr(sec, name) for name in sec.__all__)
    assert len(set(sec.__all__)) == len(sec.__all__)
