"""A weight in groups that fill SIMD registers: the storage format of Scalpel, readable rather than fast.

Yu et al., Scalpel: customizing DNN pruning to the underlying hardware parallelism, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.sparsity.layout import Layout
from secateurs.sparsity.patterns.simd import Simd


@dataclass(frozen=True)
class SimdMatrix:
    """The matrix `[rows, columns]` of a weight, `rows` being output channels, in aligned groups of `width` columns.

    `values` `[groups, width]` are the kept groups, row after row; what a row's last group lacks is padded with zeros.
    `starts` int64 `[groups]` is the column at which each begins, `pointers` int64 `[rows + 1]` how many groups are kept
    before each row. `shape` and `layout` are those of the weight as it is stored in a model.
    """

    width: int
    values: Tensor
    starts: Tensor
    pointers: Tensor
    shape: tuple[int, ...]
    layout: Layout

    @classmethod
    def of(cls, weight: Tensor, width: int, *, mask: Tensor | None = None, layout: Layout | None = None) -> SimdMatrix:
        """The groups of which something is kept by `mask` (bool, like `weight`; None: is not zero).

        Raises `InputError` for a width below 1, a mask of another shape or a tensor of less than two dimensions.
        """
        layout, width = layout or Layout(), Simd(width).k
        kept = weight != 0 if mask is None else mask
        if kept.shape != weight.shape:
            evidence = f"weight {tuple(weight.shape)}, mask {tuple(kept.shape)}"
            raise InputError(explain("The mask does not fit the weight", evidence=evidence))
        blocks = _blocks(weight.detach().masked_fill(~kept, 0.0), width, layout)
        lives = _blocks(kept, width, layout).any(2)
        rows, places = lives.nonzero(as_tuple=True)
        per_row = torch.bincount(rows, minlength=blocks.shape[0])
        pointers = torch.cat([per_row.new_zeros(1), per_row.cumsum(0)])
        return cls(width, blocks[rows, places], places * width, pointers, tuple(weight.shape), layout)

    @property
    def columns(self) -> int:
        """Columns of the matrix: everything that one output channel reads."""
        return torch.Size(self.layout.shape(self.shape)[2:]).numel()

    def dense(self) -> Tensor:
        """The weight in its own shape: what is kept bit for bit, everything else +0.0."""
        rows, padded = len(self.pointers) - 1, -(-self.columns // self.width) * self.width
        matrix = self.values.new_zeros(rows, padded)
        for row, (begin, end) in enumerate(pairwise(self.pointers.tolist())):
            for values, start in zip(self.values[begin:end], self.starts[begin:end].tolist(), strict=True):
                matrix[row, start : start + self.width] = values
        canonical = matrix[:, : self.columns].reshape(self.layout.shape(self.shape))
        return self.layout.stored(canonical).contiguous()

    def matvec(self, x: Tensor) -> Tensor:
        """`matrix @ x`: `[columns]` -> `[rows]`. One index and one vector product per group."""
        x = torch.cat([x, x.new_zeros(-self.columns % self.width)])
        result = x.new_zeros(len(self.pointers) - 1)
        for row, (begin, end) in enumerate(pairwise(self.pointers.tolist())):
            lanes = x.new_zeros(self.width)
            for values, start in zip(self.values[begin:end], self.starts[begin:end].tolist(), strict=True):
                lanes += values * x[start : start + self.width]
            result[row] = lanes.sum()
        return result

    def bits(self, *, weight: int = 32, index: int = 32, pointer: int = 32) -> int:
        """Bits of the three arrays, numbers of these widths; see `simd_bits`."""
        return simd_bits(
            len(self.starts), len(self.pointers) - 1, self.width, weight=weight, index=index, pointer=pointer
        )


def simd_bits(groups: int, rows: int, width: int, *, weight: int = 32, index: int = 32, pointer: int = 32) -> int:
    """`groups * (width * weight + index) + (rows + 1) * pointer`. Width 1 is CSR: an index for every weight."""
    return groups * (width * weight + index) + (rows + 1) * pointer


def csr_bits(weights: int, rows: int, *, weight: int = 32, index: int = 32, pointer: int = 32) -> int:
    """`weights * (weight + index) + (rows + 1) * pointer`: compressed sparse rows, for comparison."""
    return weights * (weight + index) + (rows + 1) * pointer


def _blocks(tensor: Tensor, width: int, layout: Layout) -> Tensor:
    """A stored tensor as `[rows, blocks, width]`, rows padded with zeros."""
    canonical = layout.canonical(tensor)
    shape: Sequence[int] = canonical.shape
    matrix = canonical.reshape(shape[0] * shape[1], -1)
    padded = torch.cat([matrix, matrix.new_zeros(len(matrix), -matrix.shape[1] % width)], 1)
    return padded.reshape(len(matrix), -1, width)


__all__ = ["SimdMatrix", "csr_bits", "simd_bits"]
