"""Randomness from one integer, without disturbing the caller's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from secateurs.base.errors import InputError, explain

SEEDS = 2**32
"""Seeds are integers in [0, SEEDS): NumPy's legacy generator takes no others."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block `random`, `numpy.random` and `torch` start from `seed`; afterwards they go on as if unused.

    Accelerators that are in use before the block are restored too; one that is not in use yet keeps the seed.
    Raises `InputError` when `seed` is not an integer in [0, 2**32).
    """
    check_seed(seed)
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def check_seed(seed: int) -> int:
    """The seed itself. Raises `InputError` when it is not an integer in [0, 2**32)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InputError(
            explain(
                f"{seed!r} is not a seed",
                next_step=f"give an integer from 0 to {SEEDS - 1}",
            )
        )
    return seed
