"""What every index encoding must do. A new one inherits this suite and is done when it passes:

class TestMine(EncodingConformance):
    encoding = "mine"
    fits = staticmethod(masks_of_its_form)   # a function; only if it does not take every mask
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secateurs.base.errors import ArtifactError
from secateurs.pack.bits import Numbers, width_of
from secateurs.pack.coded import Bools
from secateurs.pack.index import ENCODINGS, Encoding, Index, Mask

SHAPES = ((), (1,), (7,), (0,), (4, 0), (1, 1), (3, 10), (16, 33), (4, 3, 3, 3), (2, 5, 1, 1), (6, 2, 5))
DENSITIES = (0.0, 0.02, 0.3, 1.0)


def any_masks() -> Iterator[Bools]:
    """Random masks of every shape and density, and one with long gaps."""
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for density in DENSITIES:
            yield np.asarray(rng.random(shape) < density)
    sparse = np.zeros((2, 100_000), dtype=np.bool_)
    sparse[0, [0, 5, 40, 65_575, 99_999]] = True
    yield sparse


class EncodingConformance:
    """Exact, of the size that was foretold, deterministic, and closed to fields that no mask has."""

    encoding: ClassVar[str]

    @staticmethod
    def fits() -> Iterator[Bools]:
        """Masks of the form that it stores; all masks unless a subclass says otherwise."""
        return any_masks()

    @property
    def subject(self) -> Encoding:
        return ENCODINGS[self.encoding]

    def every_index(self) -> Iterator[tuple[Mask, Index]]:
        """Every mask that fits, in every choice of parameters."""
        for kept in self.fits():
            mask = Mask.of(kept)
            for parameters in self.subject.choices(mask):
                yield mask, self.subject.encode(mask, parameters)

    def test_masks_of_its_form_are_taken(self) -> None:
        assert any(self.subject.choices(Mask.of(kept)) for kept in self.fits() if kept.any())

    def test_gives_back_the_mask(self) -> None:
        for mask, index in self.every_index():
            found = np.zeros(mask.grid.size, dtype=np.bool_)
            found[self.decode(mask, index)] = True
            assert np.array_equal(found, mask.kept.reshape(-1))

    def test_a_mask_of_another_form_is_not_taken_or_comes_back_whole(self) -> None:
        for kept in any_masks():
            mask = Mask.of(kept)
            for parameters in self.subject.choices(mask):
                index = self.subject.encode(mask, parameters)
                assert np.array_equal(self.decode(mask, index), np.flatnonzero(kept))

    def test_its_size_is_known_before(self) -> None:
        for mask, index in self.every_index():
            assert self.subject.bits(mask, index.parameters) == index.bits
            for field in index.fields:
                assert field.numbers.size == 0 or 0 <= int(field.numbers.min()) <= int(field.numbers.max())
                assert field.numbers.size == 0 or int(field.numbers.max()).bit_length() <= width_of(field.bound)

    def test_is_deterministic(self) -> None:
        for mask, index in self.every_index():
            again = self.subject.encode(Mask(mask.kept.copy(), mask.grid), index.parameters)
            assert all(np.array_equal(a.numbers, b.numbers) for a, b in zip(index.fields, again.fields, strict=True))

    def test_other_fields_are_refused_or_give_positions_on_the_grid(self) -> None:
        rng = np.random.default_rng(1)
        for mask, index in self.every_index():
            for place, field in enumerate(index.fields):
                if not field.numbers.size or mask.grid.size > 10_000:
                    continue
                other = field.numbers.astype(np.int64)
                other[rng.integers(other.size)] = rng.integers(max(1, field.bound))
                numbers = [item.numbers for item in index.fields]
                numbers[place] = other
                try:
                    found = self.decode(mask, index, numbers)
                except ArtifactError:
                    continue
                assert found.size == mask.count and (np.diff(found, prepend=-1) > 0).all()
                assert found.size == 0 or found[-1] < mask.grid.size

    def test_absurd_parameters_are_refused(self) -> None:
        for mask, index in self.every_index():
            for wrong in (1 << 62, 0):
                for place in range(self.subject.parameters):
                    given = tuple(wrong if at == place else item for at, item in enumerate(index.parameters))
                    if given == index.parameters:
                        continue
                    try:
                        self.subject.check(given, mask.grid, mask.count)
                    except ArtifactError:
                        continue
                    raise AssertionError(f"{given} is taken for {mask.grid}")

    def decode(self, mask: Mask, index: Index, numbers: list[NDArray[np.integer]] | None = None) -> NDArray[np.int64]:
        """The positions that the fields give, read as from a file, without fillers."""
        self.subject.check(index.parameters, mask.grid, mask.count)
        rest = iter(zip(numbers or [field.numbers for field in index.fields], index.fields, strict=True))

        def read(count: int, bound: int) -> Numbers:
            found, field = next(rest)
            assert (count, width_of(bound)) == (found.size, width_of(field.bound)) or numbers is not None
            if count != found.size:
                raise ArtifactError("another count")
            return found.astype(np.uint32)

        positions, maybe = self.subject.decode(mask.grid, mask.count, index.parameters, read)
        assert numbers is not None or next(rest, None) is None
        assert positions.size == self.subject.stored(index.parameters, mask.count)
        if index.real is None:
            return positions
        assert maybe is not None and (numbers is not None or not (~index.real & ~maybe).any())
        return positions[index.real]


__all__ = ["EncodingConformance", "any_masks"]
