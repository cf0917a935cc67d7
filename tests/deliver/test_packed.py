"""`sec.pack` and `sec.unpack`: models, states, the graph form, the ledger, refusals."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

import secateurs as sec
from secateurs.pack.coded import Coded, Raw, Shared
from secateurs.pack.container import read, to_bytes
from secateurs.pack.dtypes import DTYPES
from secateurs.pack.ledger import PARTS, ledger
from secateurs.testing.packed import coded_tensors, sample_tensors


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return y


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def pruned(seed: int = 0, share: float = 0.8) -> Net:
    torch.manual_seed(seed)
    net = Net().eval()
    with torch.no_grad():
        for layer in (net.conv, net.head):
            order = layer.weight.abs().flatten().argsort()
            layer.weight.view(-1)[order[: int(share * order.numel())]] = 0.0
        net.norm.running_mean.normal_()
    return net


def same_state(one: nn.Module, other: nn.Module) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]) and tensor.dtype == other.state_dict()[name].dtype


def test_into_the_class_and_as_a_state(tmp_path: Path) -> None:
    net = pruned()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    book = sec.pack(net, tmp_path / "m.sec", metadata={"seed": 0})
    assert book.bytes == (tmp_path / "m.sec").stat().st_size
    again = sec.unpack(tmp_path / "m.sec", Net)
    assert isinstance(again, Net) and not again.training
    same_state(again, net)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(again(x), net(x))
    state = sec.unpack(tmp_path / "m.sec")
    assert isinstance(state, dict) and all(torch.equal(state[name], before[name]) for name in before)
    state["conv.weight"].zero_()  # its own memory, not the file's
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert read(tmp_path / "m.sec").metadata == {"seed": 0}
    sec.pack(net, tmp_path / "again.sec", metadata={"seed": 0})
    assert (tmp_path / "again.sec").read_bytes() == (tmp_path / "m.sec").read_bytes()
    assert read(tmp_path / "m.sec").record("conv.weight").encoding is not None


def test_negative_zeros_become_zeros(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2):
        for values in ([-0.0, 1.0], [-0.0] * 100 + [1.0]):
            tensor = torch.tensor(values).to(dtype)
            sec.pack({"w": tensor}, tmp_path / "m.sec")
            found = sec.unpack(tmp_path / "m.sec")["w"]  # type: ignore[index]
            assert found.dtype == dtype and torch.equal(found.float(), tensor.float())
            assert not torch.signbit(found.float()).any()


@pytest.mark.parametrize("name", DTYPES)
def test_every_type(name: str, tmp_path: Path) -> None:
    tensor = torch.tensor([[0, 1, 0], [1, 0, 1]]).to(getattr(torch, name))
    sec.pack({"w": tensor, "scalar": tensor[0, 1], "none": tensor[:0]}, tmp_path / "m.sec")
    state = sec.unpack(tmp_path / "m.sec")
    assert isinstance(state, dict)
    for key, expected in {"w": tensor, "scalar": tensor[0, 1], "none": tensor[:0]}.items():
        assert state[key].dtype == expected.dtype and state[key].shape == expected.shape
        assert state[key].tolist() == expected.tolist()


def test_lazily_negated_values(tmp_path: Path) -> None:
    values = torch.tensor([1.0 + 2.0j, 3.0 - 4.0j]).conj().imag
    assert values.is_neg()
    sec.pack({"w": values}, tmp_path / "m.sec")
    found = sec.unpack(tmp_path / "m.sec")
    assert isinstance(found, dict)
    assert found["w"].tolist() == [-2.0, 4.0]


def test_tied_tensors_stay_one(tmp_path: Path) -> None:
    net = Tied()
    sec.pack(net, tmp_path / "m.sec")
    assert (tmp_path / "m.sec").stat().st_size < 10 * 4 * 4 + 120
    state = sec.unpack(tmp_path / "m.sec")
    assert isinstance(state, dict) and state["head.weight"] is state["embed.weight"]
    again = sec.unpack(tmp_path / "m.sec", Tied)
    same_state(again, net)  # type: ignore[arg-type]


def test_coded_tensors_come_back_decoded(tmp_path: Path) -> None:
    net = pruned()
    weight = net.conv.weight.detach().numpy()
    kept = weight != 0
    codes = np.digitize(weight[kept], [-0.1, 0.1])
    coded = Coded(weight.shape, Shared(codes, np.array([-0.2, 0.0, 0.2], dtype=np.float32)), kept)
    sec.pack(net, tmp_path / "m.sec", coded={"conv.weight": coded})
    again = sec.unpack(tmp_path / "m.sec", Net)
    assert torch.equal(again.conv.weight, torch.from_numpy(coded.decode()))  # type: ignore[union-attr]
    assert torch.equal(again.head.weight, net.head.weight)  # type: ignore[union-attr]


def test_graph_form_runs_without_the_class(tmp_path: Path) -> None:
    from secateurs.cut.form import GraphModule

    net = pruned()
    x = torch.randn(2, 3, 6, 6)
    graph = sec.capture(net, x)
    sec.pack(GraphModule(graph, dict(net.state_dict())), tmp_path / "m.sec")
    again = sec.unpack(tmp_path / "m.sec")
    assert isinstance(again, GraphModule)
    assert torch.equal(again(x), net(x))


def test_the_same_model_gives_the_same_file_with_its_program(tmp_path: Path) -> None:
    """Also when it lies elsewhere in memory."""
    kept = []
    for place in range(2):
        net = pruned()
        kept += [net, torch.zeros(1000 * (place + 1))]
        sec.pack(net, tmp_path / f"{place}.sec", example_inputs=torch.randn(2, 3, 6, 6))
    assert (tmp_path / "0.sec").read_bytes() == (tmp_path / "1.sec").read_bytes()
    program = json.loads(read(tmp_path / "0.sec").text("graph") or "")
    memory = [value[3] for value in program["values"]]
    assert memory[0] == 0 and max(memory) < len(memory) and len(set(memory)) > 5


def test_a_budget_holds_with_everything_that_is_in_the_file(tmp_path: Path) -> None:
    net, x = pruned(), torch.randn(2, 3, 6, 6)
    given = Coded((4,), Raw(net.head.bias.detach().numpy()))
    plain = sec.pack(net, tmp_path / "m.sec", bytes=10**6).bytes
    for extra in ({"example_inputs": x}, {"metadata": {"a": "b" * 99}}, {"coded": {"head.bias": given}}, {"biases": 4}):
        least = sec.pack(net, tmp_path / "m.sec", bytes=10**6, **extra).bytes - 60
        assert least > plain - 100
        book = sec.pack(net, tmp_path / "m.sec", bytes=least, **extra)
        assert book.bytes <= least
    weight = Coded((4, 8), Raw(net.head.weight.detach().numpy().reshape(-1)))
    sec.pack(net, tmp_path / "m.sec", bytes=1000, coded={"head.weight": weight})
    assert torch.equal(sec.unpack(tmp_path / "m.sec")["head.weight"], net.head.weight)  # type: ignore[index]


def test_a_ledger_of_a_path(tmp_path: Path) -> None:
    assert sec.pack(pruned(), tmp_path / "m.sec") == sec.ledger(tmp_path / "m.sec")
    with pytest.raises(sec.ArtifactError, match="cannot be opened"):
        sec.ledger(tmp_path / "none")


def refuse(kind: type[sec.SecateursError], action: Callable[[], object], *words: str) -> None:
    with pytest.raises(kind) as caught:
        action()
    for word in words:
        assert word in str(caught.value)


def test_the_first_difference_to_the_class_is_named(tmp_path: Path) -> None:
    sec.pack(pruned(), tmp_path / "m.sec")
    refuse(
        sec.ArtifactError, lambda: sec.unpack(tmp_path / "m.sec", lambda: Net(9)), "conv.weight", "8x3x3x3", "9x3x3x3"
    )
    refuse(
        sec.ArtifactError, lambda: sec.unpack(tmp_path / "m.sec", lambda: nn.Linear(2, 2)), "`weight` is in the class"
    )
    refuse(sec.ArtifactError, lambda: sec.unpack(tmp_path / "m.sec", lambda: Net().half()), "float16 in the class")
    refuse(sec.InputError, lambda: sec.unpack(tmp_path / "m.sec", Net()), "not a class or function")  # type: ignore[arg-type]


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    one = Coded((1,), Raw(np.ones(1, dtype=np.float32)))
    out = tmp_path / "m.sec"
    refuse(sec.InputError, lambda: sec.pack("net", out), "got a str")  # type: ignore[arg-type]
    refuse(sec.ArtifactError, lambda: sec.pack({"w": 1}, out), "not a tensor")  # type: ignore[dict-item]
    refuse(
        sec.InputError, lambda: sec.pack({"weight": torch.ones(1)}, out, coded={"wieght": one}), "did you mean `weight`"
    )
    refuse(
        sec.InputError, lambda: sec.pack({"w": torch.ones(2)}, out, coded={"w": one}), "disagree on `w`", "[1]", "[2]"
    )
    refuse(sec.InputError, lambda: sec.pack({"w": torch.ones(2, device="meta")}, out), "meta")
    refuse(sec.InputError, lambda: sec.pack({"w": torch.ones(2, dtype=torch.complex128)}, out), "complex128")
    refuse(sec.InputError, lambda: sec.pack({"w": torch.eye(2).to_sparse()}, out), "`w`", "sparse", "dense")
    refuse(sec.InputError, lambda: sec.pack(pruned(), out, gzip=True, original="net"), "got a str")  # type: ignore[arg-type]
    assert not out.exists()
    refuse(sec.WriteError, lambda: sec.pack({"w": torch.ones(2)}, tmp_path), "could not be written")
    net = pruned()
    refuse(sec.InputError, lambda: sec.pack(net, out, data=[]), "Nothing is quantised", "share, integers or bytes")
    for bits in (2.5, [3], {"*": "x"}, {"*": 2.5}, {1: 3}):
        refuse(sec.InputError, lambda bits=bits: sec.pack(net, out, share=bits), "whole number", repr(bits))  # type: ignore[misc]
    refuse(sec.InputError, lambda: sec.pack(net, out, integers="8"), "whole number", "'8'")  # type: ignore[arg-type]
    refuse(sec.InputError, lambda: sec.pack(net, out, bytes="4KB"), "number of bytes", "'4KB'")  # type: ignore[arg-type]
    for endless in (float("inf"), float("nan")):
        refuse(sec.InputError, lambda endless=endless: sec.pack(net, out, bytes=endless), "number of bytes")  # type: ignore[misc]
    assert not out.exists()


@given(st.lists(coded_tensors(), max_size=3), st.booleans())
@settings(max_examples=50)
def test_the_ledger_sums_to_the_file(tensors: list[Coded], notes: bool) -> None:
    named = {f"l{place}.weight": tensor for place, tensor in enumerate(tensors)}
    data = to_bytes(named, {"a": "b" * 50} if notes else None)
    book = ledger(read(data))
    assert sum(row.bytes for row in book.rows) == sum(book.parts.values()) == book.bytes == len(data)
    assert all(part in PARTS and size > 0 for row in book.rows for part, size in row.parts.items())


def test_the_ledger_says_what_bytes_are_for(tmp_path: Path) -> None:
    book = sec.pack(pruned(), tmp_path / "m.sec", metadata={"a": 1}, gzip=True)
    rows = {row.name: row for row in book.rows}
    assert rows["norm.running_mean"].parts["norms"] == 8 * 4
    assert rows["norm.running_var"].parts["tables"] == 2  # ones: that says it
    assert rows["head.bias"].parts["biases"] == 4 * 4
    kept = 8 * 27 - int(0.8 * 8 * 27)
    assert rows["conv.weight"].kept == kept and kept * 2 < rows["conv.weight"].parts["codes"] < kept * 4
    assert rows["(metadata)"].parts["texts"] == len('{"a":1}')
    data = json.loads(json.dumps(book.to_json()))
    assert data["bytes"] == sum(row["bytes"] for row in data["rows"]) == sum(data["parts"].values())
    assert data["gzip"]["forms"]["csr"] > data["gzip"]["forms"]["relative"] > data["gzip"]["gzip_packed"] / 2
    assert f"sparse rows {data['gzip']['forms']['csr']:,} bytes" in book.summary()
    assert data["gzip"]["raw"] == 4 * (8 * 27 + 8 + 4 * 8 + 8 * 4 + 4)
    assert f"{book.bytes:,}" in str(book) and "conv.weight" in str(book) and "factor" in str(book)


def test_a_narrow_table_adds_parts_up_and_cuts_no_number_off(tmp_path: Path) -> None:
    book = sec.pack(pruned(), tmp_path / "m.sec", share=3, biases=8, example_inputs=torch.randn(2, 3, 6, 6))
    for width in (80, 200):
        console = Console(file=io.StringIO(), width=width)
        console.print(book)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "…" not in text and ("codebooks" in text) == (width == 200)
        assert all(row.name[:12] in text and f"{row.bytes:,}" in text for row in book.rows)
        sums = [int(word.replace(",", "")) for word in text.splitlines()[-1].split()[1:]]
        assert sum(sums[:-1]) == sums[-1] == book.bytes


def test_shared_contents_have_codebooks_and_tables() -> None:
    book = ledger(read(to_bytes(sample_tensors())))
    rows = {row.name: row for row in book.rows}
    assert rows["shared.dense"].parts["codebooks"] % 4 == 0 and "indices" not in rows["shared.dense"].parts
    assert {"indices", "tables", "codes"} <= set(rows["shared.sparse2"].parts)


def test_many_subnormal_values_are_packed_as_they_are_with_a_warning(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    with torch.no_grad():
        model[0].weight[:15] = 1e-40
        model[1].weight[0, :2] = 1e-40  # 2 of 300
    with pytest.warns(UserWarning, match=r"300 values are not zero.*`0\.weight`: 300 of 600\..*2\*\*-126") as caught:
        sec.pack(model, tmp_path / "file")
    assert caught[0].filename == __file__
    state = sec.unpack(tmp_path / "file")
    assert isinstance(state, dict) and torch.equal(state["0.weight"], model[0].weight)
    for made in (lambda: sec.pack(model, tmp_path / "shared", share=4), lambda: sec.pack(model.half(), tmp_path / "h")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made()  # coded; and in half precision they are zeros, and 1e-6 a number like others
