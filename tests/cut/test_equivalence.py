"""A cut network is the original whose removed channels are multiplied by zero wherever they are read.

The original runs as a program; what its consumers read is changed, nothing else: no slicing, no rewriting, no proof.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateurs as sec
from secateurs.capture.program import Program
from secateurs.couple.group import Groups
from secateurs.couple.sites import consumption_sites
from secateurs.testing.chain import random_kept
from secateurs.testing.networks import random_network

pytestmark = pytest.mark.medium


def silenced(model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups, keep: dict[str, list[int]]) -> Any:
    """The original's output, where every consumer reads 0 in place of the units that are not kept."""
    reads: dict[int, list[tuple[int, Tensor]]] = {}
    for name, sites in consumption_sites(groups).items():
        for site in sites:
            alive = [float(unit < 0 or unit in keep[name]) for unit in site.units]
            shape = [-1 if dim == site.dim else 1 for dim in range(len(groups.graph.values[site.value].shape))]
            reads.setdefault(site.node, []).append((site.value, torch.tensor(alive).reshape(shape)))

    def reader(node: int) -> Callable[[int, Tensor], Tensor]:
        def read(value: int, tensor: Tensor) -> Tensor:
            for mine, mask in reads[node]:
                tensor = tensor * mask.to(tensor.dtype) if mine == value else tensor
            return tensor

        return read

    leaves = dict(model.named_parameters(remove_duplicate=False)), dict(model.named_buffers(remove_duplicate=False))
    program = Program(groups.graph, {**leaves[0], **leaves[1], **groups.graph.constants})
    with torch.no_grad():
        return program.output(program.run(program.begin(inputs), reads={node: reader(node) for node in reads}))


@pytest.mark.medium
@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_a_cut_equals_the_original_with_its_consumers_reading_zero(seed: int) -> None:
    model, inputs = random_network(seed)
    groups = sec.couple(sec.capture(model, inputs))
    keep = random_kept(seed)(groups)
    keep = {name: units if groups[name].exact else list(range(groups[name].size)) for name, units in keep.items()}
    small = sec.cut(model, sec.plan(groups.graph, groups, keep=keep), inputs)
    expected = [x for x in pytree.tree_leaves(silenced(model, inputs, groups, keep)) if isinstance(x, Tensor)]
    with torch.no_grad():
        found = [x for x in pytree.tree_leaves(small(*inputs)) if isinstance(x, Tensor)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()) if b.numel() else 0.0)
