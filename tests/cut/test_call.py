"""The graph form is called as it was captured, or refuses: numbers, flags and keywords are never silently old."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.cut.form import GraphModule

torch.set_num_threads(1)


class Net(nn.Module):
    """A layer, then what a function makes of its result and of the other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.b = nn.Linear(8, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Flags(Net):
    """Every kind of literal, each of which changes the result."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        double: bool = False,
        times: int = 1,
        scale: float = 1.0,
        mode: str = "sum",
    ) -> Tensor:
        y = self.body(x)
        y = y if mask is None else y * mask
        y = y * 2 if double else y
        for _ in range(times):
            y = y * scale + x.sum()
        return y.sum(-1) if mode == "sum" else y.mean(-1)


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def as_graph(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """The model cut to half, in graph form; and the model silenced, which it must equal."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    graph = sec.capture(model.eval(), args, kwargs=kwargs)
    plan = sec.plan(graph, sec.couple(graph), keep={"a": [0, 2, 5, 7]})
    small = sec.cut_detailed(model, plan, args, kwargs, form="graph").model
    with torch.no_grad():
        model.b.weight[:, [1, 3, 4, 6]] = 0
    assert isinstance(small, GraphModule)
    return small


def loaded(small: nn.Module) -> nn.Module:
    return GraphModule.from_json(small.to_json(), small.state_dict())


LITERALS = {"double": (True, False), "times": (2, 1), "scale": (0.5, 1.0), "mode": ("mean", "sum")}


@pytest.mark.parametrize("again", [lambda small: small, loaded], ids=["made", "loaded"])
@pytest.mark.parametrize("name", LITERALS)
def test_another_literal_is_refused_and_an_equal_one_taken(name: str, again: Any):
    captured, other = LITERALS[name]
    model, x = Flags(), data(2, 4)
    small = again(as_graph(model, x, **{name: captured}))
    torch.testing.assert_close(small(x, **{name: captured}), model(x, **{name: captured}))
    for call in ({name: other}, {}):
        with pytest.raises(sec.InputError, match=f"`{name}`.*captured with {captured!r}, given {other!r}"):
            small(x, **call)
    assert not torch.allclose(model(x, **{name: other}), model(x, **{name: captured})), "the literal does nothing"


def test_a_default_may_be_left_out_or_written_out():
    model, x = Flags(), data(2, 4)
    small = as_graph(model, x)
    torch.testing.assert_close(small(x, None, False, 1, 1.0, "sum"), model(x))
    torch.testing.assert_close(small(x=x, times=1), model(x))
    with pytest.raises(sec.InputError, match=r"`times`.*captured with 1, given True"):
        small(x, times=True)
    with pytest.raises(sec.InputError, match=r"`mask`.*captured with None, given a tensor"):
        small(x, data(3))
    with pytest.raises(sec.InputError, match="`other` is given and was not"):
        small(x, other=1)
    with pytest.raises(sec.InputError, match="`x` is given twice"):
        small(x, x=x)
    with pytest.raises(sec.InputError, match="`x` is missing"):
        small(mask=None)


@pytest.mark.parametrize("again", [lambda small: small, loaded], ids=["made", "loaded"])
def test_tensors_are_matched_by_name_not_by_order(again: Any):
    class Two(Net):
        def forward(self, x: Tensor, y: Tensor, *, z: Tensor) -> Tensor:
            return self.body(x) - 2 * self.body(y) + 3 * self.body(z)

    model = Two()
    x, y, z = (data(2, 4) + i for i in range(3))
    small = again(as_graph(model, x, y, z=z))
    expected = model(x, y, z=z)
    for found in (small(x, y, z=z), small(z=z, y=y, x=x), small(x, z=z, y=y)):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(small(y, x, z=z), model(y, x, z=z))
    with pytest.raises(sec.InputError, match="other inputs"):
        small(x, y, z)


def test_structures_are_matched_by_place():
    class Pair(NamedTuple):
        left: Tensor
        right: Tensor

    class Nested(Net):
        def forward(self, batch: Any, *more: Tensor, flags: Any) -> Any:
            y = self.body(batch["ids"]) - self.body(batch["pair"].right) + self.body(more[1]) * flags[0]
            return {"y": y + self.body(batch["pair"].left)[0] * 2}

    model = Nested()
    first = {"ids": data(2, 4), "pair": Pair(data(2, 4) + 1, data(2, 4) - 1)}
    second = {"ids": data(2, 4) * 2, "pair": Pair(data(2, 4) * 3, data(2, 4) - 4)}
    small = as_graph(model, first, data(1), data(2, 4), flags=[3, None])
    small = loaded(small)
    found, expected = (net(second, data(1), data(2, 4) + 5, flags=[3, None]) for net in (small, model))
    torch.testing.assert_close(found["y"], expected["y"])
    for args, flags, words in (
        ((first, data(1), data(2, 4)), [4, None], r"flags\[0\].*captured with 3, given 4"),
        ((first, data(1), data(2, 4)), [3], r"flags\[1\]` is missing"),
        ((first, data(1)), [3, None], r"args\[2\]` is missing"),
        (({"pair": first["pair"], "ids": first["ids"]}, data(1), data(2, 4)), [3, None], "another order"),
    ):
        with pytest.raises(sec.InputError, match=words):
            small(*args, flags=flags)


def test_a_program_without_its_call_checks_the_number_of_tensors():
    small = as_graph(Flags(), data(2, 4), times=2)
    text = json.loads(small.to_json())
    assert text.pop("calling")
    old = GraphModule.from_json(json.dumps(text), small.state_dict())
    torch.testing.assert_close(old(data(2, 4)), small(data(2, 4), times=2))
    with pytest.raises(sec.InputError, match="2 tensors given"):
        old(data(2, 4), data(3))


@pytest.mark.parametrize(
    "call",
    [[], [["x"], {"$map": []}, {"$map": []}], [["x"], {"$map": []}, {"$map": [["x", {"$value": 0}], ["y", [1]]]}], 3],
    ids=["too short", "no inputs", "no literal", "no list"],
)
def test_a_call_that_does_not_fit_the_program_is_refused(call: Any):
    small = as_graph(Flags(), data(2, 4))
    text = {**json.loads(small.to_json()), "calling": call}
    with pytest.raises(sec.ArtifactError, match="not a Secateurs graph"):
        GraphModule.from_json(json.dumps(text), small.state_dict())


# Arguments that are neither


@dataclass
class Batch:
    x: Tensor


class Closed:
    __slots__ = ("inner",)

    def __init__(self, x: Any) -> None:
        self.inner = {"x": [x]}


class Bag(dict[str, Tensor]):
    pass


class Opener(Net):
    def forward(self, item: Any, x: Tensor | None = None) -> Tensor:
        return self.body(x if x is not None else item.x)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (Batch(data(2, 4)), r"register_dataclass\(Batch\)"),
        (Closed(data(2, 4)), r"register_pytree_node\(Closed"),
        (Bag(x=data(2, 4)), r"register_pytree_node\(Bag"),
        (np.zeros((2, 4)), "from_numpy"),
        (Closed(np.zeros(3)), "register_pytree_node"),
        (nn.Linear(2, 2), "register_pytree_node"),
    ],
    ids=["dataclass", "slots", "subclass", "array", "hidden array", "module"],
)
def test_tensors_in_closed_objects_are_refused(item: Any, words: str):
    with pytest.raises(sec.InputError, match=words):
        sec.capture(Opener(), (item, data(2, 4)))
    with pytest.raises(sec.InputError, match=words):
        sec.capture(Opener(), (data(2, 4),), kwargs={"item": [item]})


