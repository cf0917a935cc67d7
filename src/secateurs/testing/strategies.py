"""Hypothesis strategies for random networks; hypothesis is imported when they are first asked for.

    @given(networks())
    def test(program): model, example_inputs = program.build()

They generate programs, not modules, so that hypothesis shrinks a failure to a few printable steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateurs.testing.networks import COMMON, INPUTS, OUTPUTS, WIRING, Program, Step, menu

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def steps() -> SearchStrategy[Step]:
    """One operator with its sources and choices; every value is a valid step of any program."""
    from hypothesis import strategies as st

    names = [*COMMON, *COMMON, *sorted(menu), *WIRING]
    return st.builds(
        Step,
        st.sampled_from(names),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        st.lists(st.integers(0, 11), max_size=6).map(tuple),
    )


def networks(*, max_steps: int = 7) -> SearchStrategy[Program]:
    """Programs of at most `max_steps` operators on one or two inputs; images more often than anything else."""
    from hypothesis import strategies as st

    images = ["image"] * len(INPUTS)
    return st.builds(
        Program,
        st.lists(st.sampled_from([*images, *sorted(INPUTS)]), min_size=1, max_size=2).map(tuple),
        st.lists(steps(), min_size=1, max_size=max_steps).map(tuple),
        st.sampled_from([*OUTPUTS[:1] * 3, *OUTPUTS]),
        st.integers(0, 99),
    )
