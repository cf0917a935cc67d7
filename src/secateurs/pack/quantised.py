"""`Quantised`: a model with quantised weights, beside the codes that a file stores for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from secateurs.pack.allocate import Allocation
from secateurs.pack.chosen import with_coded
from secateurs.pack.coded import Coded, Raw, Shared


@dataclass(frozen=True)
class Quantised:
    """`model`: a copy, in its own class, that computes with the quantised weights. `coded`: those weights, by name.

    `sec.pack` takes it in place of a model and stores the codes. `allocation`: how bits were divided, if they were.
    """

    model: nn.Module
    coded: Mapping[str, Coded]
    allocation: Allocation | None = None

    @classmethod
    def of(cls, model: nn.Module, coded: Mapping[str, Coded], allocation: Allocation | None = None) -> Quantised:
        """The model with these tensors in place of its own; the model itself is not changed."""
        return cls(with_coded(model, coded), dict(coded), allocation)

    @property
    def bits(self) -> dict[str, int]:
        """Bits of a code of each tensor, before entropy coding."""
        return {name: _bits(item) for name, item in self.coded.items()}

    def __str__(self) -> str:
        width = max(map(len, self.coded), default=0)
        lines = [
            f"{name:<{width}}  {type(item.content).__name__.lower():<6}  {_bits(item)} bits  "
            f"{item.count:,} of {item.kept.size if item.kept is not None else item.count:,} kept"
            for name, item in self.coded.items()
        ]
        return "\n".join(lines)


def _bits(tensor: Coded) -> int:
    content = tensor.content
    if isinstance(content, Raw):
        return 8 * content.values.dtype.itemsize
    return max(1, (content.codebook.size - 1).bit_length()) if isinstance(content, Shared) else content.bits


__all__ = ["Quantised"]
