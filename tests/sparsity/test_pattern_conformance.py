"""Every registered pattern passes the suite that ships with the package."""

from __future__ import annotations

import pytest
import torch

from secateurs.sparsity import PATTERNS, Pattern, parse_pattern
from secateurs.sparsity.layout import Layout
from secateurs.testing.patterns import PatternConformance


class TestWeight(PatternConformance):
    pattern = "weight"


class TestVector(PatternConformance):
    pattern = "vector"


class TestKernel(PatternConformance):
    pattern = "kernel"


class TestFilter(PatternConformance):
    pattern = "filter"


class TestBlock(PatternConformance):
    pattern = "block(3,4)"


class TestRows(PatternConformance):
    pattern = "rows(4)"


class TestSimd(PatternConformance):
    pattern = "simd(4)"


class TestTwoOfFour(PatternConformance):
    pattern = "2:4"


class TestOneOfThreeOutputs(PatternConformance):
    pattern = "1:3(output)"


class TestStrided(PatternConformance):
    pattern = "strided(0,2)"


class TestStridedWithChosenStart(PatternConformance):
    pattern = "strided(*,2)"


@pytest.mark.parametrize("pattern", ["vector", "kernel", "filter"])
def test_of_a_matrix_the_patterns_of_kernels_leave_single_weights(pattern: str) -> None:
    for shape in ((8, 16), (7, 13), (1, 5), (5, 1)):
        for layout in (Layout(), Layout(transposed=True)):
            found, single = (parse_pattern(name).groups(shape, layout) for name in (pattern, "weight"))
            assert torch.equal(found.ids, single.ids) and found.count == single.count


def test_no_pattern_is_left_out() -> None:
    tested = {parse_pattern(suite.pattern).name for suite in PatternConformance.__subclasses__()}
    assert tested >= set(PATTERNS)
    assert all(issubclass(PATTERNS[name], Pattern) for name in PATTERNS)
