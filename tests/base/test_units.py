"""Quantities are read and printed the way people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateurs.base.errors import InputError
from secateurs.base.units import BYTES, COUNT, ENERGY, TIME, Unit

UNITS = [COUNT, BYTES, TIME, ENERGY]


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        (TIME, "20ms", 0.020),
        (TIME, " 1.5 us ", 1.5e-6),
        (TIME, "3µs", 3e-6),
        (TIME, "2", 2),
        (BYTES, "300 KB", 300_000),
        (BYTES, "300 kB", 300_000),
        (BYTES, "4KiB", 4096),
        (BYTES, "1,048,576", 1_048_576),
        (BYTES, "1_000 B", 1000),
        (COUNT, "1.23 M", 1_230_000),
        (COUNT, "4.1G", 4.1e9),
        (COUNT, ".5k", 500),
        (COUNT, "1e6", 1e6),
        (ENERGY, "5 mJ", 0.005),
        (ENERGY, "2.5e-3J", 0.0025),
    ],
)
def test_parse(unit: Unit, text: str, value: float) -> None:
    assert unit.parse(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        (COUNT, 1_234_567, "1.23 M"),
        (COUNT, 999_999, "1 M"),
        (COUNT, 999, "999"),
        (COUNT, 0, "0"),
        (COUNT, -4096, "-4.1 k"),
        (COUNT, 4.09e15, "4,090 T"),
        (BYTES, 300_000, "300 KB"),
        (BYTES, 512, "512 B"),
        (TIME, 0.02, "20 ms"),
        (TIME, 5e-5, "50 us"),
        (TIME, 0, "0 ns"),
        (TIME, 75, "75 s"),
        (ENERGY, 0.0051234, "5.12 mJ"),
    ],
)
def test_format(unit: Unit, value: float, text: str) -> None:
    assert unit.format(value) == text


@given(unit=st.sampled_from(UNITS), value=st.floats(1e-9, 1e15))
def test_what_is_printed_reads_back_to_three_digits(unit: Unit, value: float) -> None:
    smallest = min(unit.symbols.values())
    assert math.isclose(unit.parse(unit.format(value)), value, rel_tol=0.00501, abs_tol=0.005 * smallest)


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        (TIME, "20 parsecs"),
        (TIME, "ms"),
        (TIME, "-3 ms"),
        (TIME, ""),
        (BYTES, "300 KBit"),
        (BYTES, "1 2 KB"),
        (COUNT, "inf"),
        (COUNT, "nan"),
        (ENERGY, "5 MJ"),
    ],
)
def test_what_is_no_quantity_is_refused(unit: Unit, text: str) -> None:
    with pytest.raises(InputError, match="is not an? .*known units: .*such as"):
        unit.parse(text)
