"""Example inputs as data: the same structure, shapes and types come back, and nothing but them."""

import json

import pytest
import torch
from torch import Tensor

from secateurs.base.errors import InputError
from secateurs.deliver.inputs import DTYPES, TensorSpec, describe, make, parse, rebuild


def specs(tree: object) -> object:
    """The structure with every tensor replaced by its shape and type."""
    if isinstance(tree, Tensor):
        return tuple(tree.shape), tree.dtype
    if isinstance(tree, (tuple, list)):
        return type(tree)(specs(item) for item in tree)
    if isinstance(tree, dict):
        return {key: specs(item) for key, item in tree.items()}
    return tree


def test_nested_inputs_come_back_with_the_same_structure() -> None:
    inputs = (
        (torch.randn(2, 3), [torch.zeros(1, dtype=torch.float16), None]),
        {"ids": torch.tensor([[5, 2]]), "mask": torch.ones(1, 2, dtype=torch.bool), "scale": 0.5, "mode": "fast"},
    )
    data = json.loads(json.dumps(describe(inputs)))
    assert specs(rebuild(data)) == specs(inputs)


def test_integers_stay_in_range_and_rebuilding_repeats() -> None:
    data = describe(torch.tensor([3, 0, 7]))
    first, second = rebuild(data, seed=1), rebuild(data, seed=1)
    assert torch.equal(first, second)
    many = rebuild({"tensor": [[1000], "int64", 7]})
    assert set(many.tolist()) == set(range(8))


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_text_and_spec_agree_for_every_element_type(name: str) -> None:
    spec = TensorSpec((1, 2), DTYPES[name])
    assert parse(str(spec)) == (None, spec)
    assert spec.make(torch.Generator().manual_seed(0)).dtype == DTYPES[name]


def test_command_line_inputs() -> None:
    args, kwargs = make(["1x3x8x8", "1x16:int64:100", "mask=1x16:bool"])
    assert [tuple(item.shape) for item in args] == [(1, 3, 8, 8), (1, 16)]
    assert int(args[1].max()) < 100
    assert kwargs["mask"].all()


@pytest.mark.parametrize("text", ["", "x", "1x", "1x3y4", "1x3:int64:", "=1x3", "-1x3", "1.5x3"])
def test_text_that_is_not_a_shape_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not an input"):
        parse(text)


def test_unknown_element_type_gives_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'float32'"):
        parse("1x3:flaot32")


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        {},
        {"tensor": 1},
        {"tensor": [[1], "float31", 0]},
        {"tensor": [[-1], "float32", 0]},
        {"code": "x"},
        {"tuple": [1]},
    ],
)
def test_data_of_another_form_is_refused(data: object) -> None:
    with pytest.raises(InputError, match="not a description"):
        rebuild(data)


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match="type `object`"):
        describe((torch.ones(1), object()))