def test_a_registered_dataclass_is_opened():
    @dataclass
    class Open:
        x: Tensor
        times: int

    torch.export.register_dataclass(Open)

    class Reader(Net):
        def forward(self, item: Open) -> Tensor:
            return self.body(item.x) * item.times

    model = Reader()
    small = as_graph(model, Open(data(2, 4), 3))
    torch.testing.assert_close(small(Open(data(2, 4) + 1, 3)), model(Open(data(2, 4) + 1, 3)))
    with pytest.raises(sec.InputError, match=r"item\.times.*captured with 3, given 4"):
        small(Open(data(2, 4), 4))


def test_an_object_without_value_has_a_native_form_only():
    class Config:
        times = 2

    class Configured(Net):
        def forward(self, x: Tensor, config: Config) -> Tensor:
            return self.body(x) * config.times

    graph = sec.capture(Configured(), (data(2, 4), Config()))
    plan = sec.plan(graph, sec.couple(graph), keep={"a": [0, 1]})
    assert sec.cut_detailed(Configured(), plan, (data(2, 4), Config())).form == "native"
    with pytest.raises(sec.InputError, match="`config`.*it is a Config"):
        sec.cut_detailed(Configured(), plan, (data(2, 4), Config()), form="graph")


# Numbers among the outputs


