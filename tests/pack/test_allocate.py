"""Bits within a budget of bytes: by hand, against every choice there is, and at the size of real networks."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateurs.base.errors import BudgetError, InputError
from secateurs.pack import allocate as module
from secateurs.pack.allocate import Candidate, allocate

CANDIDATES = st.lists(
    st.builds(Candidate, st.integers(1, 8), st.integers(-20, 99).map(float), st.integers(0, 30)), min_size=1, max_size=4
)


def test_by_hand() -> None:
    one = [Candidate(2, 9.0, 10), Candidate(4, 3.0, 20), Candidate(8, 0.0, 40)]
    two = [Candidate(2, 5.0, 10), Candidate(4, 1.0, 20), Candidate(8, 0.5, 40)]
    assert allocate({"a": one, "b": two}, 39).bits == {"a": 4, "b": 2}
    found = allocate({"a": one, "b": two}, 60)
    assert found.bits == {"a": 8, "b": 4} and (found.error, found.bytes, found.exact) == (1.0, 60, True)
    assert allocate({"a": one, "b": two}, 1000).bits == {"a": 8, "b": 8}


def test_what_the_hull_misses() -> None:
    """By gain per byte the first step is that of b, after which a does not fit: the best is a alone."""
    lists = {"a": [Candidate(0, 10.0, 0), Candidate(1, 0.0, 10)], "b": [Candidate(0, 2.0, 0), Candidate(1, 0.0, 1)]}
    assert allocate(lists, 10).bits == {"a": 1, "b": 0}


@given(st.lists(CANDIDATES, min_size=1, max_size=5), st.integers(0, 150))
def test_no_choice_is_better(lists: list[list[Candidate]], budget: int) -> None:
    fitting = [picks for picks in product(*lists) if sum(item.bytes for item in picks) <= budget]
    named = {f"t{index}": listed for index, listed in enumerate(lists)}
    if not fitting:
        with pytest.raises(BudgetError, match="smallest candidates take"):
            allocate(named, budget)
        return
    found = allocate(named, budget)
    assert found.error == min(sum(item.error for item in picks) for picks in fitting) == found.bound
    assert list(found.choice) == list(named)
    assert found.bytes == sum(item.bytes for item in found.choice.values()) <= budget
    assert all(found.choice[name] in named[name] for name in named) and found.exact


def networklike(tensors: int, seed: int = 0) -> dict[str, list[Candidate]]:
    """Errors that fall about fourfold with each bit, sizes over three orders."""
    random = np.random.default_rng(seed)
    sizes = 10 ** random.uniform(2, 5, tensors)
    return {
        f"t{index}": [
            Candidate(bits, float(size * 4.0**-bits * random.uniform(0.5, 2)), int(size * bits / 8) + 4 * 2**bits)
            for bits in range(2, 9)
        ]
        for index, size in enumerate(sizes)
    }


def test_a_network_is_solved_exactly() -> None:
    lists = networklike(100)
    budget = int(sum(listed[3].bytes for listed in lists.values()) * 0.93)
    found = allocate(lists, budget)
    assert found.exact and 0.999 * budget <= found.bytes <= budget
    even = sum(listed[2].error for listed in lists.values())
    assert found.error < 0.9 * even


@pytest.mark.parametrize("seed", range(8))
def test_too_many_states_are_owned_up_to(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    lists = networklike(30, seed)
    budget = int(sum(listed[3].bytes for listed in lists.values()) * 0.93)
    best = allocate(lists, budget)
    monkeypatch.setattr(module, "STATES", 1)
    found = allocate(lists, budget)
    assert not found.exact and found.bound <= best.error <= found.error and found.bytes <= budget


def test_no_tensors() -> None:
    assert allocate({}, 0).bits == {}


def test_refusals() -> None:
    with pytest.raises(InputError, match="no candidates"):
        allocate({"a": []}, 5)
    with pytest.raises(InputError, match="finite"):
        allocate({"a": [Candidate(2, float("nan"), 1)]}, 5)
