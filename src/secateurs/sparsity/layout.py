"""How a weight tensor is stored, and one arrangement for all: `[G, O, I, *K]`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secateurs.base.errors import InputError, explain


@dataclass(frozen=True)
class Layout:
    """Where a weight of two or more dimensions has its output channels, its input channels and its kernel.

    Stored as `[O, I/groups, *K]` (linear: `[O, I]`), or with `transposed` as `[I, O/groups, *K]`, as transposed
    convolutions do. Patterns see the *canonical* form `[G, O, I, *K]`: groups, output channels of a group, input
    channels of a group, kernel. A linear layer has G = 1 and no kernel.
    """

    groups: int = 1
    transposed: bool = False

    def canonical(self, tensor: Tensor) -> Tensor:
        """A stored tensor as `[G, O, I, *K]`; a view where possible.

        Raises `InputError` when the tensor has fewer than two dimensions or does not divide into the groups.
        """
        shape = tuple(tensor.shape)
        if len(shape) < 2 or shape[0] % self.groups:
            raise InputError(
                explain(
                    f"A tensor of shape {shape} is not a weight of {self.groups} group(s)",
                    next_step="give tensors of the shape [out, in, ...] with a first size that the groups divide",
                )
            )
        parts = tensor.reshape(self.groups, shape[0] // self.groups, *shape[1:])
        return parts.transpose(1, 2) if self.transposed else parts

    def stored(self, canonical: Tensor) -> Tensor:
        """The inverse of `canonical`."""
        parts = canonical.transpose(1, 2) if self.transposed else canonical
        return parts.reshape(parts.shape[0] * parts.shape[1], *parts.shape[2:])

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The canonical shape of a tensor stored with this shape."""
        rest = (stored[0] // self.groups, *stored[1:])
        first, second = (rest[1], rest[0]) if self.transposed else rest[:2]
        return (self.groups, first, second, *rest[2:])


__all__ = ["Layout"]
