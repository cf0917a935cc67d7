"""Programs from files: what is refused before anything of it runs, and that every model's own program is not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.capture.graph import Node, Ref
from secateurs.capture.run import last_use
from secateurs.couple.rules.registry import RULES
from secateurs.cut.form import GraphModule
from secateurs.cut.sound import known
from secateurs.deliver.program import programmed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return [y, *self.head(y).chunk(3, 1)]


X = torch.ones(2, 2, 4, 4)


@pytest.fixture(scope="module")
def made() -> GraphModule:
    torch.manual_seed(0)
    return programmed(Net().eval(), X)


def again(made: GraphModule, change: Callable[[Any], None]) -> GraphModule:
    program = json.loads(made.to_json())
    change(program)
    return GraphModule.from_json(json.dumps(program), made.state_dict())


def node(program: Any, name: str) -> Any:
    return next(item for item in program["nodes"] if item[0].startswith(f"aten.{name}."))


def test_nothing_changed_is_nothing_refused(made: GraphModule) -> None:
    for found, expected in zip(again(made, lambda program: None)(X), made(X), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        ("aten._reshape_alias.default", "is internal"),  # reads whatever lies behind its argument
        ("aten._sparse_coo_tensor_unsafe.default", "is internal"),
        ("aten._print.default", "is internal"),
        ("aten.from_file.default", "touches files"),
        ("aten.set_grad_enabled.default", "gives no tensor"),
        ("aten.manual_seed.default", "gives no tensor"),
        ("aten.remainder.int", "gives no tensor"),
        ("aten.tensor.float", "gives no tensor"),  # TorchScript's own
        ("aten.conv2d.__init__", "There is no operator"),
        ("aten.__class__.__mro__", "There is no operator"),
        ("aten.conv2d", "There is no operator"),
        ("os.system.default", "is outside aten and torchvision"),
        (["aten.relu.default"], "is no text|unhashable"),
    ],
)
def test_operators_that_a_file_may_not_call(made: GraphModule, operator: Any, reason: str) -> None:
    def change(program: Any) -> None:
        node(program, "relu")[0] = operator

    with pytest.raises(sec.ArtifactError, match=reason):
        again(made, change)


def test_operators_with_a_rule_can_be_stored() -> None:
    """Whatever a cut can follow may stand in a file, if this PyTorch has it and it gives tensors."""
    count = 0
    for name in RULES:
        space, op = name.split(".")
        packet = getattr(getattr(torch.ops, space), op, None)
        for overload in packet.overloads() if packet is not None and space == "aten" else ():
            schema = getattr(packet, overload)._schema
            tensors = any("Tensor" in str(item.type) for item in schema.returns)
            if tensors and torch._C._dispatch_has_kernel(getattr(packet, overload).name()):
                assert known(f"{name}.{overload}")
                count += 1
    assert count > 300


@pytest.mark.parametrize("number", ["1", 1.0, True, -1, 10**30, float("inf"), None, [1]], ids=str)
@pytest.mark.parametrize("place", ["size", "reference", "leaf", "input", "result", "memory"])
def test_numbers_are_numbers(made: GraphModule, place: str, number: Any) -> None:
    def change(program: Any) -> None:
        relu = node(program, "relu")
        if place == "size":
            program["values"][-1][0][0] = number
        elif place == "reference":
            relu[1]["$tuple"][0]["$value"] = number
        elif place == "leaf":
            program["leaves"][0][3] = number
        elif place == "input":
            program["inputs"][0][1] = number
        elif place == "result":
            relu[3][0] = number
        else:
            program["values"][0][3] = number

    with pytest.raises(sec.ArtifactError, match="not a Secateurs graph"):
        again(made, change)


def _twice(program: Any) -> None:
    node(program, "relu")[3] = list(node(program, "conv2d")[3])


def _own(program: Any) -> None:
    relu = node(program, "relu")
    relu[1]["$tuple"][0]["$value"] = relu[3][0]


def _far(program: Any) -> None:
    node(program, "relu")[3] = [len(program["values"])]


def _more(program: Any) -> None:
    node(program, "relu")[1]["$tuple"] += [1, 2]


def _keyword(program: Any) -> None:
    node(program, "relu")[2] = {"$map": [["__class__", 1]]}


def _results(program: Any) -> None:
    node(program, "relu")[3] *= 2


def _no_input(program: Any) -> None:
    program["inputs"], program["calling"] = [], None


def _kind(program: Any) -> None:
    program["leaves"][0][2] = "module"


def _names(program: Any) -> None:
    program["leaves"][0][1].append(program["leaves"][1][0])


def _first(program: Any) -> None:
    program["leaves"][0][1] = ["other"]


def _gone(program: Any) -> None:
    program["leaves"][0][:2] = ["other", ["other"]]


def _literal(program: Any) -> None:
    node(program, "batch_norm")[1]["$tuple"][3] = "one"


def _listed(program: Any) -> None:
    node(program, "relu")[1]["$tuple"] = [[node(program, "relu")[1]["$tuple"][0]] * 2]


def _sizes(program: Any) -> None:
    node(program, "mean")[1]["$tuple"][1] = [node(program, "relu")[1]["$tuple"][0]] * 65


def _nested(program: Any) -> None:
    node(program, "mean")[1]["$tuple"][1] = [[2, 3]]


def _device(program: Any) -> None:
    node(program, "relu")[1]["$tuple"] = [{"$device": "no such"}]


def _way(program: Any) -> None:
    program["how"] = "guessed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_twice, "is given twice"), (_own, "before it exists"), (_far, r"of \d+$|of \d+\."), (_more, "3 arguments"),
        (_keyword, "__class__"), (_results, "2 of 1 results"), (_no_input, "takes no tensor"), (_kind, "'module'"),
        (_names, "is that of two tensors"), (_first, "not the first of its names"), (_gone, "`other` is missing"),
        (_device, "device"), (_listed, "a list to `self` of aten.relu.default, which is Tensor"),
        (_sizes, "65 tensors to `dim`"), (_nested, "a list of lists to `dim`"), (_way, "'guessed'"),
    ],
)  # fmt: skip
def test_programs_that_make_no_sense(made: GraphModule, change: Callable[[Any], None], reason: str) -> None:
    with pytest.raises(sec.ArtifactError, match=reason):
        again(made, change)


def test_a_literal_where_a_batch_norm_takes_a_tensor(made: GraphModule) -> None:
    """The call fits by name and number of arguments; PyTorch refuses it when it runs."""
    found = again(made, _literal)
    with pytest.raises(RuntimeError):
        found(X)


def test_two_tensors_that_the_program_calls_one() -> None:
    """Loaded as one, half of what the file holds would be lost."""
    made = programmed(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval(), torch.ones(1, 2))
    state = made.state_dict()
    program = json.loads(made.to_json())
    program["leaves"][0][1].append("further")
    text = json.dumps(program)
    assert GraphModule.from_json(text, {**state, "further": state[program["leaves"][0][0]].clone()})
    with pytest.raises(sec.ArtifactError, match="one tensor in the graph and two here"):
        GraphModule.from_json(text, {**state, "further": state[program["leaves"][0][0]] + 1})


def test_a_text_names_nothing_of_torch_but_types(made: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up any name in `torch` would import submodules."""
    asked: list[str] = []

    def asking(name: str) -> Any:
        asked.append(name)
        raise AttributeError(name)

    monkeypatch.setattr(torch, "__getattr__", asking)
    for name in ("torch.no_such_submodule", "nn", "load"):
        with pytest.raises(sec.ArtifactError, match="is no dtype"):
            again(made, lambda program, name=name: program["values"][0].__setitem__(1, name))  # type: ignore[misc]
    assert not asked


