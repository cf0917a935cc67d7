"""A seed decides what is drawn inside, and nothing outside notices."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from secateurs.base.errors import InputError
from secateurs.base.seeds import seeded


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_seed_decides() -> None:
    with seeded(3):
        first = draw()
    with seeded(3):
        again = draw()
    with seeded(4):
        other = draw()
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_the_callers_generators_go_on_as_if_unused() -> None:
    with seeded(11):
        undisturbed = [draw() for _ in range(3)]
    with seeded(11):
        disturbed = [draw()]
        with seeded(5):
            draw()
        disturbed.append(draw())
        with pytest.raises(ZeroDivisionError), seeded(6):
            draw()
            raise ZeroDivisionError
        disturbed.append(draw())
    assert disturbed == undisturbed


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "7", None])
def test_what_is_no_seed_is_refused(seed: object) -> None:
    with pytest.raises(InputError, match="is not a seed.*0 to 4294967295"), seeded(seed):  # type: ignore[arg-type]
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_accelerators_are_restored_too() -> None:
    torch.cuda.init()
    before = torch.cuda.get_rng_state()
    with seeded(1):
        torch.rand(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
