"""Which tensors of a model take part, and by which names they go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.base.errors import InputError
from secateurs.sparsity import layer_weights, masks
from secateurs.sparsity.weights import left_whole


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
        self.token, self.scale = nn.Parameter(torch.randn(1, 1, 3)), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x + self.token, self.w, self.b)


def test_which_tensors_take_part() -> None:
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 8, 3, groups=2),
            "up": nn.ConvTranspose2d(8, 4, 2),
            "norm": nn.BatchNorm2d(8),
            "image": nn.LayerNorm([8, 4, 4]),
            "words": nn.Embedding(10, 4),
            "own": Functional(),
            "cell": nn.GRU(3, 5),
            "attend": nn.MultiheadAttention(8, 2),
        }
    )
    found = layer_weights(model)
    assert set(found) == {
        "conv.weight", "up.weight", "own.w", "cell.weight_ih_l0", "cell.weight_hh_l0", "attend.in_proj_weight",
        "attend.out_proj.weight",
    }  # fmt: skip
    assert found["conv.weight"].layout.groups == 2
    assert found["up.weight"].layout.transposed
    assert set(layer_weights(model, exclude=["attend", nn.Conv2d, "own.*"])) == {
        "up.weight", "cell.weight_ih_l0", "cell.weight_hh_l0"
    }  # fmt: skip
    assert set(layer_weights(model, only=["own", "up"])) == {"own.w", "up.weight"}


def test_tied_weights_count_once_and_not_with_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6))
    model[2].weight = model[1].weight
    model[3].weight = model[0].weight
    assert set(layer_weights(model)) == {"1.weight"}


def test_what_is_left_whole_and_what_it_is() -> None:
    model = nn.Sequential(
        nn.Embedding(6, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False), Functional()
    )
    model[3].weight = model[1].weight
    model[4].weight = model[0].weight
    assert left_whole(model, ["3.weight"]) == {
        "0.weight": "embedding", "1.bias": "bias", "2.weight": "norm", "2.bias": "norm", "3.bias": "bias",
        "5.w": "weight", "5.b": "other", "5.token": "other", "5.scale": "other",
    }  # fmt: skip
    every = {name for name, _ in model.named_parameters()}
    assert set(left_whole(model, [])) == every
    assert set(left_whole(nn.Sequential(model[4], model[0]), [])) == {"0.weight"}
    assert left_whole(nn.Sequential(model[4], model[0]), [])["0.weight"] == "embedding"


class Oddly(nn.Module):
    """Layers under names that look like globs."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a[0]": nn.Linear(4, 4), "b*": nn.Linear(4, 4), "bc": nn.Linear(4, 4)})


def test_names_that_look_like_globs() -> None:
    """Every layer can be named as it is called, and masks can be computed anew."""
    model = Oddly()
    assert list(masks(model, {"parts.a[0].weight": 0.5})) == ["parts.a[0].weight"]
    assert list(masks(model, {"parts.a[0]": 0.5})) == ["parts.a[0].weight"]
    assert list(masks(model, 0.5, exclude=["parts.a[0]"])) == ["parts.b*.weight", "parts.bc.weight"]
    assert list(masks(model, 0.5, only=["parts.a[0].weight"])) == ["parts.a[0].weight"]
    held = sec.sparsify(model, 0.5, schedule=sec.Constant(every=1), exclude=["parts.bc"])
    assert held.step()
    assert list(held.masks) == ["parts.a[0].weight", "parts.b*.weight"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("options", [{"pattern": "2:4"}, {"sparsity": 0.5, "distribution": "erk"}], ids=str)
def test_layers_without_a_weight_count_nothing(options: dict[str, Any]) -> None:
    full = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    model = nn.Sequential(nn.Linear(0, 8), *full, nn.Linear(4, 0))
    found, alone = masks(model, **options), masks(full, **options)
    assert (found["0.weight"].shape, found["3.weight"].shape) == ((8, 0), (0, 4))
    assert all(torch.equal(found[f"{place + 1}.weight"], alone[f"{place}.weight"]) for place in range(2))


def test_the_lengths_that_weight_norm_keeps_are_no_weights() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        layer = nn.utils.weight_norm(nn.Conv1d(4, 8, 3))
    assert list(layer_weights(layer)) == ["weight_v"]


def test_a_model_without_values_is_refused() -> None:
    layer = nn.Linear(4, 4, device="meta")
    for attempt in (lambda: masks(layer, 0.5), lambda: sec.sparsify(layer, 0.5)):
        with pytest.raises(InputError, match="has no values"):
            attempt()


def test_a_tied_weight_goes_by_each_of_its_names() -> None:
    model = nn.ModuleDict({"one": nn.Linear(8, 8, bias=False), "two": nn.Linear(8, 8, bias=False)})
    model["two"].weight = model["one"].weight
    for key in ("two.weight", "two", "tw*", "one"):
        (found,) = masks(model, {key: 0.75}).items()
        assert found[0] == "one.weight" and int(found[1].sum()) == 16
    with pytest.raises(sec.InputError, match="two values"):
        masks(model, {"one.weight": 0.5, "two.weight": 0.75})
    assert masks(model, {"one.weight": 0.5, "two.weight": 0.5})["one.weight"].sum() == 32