@pytest.mark.parametrize("change", [{"leaves": 5}, {"leaves": [[]]}, {"leaves": None}, {"nodes": [[]]}], ids=str)
def test_parts_of_another_form(made: GraphModule, change: Any) -> None:
    with pytest.raises(sec.ArtifactError):
        again(made, lambda program: program.update(change))


def test_many_outputs_take_no_square_of_time() -> None:
    count = 30_000
    nodes = tuple(Node(i, "aten.relu.default", (Ref(i),), {}, (i + 1,), False, "", "") for i in range(count))
    start = time.thread_time()
    assert last_use(nodes, tuple(range(1, count + 1))) == {0: [0]}
    assert time.thread_time() - start < 1


# Models whose programs could not be stored, or not be read


def test_a_model_that_is_one_batch_norm(tmp_path: Path) -> None:
    model, x = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    sec.pack(model, tmp_path / "m.sec", example_inputs=x)
    found = sec.unpack(tmp_path / "m.sec")
    assert isinstance(found, GraphModule) and torch.equal(found(x), model(x))


@pytest.mark.parametrize("name", ["graph", "tensors", "_norms"])
def test_a_name_that_the_graph_form_needs_itself(name: str, tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Any:
            return self.get_submodule(name)(x)

    with pytest.raises(sec.InputError, match=f"`{name}` is taken"):
        sec.pack(Named().eval(), tmp_path / "m.sec", example_inputs=torch.ones(1, 2))
    assert not list(tmp_path.iterdir())


@torch.library.custom_op("secateurs_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        return twice(self.body(x))


def test_an_operator_of_somebody_else_is_refused_when_it_is_written(tmp_path: Path) -> None:
    model = Custom().eval()
    with pytest.raises(sec.InputError, match="This program cannot be stored.*outside aten"):
        sec.pack(model, tmp_path / "m.sec", example_inputs=torch.ones(1, 2))
    assert not list(tmp_path.iterdir())
    sec.pack(model, tmp_path / "m.sec")
    found = sec.unpack(tmp_path / "m.sec", Custom)
    assert isinstance(found, Custom) and torch.equal(found.body.weight, model.body.weight)


def test_another_number_of_pieces_is_told(made: GraphModule) -> None:
    class Pieces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Any:
            return [piece + 1 for piece in self.body(x).split(2, 1)]

    small = programmed(Pieces().eval(), torch.ones(1, 4, 2))
    with pytest.raises(sec.InputError, match="3 results instead of 2.*captured with"):
        small(torch.ones(1, 6, 2))
