"""A convolution as a product of matrices without the columns that are zero for every output channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateurs.base.errors import InputError, explain


class LoweredConv2d(nn.Module):
    """`nn.Conv2d` by im2col: features `[kept columns, P * Q]`, kernels `[O, kept columns]`, per convolution group.

    A column is one tap of one input channel. Those whose weights are zero for all output channels of the group vanish
    from both matrices, and are never copied: with the pattern `strided(start, stride)` of n taps, or `strided(*,n)`,
    every channel keeps `ceil((R * S - start) / stride)`. Any other zeros stay in the product. The result is that of the
    convolution, to rounding. Anwar, Hwang, Sung: Structured Pruning of Deep Convolutional Neural Networks, 2017.
    """

    channel: Tensor
    row: Tensor
    column: Tensor
    prepared: Tensor | None

    def __init__(self, conv: nn.Conv2d, *, mask: Tensor | None = None, size: tuple[int, int] | None = None) -> None:
        """From a convolution whose weights are zero, or are to count as zero where `mask` (True = kept) is False.

        Images of `size` (height, width) find prepared where their columns come from; others take a little longer.

        Raises `InputError` for anything else than a two-dimensional convolution, for a mask of another shape and for a
        size that the kernel does not fit into.
        """
        super().__init__()
        if not isinstance(conv, nn.Conv2d):
            raise InputError(explain(f"A {type(conv).__name__} cannot be lowered", next_step="give an nn.Conv2d"))
        if mask is not None and mask.shape != conv.weight.shape:
            evidence = f"weight {tuple(conv.weight.shape)}, mask {tuple(mask.shape)}"
            raise InputError(explain("The mask does not fit the weight", evidence=evidence))
        weight = conv.weight.detach() if mask is None else conv.weight.detach().masked_fill(~mask.bool(), 0.0)
        groups, (outputs, inputs, *kernel) = conv.groups, weight.shape
        matrix = weight.reshape(groups, outputs // groups, inputs * kernel[0] * kernel[1])
        kept = (matrix != 0).any(1)
        self.kept = tuple(kept.sum(1).tolist())
        self.weights = nn.ParameterList(matrix[group][:, kept[group]] for group in range(groups))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        group, place = kept.nonzero(as_tuple=True)
        taps = kernel[0] * kernel[1]
        self.register_buffer("channel", group * inputs + place // taps)
        self.register_buffer("row", place % taps // kernel[1])
        self.register_buffer("column", place % kernel[1])
        self.kernel_size, self.stride, self.dilation = tuple(kernel), conv.stride, conv.dilation
        self.padding_mode, self.padding = conv.padding_mode, list(conv._reversed_padding_repeated_twice)
        self.padded = None if size is None else self._padded(size)
        if self.padded is not None and min(self._shape(*self.padded)) < 1:
            evidence = f"padded {self.padded}, the kernel {self.kernel_size} with dilation {self.dilation}"
            raise InputError(explain(f"No image of size {size} has room for the kernel", evidence=evidence))
        prepared = None if self.padded is None else self._places(*self.padded)
        self.register_buffer("prepared", prepared, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> `[N, O, P, Q]`, or both without N."""
        if x.dim() == 3:
            alone: Tensor = self(x[None])
            return alone[0]
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = functional.pad(x, self.padding, mode=mode) if any(self.padding) else x
        batch, _, height, width = x.shape
        ready = self.prepared is not None and (height, width) == self.padded
        places = self.prepared if ready else self._places(height, width)
        assert places is not None
        shape = self._shape(height, width)
        features = x.flatten(1).index_select(1, places).reshape(batch, sum(self.kept), shape[0] * shape[1])
        parts = [features] if len(self.kept) == 1 else torch.split(features, list(self.kept), dim=1)
        operands = zip(self._biases(), self.weights, parts, strict=True)
        found = [torch.baddbmm(bias, weight.expand(batch, -1, -1), part) for bias, weight, part in operands]
        return (found[0] if len(found) == 1 else torch.cat(found, 1)).view(batch, sum(map(len, self.weights)), *shape)

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        left, right, top, bottom = self.padding
        return size[0] + top + bottom, size[1] + left + right

    def _shape(self, height: int, width: int) -> tuple[int, int]:
        """`P, Q` of padded images of this size."""
        (rows, columns), (down, across), (tall, wide) = self.kernel_size, self.stride, self.dilation
        return (height - tall * (rows - 1) - 1) // down + 1, (width - wide * (columns - 1) - 1) // across + 1

    def _places(self, height: int, width: int) -> Tensor:
        """`[kept columns * P * Q]`: where in a flat padded image every feature is."""
        (down, across), (tall, wide) = self.stride, self.dilation
        taps = (self.channel * height + self.row * tall) * width + self.column * wide
        lines, steps = (torch.arange(length, device=taps.device) for length in self._shape(height, width))
        return (taps[:, None] + (lines[:, None] * (down * width) + steps * across).flatten()).flatten()

    def _biases(self) -> Sequence[Tensor]:
        """Of each group `[O / groups, 1]`."""
        if self.bias is None:
            return [self.weights[0].new_zeros(())] * len(self.kept)
        return self.bias[:, None].chunk(len(self.kept))


__all__ = ["LoweredConv2d"]
