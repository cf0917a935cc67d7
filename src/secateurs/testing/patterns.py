"""What every sparsity pattern must do. A new one inherits this suite and is done when it passes:

class TestMine(PatternConformance):
    pattern = "mine(4)"
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from secateurs.sparsity import PATTERNS, Grouping, Pattern, masks, parse_pattern
from secateurs.sparsity.layout import Layout

SHAPES: dict[str, tuple[tuple[int, ...], Layout]] = {
    "linear": ((8, 16), Layout()),
    "linear with tails": ((7, 13), Layout()),
    "one row": ((1, 5), Layout()),
    "conv1d": ((6, 4, 5), Layout()),
    "conv2d": ((8, 8, 3, 3), Layout()),
    "conv2d with tails": ((5, 7, 3, 2), Layout()),
    "pointwise": ((6, 10, 1, 1), Layout()),
    "conv3d": ((4, 3, 2, 3, 2), Layout()),
    "grouped": ((6, 5, 3, 3), Layout(groups=3)),
    "depthwise": ((6, 1, 3, 3), Layout(groups=6)),
    "transposed": ((7, 5, 3, 3), Layout(transposed=True)),
    "transposed and grouped": ((6, 5, 2, 3), Layout(groups=2, transposed=True)),
}
"""Stored shapes, some of which no size divides."""


class PatternConformance:
    """Inherit and set `pattern`, as a string or an object. `sparsities` are tried unless the pattern decides."""

    pattern: ClassVar[str | Pattern]
    sparsities: ClassVar[tuple[float, ...]] = (0.0, 0.1, 0.5, 0.83, 0.99)

    def test_is_registered_and_documented(self) -> None:
        form = self.form()
        assert PATTERNS[form.name] is type(form)
        assert type(form).__doc__, "it needs a docstring: which weights form a group"

    def test_spelling_round_trip(self) -> None:
        form = self.form()
        assert parse_pattern(str(form)) == form

    def test_every_weight_is_in_one_group_and_no_group_is_empty(self) -> None:
        for case, (shape, layout) in SHAPES.items():
            found = self.form().groups(shape, layout)
            assert found.ids.shape == shape, case
            assert found.ids.dtype == torch.int64
            owned = found.ids[found.ids >= 0]
            assert sorted(set(owned.tolist())) == list(range(found.count)), case
            assert found.sizes.tolist() == [int((found.ids == group).sum()) for group in range(found.count)], case
            if found.blocks is None:
                assert len(owned) == found.ids.numel(), f"{case}: only a pattern that decides rules weights out"

    def test_groups_do_not_cross_groups_of_a_convolution(self) -> None:
        for case, (shape, layout) in SHAPES.items():
            parts = layout.canonical(self.form().groups(shape, layout).ids)
            owned = [set(part[part >= 0].tolist()) for part in parts]
            assert sum(map(len, owned)) == len(set().union(*owned)), case

    def test_transposed_storage_changes_nothing(self) -> None:
        for shape in ((7, 5, 3, 3), (4, 6)):
            plain = self.form().groups(shape, Layout())
            turned = self.form().groups((shape[1], shape[0], *shape[2:]), Layout(transposed=True))
            assert torch.equal(turned.ids.transpose(0, 1), plain.ids)

    def test_exact_count(self) -> None:
        for case, weight, grouping in self.cases():
            for sparsity in self.tried():
                kept = grouping.kept(self.mask(case, weight, sparsity))
                if grouping.blocks is None:
                    assert sparsity is not None
                    assert int(kept.sum()) == grouping.count - int(sparsity * grouping.count + 0.5), (case, sparsity)
                    continue
                for block in set(grouping.blocks.tolist()):
                    mine = kept[grouping.blocks == block]
                    assert int(mine.sum()) == min(grouping.quota, len(mine)), (case, block)

    def test_a_group_lives_and_dies_whole(self) -> None:
        for case, weight, grouping in self.cases():
            for sparsity in self.tried():
                mask = self.mask(case, weight, sparsity)
                assert torch.equal(mask, grouping.spread(grouping.kept(mask))), (case, sparsity)

    def test_masking_twice_is_masking_once(self) -> None:
        for case, weight, _ in self.cases():
            for sparsity in self.tried():
                mask = self.mask(case, weight, sparsity)
                assert torch.equal(self.mask(case, weight * mask, sparsity), mask), (case, sparsity)
                assert torch.equal(self.mask(case, weight, sparsity, within={"weight": mask}), mask), (case, sparsity)

    def test_scale_does_not_matter_and_ties_are_settled(self) -> None:
        for case, weight, _ in self.cases():
            sparsity = self.tried()[-1]
            assert torch.equal(self.mask(case, weight * 8, sparsity), self.mask(case, weight, sparsity)), case
            equal = torch.ones_like(weight)
            assert torch.equal(self.mask(case, equal, sparsity), self.mask(case, equal, sparsity)), case

    def test_the_least_important_groups_go(self) -> None:
        for case, weight, grouping in self.cases():
            size = weight.double().abs()
            for sparsity in self.tried():
                kept = grouping.kept(self.mask(case, weight, sparsity)).tolist()
                scores = [self.measured(size[grouping.ids == group]) for group in range(grouping.count)]
                blocks = [0] * grouping.count if grouping.blocks is None else grouping.blocks.tolist()
                for block in set(blocks):
                    mine = [group for group in range(grouping.count) if blocks[group] == block]
                    gone = [scores[group] for group in mine if not kept[group]]
                    stay = [scores[group] for group in mine if kept[group]]
                    assert not gone or not stay or max(gone) <= min(stay) + 1e-12, (case, sparsity)

    def measured(self, size: Tensor) -> float:
        """The default importance of a group of weights with these magnitudes."""
        return float(size.square().mean().sqrt()) if self.form().importance == "rms" else float(size.sum())

    def form(self) -> Pattern:
        return parse_pattern(type(self).pattern)

    def tried(self) -> tuple[float | None, ...]:
        return (None,) if self.form().decides else self.sparsities

    def mask(
        self, case: str, weight: Tensor, sparsity: float | None, within: dict[str, Tensor] | None = None
    ) -> Tensor:
        model = layer(weight, SHAPES[case][1])
        return masks(model, sparsity, pattern=self.form(), within=within, only=["weight"])["weight"]

    def cases(self) -> list[tuple[str, Tensor, Grouping]]:
        """A random weight of every shape, and its groups."""
        generator = torch.Generator().manual_seed(7)
        return [
            (case, torch.randn(shape, generator=generator), self.form().groups(shape, layout))
            for case, (shape, layout) in SHAPES.items()
        ]


def layer(weight: Tensor, layout: Layout) -> nn.Module:
    """The PyTorch layer that stores this weight so."""
    made = _empty(tuple(weight.shape), layout)
    made.weight = nn.Parameter(weight.clone())
    return made


def _empty(shape: tuple[int, ...], layout: Layout) -> nn.Module:
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=False)
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 3]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[len(shape) - 3]
    first, second = shape[0], shape[1] * layout.groups
    kernel: tuple[int, ...] = tuple(shape[2:])
    if layout.transposed:
        return transposed(first, second, kernel, groups=layout.groups, bias=False)  # type: ignore[arg-type]
    return plain(second, first, kernel, groups=layout.groups, bias=False)  # type: ignore[arg-type]
