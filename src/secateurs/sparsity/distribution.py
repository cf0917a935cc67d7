"""How a total sparsity is shared out among layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from secateurs.base.registry import Registry

Shapes = Mapping[str, tuple[int, ...]]
Distribution = Callable[[Shapes, float], dict[str, float]]
"""`(shapes by name, total sparsity) -> sparsity by name`."""

DISTRIBUTIONS: Registry[Distribution] = Registry("distribution")


@DISTRIBUTIONS.register("uniform")
def uniform(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """The same sparsity in every layer."""
    return dict.fromkeys(shapes, sparsity)


@DISTRIBUTIONS.register("erk")
def erk(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Density in proportion to `sum(shape) / prod(shape)`, at most 1, so that small layers stay denser.

    Erdos-Renyi-kernel: Evci et al., Rigging the Lottery, 2020 (1911.11134).
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items() if sizes[name]}
    dense = shapes.keys() - raw.keys()
    while True:
        sharing = [name for name in shapes if name not in dense]
        room = (1 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = room / sum(raw[name] * sizes[name] for name in sharing) if sharing else 0.0
        full = {name for name in sharing if scale * raw[name] > 1}
        if not full:
            return {name: 0.0 if name in dense else 1 - scale * raw[name] for name in shapes}
        dense |= full


__all__ = ["DISTRIBUTIONS", "Distribution", "Shapes"]
