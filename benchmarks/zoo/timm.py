"""One small variant of every timm model family (each module of `timm.models` that defines an entrypoint).

The variant is the one with the fewest parameters, timm's own `test_*` models left out; the image side is the smallest
of `SIDES` that the variant accepts, or its default where that is fixed. `python -m benchmarks.zoo.timm` makes these
choices anew and writes them to `timm.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import operators
from benchmarks.zoo.entry import Entry, Inputs, tensors

CHOICES = Path(__file__).with_suffix(".json")
SIDES = (64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 512)


def entries() -> Iterator[Entry]:
    """One entry per family, named `family/variant`."""
    operators.provide()
    for family, choice in json.loads(CHOICES.read_text())["families"].items():
        side = choice["side"]
        yield Entry("timm", "family", f"{family}/{choice['model']}", _make(choice["model"]), _images(side))


def _make(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)

    return make


def _images(side: int) -> Callable[[], Inputs]:
    return lambda: Inputs((torch.randn(1, 3, side, side),))


def choose() -> dict[str, Any]:
    """The choice for every family that the installed timm registers."""
    operators.provide()
    import timm
    from timm.models import _registry

    known = {family: names - set(_registry._deprecated_models) for family, names in _registry._module_to_models.items()}
    return {"timm": timm.__version__, "families": {family: _choose_one(known[family]) for family in sorted(known)}}


def _choose_one(names: set[str]) -> dict[str, Any]:
    sizes = {name: _parameters(name) for name in names if not name.startswith("test_")}
    for name in sorted(sizes, key=lambda item: (sizes[item], item)):
        side = _smallest_side(name)
        if side is not None:
            return {"model": name, "parameters": sizes[name], "side": side}
    raise RuntimeError(f"no variant runs on a square image: {sorted(names)}")


def _parameters(name: str) -> int:
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except (RuntimeError, NotImplementedError):
        model = timm.create_model(name, pretrained=False)
    return sum(parameter.numel() for parameter in model.parameters())


def _smallest_side(name: str) -> int | None:
    """The smallest side that the model runs on; None when it runs on none."""
    import timm

    model = timm.create_model(name, pretrained=False).eval()
    given = model.pretrained_cfg
    default = given["input_size"][-1]
    sides = [] if given.get("fixed_input_size") else [side for side in SIDES if side < default]
    for side in [*sides, default]:
        try:
            with torch.no_grad():
                outputs = list(tensors(model(torch.randn(1, 3, side, side))))
        except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError):
            continue
        if all(bool(output.isfinite().all()) for output in outputs):
            return int(side)
    return None


if __name__ == "__main__":
    CHOICES.write_text(json.dumps(choose(), indent=1) + "\n")