def test_numbers_among_the_outputs_follow_the_batch_and_hold_for_the_captured_shape():
    class Sized(Net):
        def forward(self, x: Tensor) -> Any:
            return {"y": self.body(x), "size": (x.shape[0], x.shape[1], 2 * x.shape[0]), "none": None, "name": "net"}

    model = Sized()
    for small in (once := as_graph(model, data(2, 5, 4)), loaded(once)):
        for batch in (2, 3):
            found, expected = small(data(batch, 5, 4)), model(data(batch, 5, 4))
            torch.testing.assert_close(found.pop("y"), expected.pop("y"))
            assert found == expected
        with pytest.raises(sec.InputError, match=r"`x`.*\(2, 6, 4\) given, captured with \(2, 5, 4\)"):
            small(data(2, 6, 4))


def test_a_float_among_the_outputs_holds_for_the_captured_batch_only():
    class Share(Net):
        def forward(self, x: Tensor) -> Any:
            return self.body(x), 1 / x.shape[0]

    small = as_graph(Share(), data(2, 4))
    assert small(data(2, 4))[1] == 0.5
    with pytest.raises(sec.InputError, match="depend on the shapes"):
        small(data(3, 4))


def test_a_number_that_was_read_from_data_is_refused():
    class Reads(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.body(x)
            return y, y.sum().item()

    with pytest.raises(sec.InputError, match=r"read from data.*\.item\(\)"):
        as_graph(model := Reads(), data(2, 4))
    graph = sec.capture(model, data(2, 4))
    plan = sec.plan(graph, sec.couple(graph), keep={"a": [0, 1]})
    assert sec.cut_detailed(model, plan, data(2, 4)).form == "native"


def test_without_numbers_any_shape_goes():
    class Plain(Net):
        def forward(self, x: Tensor) -> Any:
            return [self.body(x), None]

    model = Plain()
    small = as_graph(model, data(2, 5, 4))
    torch.testing.assert_close(small(data(3, 7, 4)), model(data(3, 7, 4)))


def test_the_refusal_says_why_a_graph_was_needed():
    class Fixed(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.b(torch.relu(self.a(x)).view(2, 2, 4).reshape(2, 8))
            return y, y.sum().item()

    model = Fixed()
    graph = sec.capture(model, data(2, 4))
    plan = sec.plan(graph, sec.couple(graph), keep={group.name: [0] for group in sec.couple(graph).free})
    with pytest.raises(
        sec.InputError, match=r"read from data.*graph is needed: .*Next: return it as a tensor"
    ) as refused:
        sec.cut(model, plan, data(2, 4))
    assert str(refused.value).count("Next:") == 1
