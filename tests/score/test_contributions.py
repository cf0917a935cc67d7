"""Patches times weights give back what the layer computes; contributions are what masking shows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.capture.program import BatchAxis
from secateurs.score import contributions
from secateurs.score.contributions import Sampled, sample
from secateurs.score.criterion import Context
from secateurs.score.patches import Rows, Windows, reader
from secateurs.score.samples import Samples
from secateurs.score.score import tensors_of

LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 6), -1),
    "linear on tokens": (nn.Linear(6, 4), (3, 5, 6), -1),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 9), 1),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 4, 7, 8), 1),
    "same": (nn.Conv2d(4, 6, (4, 3), padding="same"), (3, 4, 5, 6), 1),
    "valid": (nn.Conv2d(4, 6, 2, padding="valid"), (3, 4, 5, 6), 1),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=2), (3, 4, 5, 5), 1),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (3, 4, 5, 5), 1),
    "conv3d": (nn.Conv3d(4, 6, 2, padding=1), (3, 4, 3, 4, 2), 1),
    "unbatched": (nn.Conv2d(4, 6, 3), (4, 5, 5), 0),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (3, 4, 4, 5), 1),
    "transposed, grouped": (nn.ConvTranspose1d(4, 6, 4, stride=3, groups=2, dilation=2), (3, 4, 5), 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_weights_are_the_layer(name: str):
    layer, shape, dim = LAYERS[name]
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph = sec.capture(layer, x)
    node = graph.nodes[-1]
    how = reader(node, graph.inputs[0].value, dim % x.dim(), [value.shape for value in graph.values])
    assert how.weight_value is not None
    samples, places = how.places(x, None)
    every = torch.cartesian_prod(torch.arange(samples), torch.arange(places))
    patches = how.patches(x, None, every[:, 0], every[:, 1])
    found = torch.einsum("mcr,ocr->mo", patches, how.weight(layer.weight, x.shape[dim]))
    with torch.no_grad():
        expected = layer(x) - layer(torch.zeros_like(x))
    expected = expected.movedim(dim, -1).reshape(-1, found.shape[1])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("minor", [False, True])
def test_several_rows_belong_to_one_sample(minor: bool):
    """Windows of one image stand in the batch dimension: row 2n and 2n+1, or n and n + samples, are sample n."""
    x = torch.arange(6.0).reshape(6, 1, 1)
    windows = Windows(1, (1,), (1,), (0,), (1,), (1,), 1, False)
    axis = BatchAxis(0, 2, minor)
    assert windows.places(x, axis) == (3, 2)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(2))
    found = windows.patches(x, axis, every[:, 0], every[:, 1]).flatten().tolist()
    assert found == ([0, 3, 1, 4, 2, 5] if minor else [0, 1, 2, 3, 4, 5])
    assert Rows(2).patches(x, axis, every[:, 0], every[:, 1]).flatten().tolist() == found


class Branches(nn.Module):
    """Units of `stem` are read by a convolution, by a linear layer after a flatten, and by a sum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.flat = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3, padding=1), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.conv(x).mean((2, 3)) + self.flat(x.flatten(1)) + x.sum(1).mean((1, 2), keepdim=True).flatten(1)


def context_of(model: nn.Module, data: list[Tensor]) -> Context:
    groups = sec.couple(sec.capture(model, data[0][:1]))
    return Context(
        groups, model, tensors_of(groups, model), torch.Generator(), Samples(model, groups.graph, data), seed=3
    )


def visits(model: nn.Module, data: list[Tensor], positions: int) -> dict[tuple[str, int], list[Sampled]]:
    found: dict[tuple[str, int], list[Sampled]] = {}
    sample(
        context_of(model, data),
        positions,
        lambda seen: found.setdefault((seen.consumer.group, seen.consumer.number), []).append(seen),
    )
    return found


@pytest.fixture
def branches() -> SimpleNamespace:
    torch.manual_seed(0)
    return SimpleNamespace(model=Branches().double().eval(), x=torch.randn(6, 3, 3, 3, dtype=torch.float64))


def test_contributions_of_all_units_add_up_to_outputs_of_each_consumer(branches: SimpleNamespace):
    found = visits(branches.model, [branches.x], 50)
    assert sorted(found) == [("stem", 0), ("stem", 1), ("stem", 2)]
    with torch.no_grad():
        stem = torch.relu(branches.model.stem(branches.x))
        conv = branches.model.conv(stem) - branches.model.conv.bias.view(1, -1, 1, 1)
        flat = branches.model.flat(stem.flatten(1)) - branches.model.flat.bias
    for number, outputs in enumerate((conv, flat, stem.sum(1))):
        (seen,) = found["stem", number]
        sums = seen.contributions().sum(1).reshape(6, 50)
        for row, own in zip(sums, outputs.flatten(1), strict=True):
            assert bool(((row.unsqueeze(1) - own).abs().amin(1) < 1e-12).all()), "entries of another sample, or of none"
            assert len(set(row.tolist())) > min(20, own.numel() // 2) or own.numel() <= 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_products_in_both_orders_of_work_and_by_definition(branches: SimpleNamespace, number: int, monkeypatch):
    (seen,) = visits(branches.model, [branches.x], 7)["stem", number]
    outputs = torch.einsum("muk,ouk->mou", seen.patches, seen.weight).flatten(0, 1)
    expected = outputs.T @ outputs
    torch.testing.assert_close(seen.products(), expected, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(contributions, "WIDEST", 0)
    monkeypatch.setattr(contributions, "AT_ONCE", 1)
    torch.testing.assert_close(seen.products(), expected, rtol=1e-10, atol=1e-10)


def test_the_split_into_batches_does_not_matter(branches: SimpleNamespace):
    whole = visits(branches.model, [branches.x], 5)
    parts = visits(branches.model, list(branches.x.split([1, 3, 2])), 5)
    for place, (seen,) in whole.items():
        torch.testing.assert_close(torch.cat([part.contributions() for part in parts[place]]), seen.contributions())


@pytest.mark.parametrize("positions", [0, -3, 2.5])
def test_positions_that_are_no_number_of_samples(branches: SimpleNamespace, positions: float):
    with pytest.raises(sec.InputError, match="positions"):
        visits(branches.model, [branches.x], positions)
